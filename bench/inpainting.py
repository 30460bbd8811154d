"""Masked work on the demo models: `python run.py inpainting`.

Objects are inpainted into scenes whose captions training never saw, behind a noise mask of 5 to 10% of the frame: densely,
with each preset, and with each preset where no mask is known to it. The PSNR is that of the picture inside the mask to the
dense one, the cost that of all multiply-accumulates of the run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..demo.scenes import Scene, render, unseen_scenes
from ..demo.vae import PIXELS
from ..engine.config import PRESETS, HighlightConfig
from ..engine.trace import Trace
from ..tools.comfy import Subject, boot
from ..tools.console import say
from .cost import CPU_ATTENTION
from .demo import SCHEDULERS, steps_and_cfg
from .fidelity import psnr

MARGIN = 6  # cells around the mask that are decoded with it
MOST = 0.155  # of the frame: half the side of the largest mask, just under 10% of the area


@dataclass(frozen=True)
class Task:
    """A scene without its first object: latent (1, 4, H, W), and the noise mask (1, 1, H, W) where the object belongs."""

    caption: str
    latent: Tensor
    mask: Tensor
    seed: int

    @classmethod
    def of(cls, scene: Scene, vae: Any, size: int, seed: int) -> Task:
        thing, side = scene.things[0], size * PIXELS
        picture = torch.from_numpy(render(replace(scene, things=scene.things[1:]), side))[None]
        half, mask = min(1.05 * thing.radius, MOST), torch.zeros(1, 1, size, size)
        (top, bottom), (left, right) = (
            (max(0, round((at - half) * size)), min(size, round((at + half) * size))) for at in thing.centre
        )
        mask[..., top:bottom, left:right] = 1
        return cls(scene.caption, vae.encode(picture), mask, seed)

    def near(self, whole: Tensor) -> Tensor:
        """The mask's surroundings of a tensor (..., H, W)."""
        rows, columns = (self.mask[0, 0].any(axis).nonzero()[:, 0] for axis in (1, 0))
        top, left = (max(0, int(own[0]) - MARGIN) for own in (rows, columns))
        return whole[..., top : int(rows[-1]) + MARGIN + 1, left : int(columns[-1]) + MARGIN + 1]

    @property
    def inside(self) -> np.ndarray:
        """Bool, the pixels of the surroundings that are inside the mask."""
        return np.kron(self.near(self.mask)[0, 0].numpy(), np.ones((PIXELS, PIXELS))) > 0


class Inpainting:
    """Inpaints on one of the demo models at one size of the latent."""

    def __init__(self, kind: str, size: int, count: int, seed: int):
        self.kind, self.subject = kind, Subject.demo(kind)
        _, self.cfg = steps_and_cfg(kind)
        scenes = unseen_scenes(count, seed, (1, 2))
        self.tasks = [Task.of(scene, self.subject.vae, size, seed + i) for i, scene in enumerate(scenes)]

    def sampled(self, model: Any, task: Task, steps: int) -> tuple[np.ndarray, int]:
        """The picture around the mask, and the floating point operations it took."""
        import comfy.sample

        positive, negative = self.subject.cond(task.caption), self.subject.cond("")
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            latent = comfy.sample.sample(
                model, comfy.sample.prepare_noise(task.latent, task.seed), steps, self.cfg, "euler", SCHEDULERS[self.kind],
                positive, negative, task.latent, disable_pbar=True, seed=task.seed, noise_mask=task.mask,
            )  # fmt: skip
        return self.subject.decode(task.near(latent)), counter.get_total_flops()

    def compare(self, steps: int, presets: list[str]) -> Iterator[str]:
        """A row of the table for every preset, with and without its mask."""
        from ..host.attach import attach

        dense = [self.sampled(self.subject.model, task, steps) for task in self.tasks]
        for preset in presets:
            for known in (True, False):
                near, ratios, trace = [], [], Trace()
                for task, (picture, cost) in zip(self.tasks, dense, strict=True):
                    with nullified(not known):
                        model = attach(self.subject.model, HighlightConfig(**PRESETS[preset]), trace)
                        own, own_cost = self.sampled(model, task, steps)
                    near.append(psnr(picture, own, task.inside))
                    ratios.append(own_cost / cost)
                yield (
                    f"| {self.kind} | {steps} | {preset}{'' if known else ', mask not known'} "
                    f"| {1 / statistics.fmean(ratios):.2f} / {1 / max(ratios):.2f} "
                    f"| {statistics.fmean(near):.1f} / {min(near):.1f} | `{trace.runs[-1].letters}` |"
                )


@contextmanager
def nullified(hidden: bool) -> Iterator[None]:
    """While this holds, noise masks are not taken up, if they are to be `hidden`."""
    from ..host import attach

    own = attach.changing
    try:
        if hidden:
            attach.changing = lambda *args: None
        yield
    finally:
        attach.changing = own


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py inpainting", description="Masked work on the demo models.")
    parser.add_argument("--model", choices=list(SCHEDULERS), default="mmdit")
    parser.add_argument("--size", type=int, default=64, help="of the latent")
    parser.add_argument("--steps", default="8,20")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2121, help="of the scenes and of the noise")
    args = parser.parse_args()
    boot()
    say("times cheaper, mean / worst; PSNR inside the mask to the dense picture, mean / worst\n")
    say(f"| {args.size}x{args.size} | steps | preset | cheaper | dB | last plan |\n|---|---|---|---|---|---|")
    with torch.no_grad():
        bench = Inpainting(args.model, args.size, args.scenes, args.seed)
        for steps in (int(n) for n in args.steps.split(",")):
            for line in bench.compare(steps, args.presets.split(",")):
                say(line)
    return 0
