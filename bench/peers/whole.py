"""Where peers sit that replace whole evaluations: at the guided prediction, or at the last hidden state of each branch.

`Replacing` is what such a peer is: a new one is made for every run, asked before each evaluation whether it is skipped, and
told every value, computed or its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .common import Inputs, Steps, with_block_patches, with_unet_wrapper


@dataclass(frozen=True)
class Step:
    """One evaluation of a run, which these papers count as one step.

    index, count: which of how many. sigmas: of the schedule (count + 1,), descending to 0. x: the noisy latent, None where a
    peer works on hidden states.
    """

    index: int
    sigmas: tuple[float, ...]
    x: Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.sigmas) - 1

    @property
    def sigma(self) -> float:
        return self.sigmas[self.index]


class Replacing(Protocol):
    """A peer in one run. Values are what the model gives at the place where the peer sits."""

    def skips(self, at: Step) -> bool:
        """Whether the evaluation is not computed."""

    def forecast(self, at: Step) -> Tensor:
        """What stands for it then."""

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        """Take up what was given."""


def _sigmas(options: dict) -> tuple[float, ...]:
    return tuple(float(sigma) for sigma in options["sample_sigmas"])


def at_prediction(model: Any, name: str, make: Callable[[], Replacing]) -> Any:
    """A clone whose guided predictions, the denoised latents (B, C, H, W), go through a peer."""
    steps = Steps()

    def wrapper(executor, x, timestep, model_options, seed):
        index = steps.advance(float(timestep.flatten()[0]))
        peer = steps.cache["peer"] = steps.cache.get("peer") or make()
        at = Step(index, _sigmas(model_options["transformer_options"]), x)
        computed = not peer.skips(at)
        value = executor(x, timestep, model_options, seed) if computed else peer.forecast(at)
        peer.observe(at, value, computed)
        return value

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, name, wrapper)
    return clone


def at_hidden(model: Any, name: str, make: Callable[[], Replacing]) -> Any:
    """A clone in which what enters the head of a UNet (B, C, H, W) or of an SD3 (B, tokens, C) goes through a peer; the head
    runs at every step, with its own modulation. Branches that share a call are one value."""
    if hasattr(model.get_model_object("diffusion_model"), "joint_blocks"):
        return _at_hidden_tokens(model, name, make)

    def call(original, inputs: Inputs, index: int, cache: dict) -> Tensor:
        peer = cache["peer"] = cache.get("peer") or make()
        at = Step(index, _sigmas(inputs.options))
        if not (computed := not peer.skips(at)):
            value = peer.forecast(at)
        else:
            emb = inputs.embedding()
            skips = inputs.encode(emb)
            value = inputs.decode(inputs.block("middle", 0, skips[-1], emb), skips, emb, head=False)
        peer.observe(at, value, computed)
        return inputs.unet.out(value.type(inputs.x.dtype))

    return with_unet_wrapper(model, name, call)


def _at_hidden_tokens(model: Any, name: str, make: Callable[[], Replacing]) -> Any:
    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict) -> tuple[Tensor, Tensor]:
        if index == 0:
            cache["peer"] = cache.get("peer") or make()
            cache["at"] = Step(run.step, _sigmas(run.args["transformer_options"]))
            cache["skipped"] = cache["peer"].skips(cache["at"])
        peer, at, skipped = cache["peer"], cache["at"], cache["skipped"]
        if skipped and index < last:
            return txt, img
        txt, img = (txt, peer.forecast(at)) if skipped else run(txt, img)
        if index == last:
            peer.observe(at, img, not skipped)
        return txt, img

    return with_block_patches(model, name, call)
