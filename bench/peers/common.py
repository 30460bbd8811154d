"""What the peers share: forwards that can be cut anywhere, and step counting a paper's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    UNetModel,
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from comfy.patcher_extension import WrappersMP
from torch import Tensor


@dataclass
class Steps:
    """Counts the evaluations of a run, as papers do: one a step. `cache` lives from one to the next."""

    index: int = -1
    sigma: float = float("inf")
    cache: dict[Any, Any] = field(default_factory=dict)

    def advance(self, sigma: float) -> int:
        """Index of the step of this sigma; several calls at one sigma are one step, a rise begins a new run."""
        if sigma > self.sigma * (1 + 1e-4):
            self.index, self.cache = -1, {}
            self.sigma = float("inf")
        if sigma < self.sigma * (1 - 1e-6):
            self.index, self.sigma = self.index + 1, sigma
        return self.index


Call = Callable[[UNetModel, Callable[[], Tensor], "Inputs", int, dict], Tensor]


@dataclass
class Inputs:
    """The arguments of UNetModel.forward, and its blocks as functions."""

    unet: UNetModel
    x: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None
    control: dict | None
    options: dict

    def embedding(self) -> Tensor:
        emb = self.unet.time_embed(timestep_embedding(self.timesteps, self.unet.model_channels).to(self.x.dtype))
        return emb if self.unet.num_classes is None else emb + self.unet.label_emb(self.y)

    def block(self, name: str, number: int, h: Tensor, emb: Tensor, shape: tuple | None = None) -> Tensor:
        """Run one block of "input", "middle" or "output"; control is added to what "input" and "middle" return."""
        self.options["block"] = (name, number)
        blocks = {"input": self.unet.input_blocks, "middle": [self.unet.middle_block], "output": self.unet.output_blocks}
        h = forward_timestep_embed(blocks[name][number], h, emb, self.context, self.options, shape)
        return h if name == "output" else apply_control(h, self.control, name)

    def encode(self, emb: Tensor, count: int | None = None) -> list[Tensor]:
        """The skips of the first `count` input blocks, or of all."""
        h, skips = self.x, []
        for number in range(len(self.unet.input_blocks) if count is None else count):
            h = self.block("input", number, h, emb)
            skips.append(h)
        return skips

    def decode(
        self, h: Tensor, skips: list[Tensor], emb: Tensor, first: int = 0, keep: dict[int, Tensor] | None = None,
        head: bool = True,
    ) -> Tensor:  # fmt: skip
        """Output blocks from `first` on, given what enters that block, and the `head`; `keep` collects what enters each."""
        skips = list(skips)
        for number in range(first, len(self.unet.output_blocks)):
            if keep is not None:
                keep[number] = h
            h = torch.cat([h, apply_control(skips.pop(), self.control, "output")], dim=1)
            h = self.block("output", number, h, emb, skips[-1].shape if skips else None)
        return self.unet.out(h.type(self.x.dtype)) if head else h


def with_unet_wrapper(model: Any, name: str, call: Callable[[Callable[[], Tensor], Inputs, int, dict], Tensor]) -> Any:
    """A clone whose UNet calls go through `call(original, inputs, step, cache)`; the cache is one batch composition's."""
    steps = Steps()

    def wrapper(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        index = steps.advance(float(transformer_options["sigmas"][0]))
        cache = steps.cache.setdefault(tuple(transformer_options["uuids"]), {})
        transformer_options["original_shape"], transformer_options["transformer_index"] = list(x.shape), 0
        inputs = Inputs(executor.class_obj, x, timesteps, context, y, control, transformer_options)
        original = lambda: executor(x, timesteps, context, y, control, transformer_options, **kwargs)  # noqa: E731
        return call(original, inputs, index, cache)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, name, wrapper)
    return clone


@dataclass
class Run:
    """The original block of a patched call: run(txt, img) -> (txt, img); vec is what modulates it, step counts evaluations."""

    block: Callable[[dict], dict]
    args: dict
    step: int

    @property
    def vec(self) -> Tensor:
        return self.args["vec"]

    @property
    def count(self) -> int:
        """How many steps the schedule has."""
        return len(self.args["transformer_options"]["sample_sigmas"]) - 1

    def __call__(self, txt: Tensor, img: Tensor) -> tuple[Tensor, Tensor]:
        out = self.block({**self.args, "txt": txt, "img": img})
        return out.get("txt", txt), out["img"]


def blocks_of(model: Any) -> Any:
    """The blocks of an SD3 or a Wan MODEL, which go through patches one by one."""
    network = model.get_model_object("diffusion_model")
    return network.joint_blocks if hasattr(network, "joint_blocks") else network.blocks


def with_block_patches(model: Any, name: str, call: Callable[..., tuple[Tensor, Tensor]]) -> Any:
    """A clone of an SD3 or a Wan MODEL whose blocks go through `call(index, last, img, txt, run, cache)`."""
    steps, clone = Steps(), model.clone()
    last = len(blocks_of(model)) - 1

    def patch(index: int) -> Callable[[dict, dict], dict]:
        def block(args: dict, extra: dict) -> dict:
            options = args["transformer_options"]
            step = steps.advance(float(options["sigmas"][0]))
            cache = steps.cache.setdefault((name, *options["uuids"]), {})
            txt, img = call(index, last, args["img"], args["txt"], Run(extra["original_block"], args, step), cache)
            return {"txt": txt, "img": img}

        return block

    for index in range(last + 1):
        clone.set_model_patch_replace(patch(index), "dit", "double_block", index)
    return clone


def rest_or_run(index: int, last: int, img: Tensor, txt: Tensor, run: Run, cache: dict) -> tuple[Tensor, Tensor]:
    """What a cache of residuals does in a block: nothing but, at the last one, add the residual of the last computed call
    where `cache["reuse"]`; else compute the block, and at the last one remember how far it is from `cache["entered"]`, which is
    what enters the first one that comes here."""
    if index == 0 and not cache["reuse"]:
        cache["entered"] = img.clone()
    if cache["reuse"]:
        return txt, img + cache["rest"] if index == last else img
    out_txt, out_img = run(txt, img)
    if index == last:
        cache["rest"] = out_img - cache["entered"]
    return out_txt, out_img


def change(new: Tensor, old: Tensor) -> Tensor:
    """Mean absolute change, relative to the mean absolute value of the old one."""
    return (new - old).abs().mean() / old.abs().mean()
