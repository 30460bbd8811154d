"""How far every kind of evaluation is off, step by step, in few steps: `python run.py evaluations`.

On the path of the dense run, at each of its states, every kind of evaluation is compared with the dense one there, inside the
highlight and outside. What is compared is the denoised picture that the sampler gets, after guidance.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.load import DENOISERS, TURBO, encode_prompt, load_plain
from ..demo.plain_flow import plain_class
from ..demo.scenes import unseen_scenes
from ..engine.config import HighlightConfig
from ..engine.job import Job
from ..engine.merging.config import SDTMConfig
from ..engine.merging.job import MergeJob
from ..engine.merging.matcher import patches
from ..engine.method import DenseContext
from ..engine.partial.cache import ActivationCache
from ..engine.partial.token_subset import TokenGrid
from ..engine.prediction.forecast import Forecasts, prediction_type
from ..engine.region.heatmap import HeatmapAccumulator
from ..engine.region.regions import UserMasks, boxes_mask
from ..engine.region.tracking import RegionTracker
from ..engine.trace import Evaluation
from ..tools.console import say
from ..tools.server import PACK
from .cost import macs
from .demo import steps_and_cfg

AGES = (1, 2, 3)  # steps since the surroundings of a region were recorded
RATIOS = (0.3, 0.5, 0.7)  # of the tokens that are merged away
SEED = 7500


@dataclass
class Step:
    """One step of the dense run: the state, what the model answered, and what it recorded around the highlight."""

    sigma: float
    x: Tensor
    outputs: list[Tensor]
    around: Sequence[ActivationCache] = ()
    shallow: ActivationCache | None = None


Kinds = Iterator[tuple[str, Callable[[], list[Tensor]]]]  # by name, what makes the denoised pictures of both branches


class DensePath:
    """The dense run of one scene, and other evaluations at its states."""

    def __init__(self, model: Any, noise: Tensor, steps: int, cfg: float):
        self.model, self.cfg, self.sigmas = model, cfg, model.sigmas(steps)
        self.frame: tuple[int, int] = (noise.shape[-2], noise.shape[-1])
        self.parts = model.parts(self.frame, HighlightConfig.levels)
        self.run: list[Step] = []
        x = model.noised(noise, self.sigmas[0])
        tracker = RegionTracker(
            HighlightConfig(max_area=1.0), self.frame, self.parts.align, lambda boxes: (), UserMasks(), self.parts.exact
        )
        for index, (sigma, following) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
            capture = HeatmapAccumulator() if index == 1 else None
            step = Step(sigma, x, self._do(index, x, capture=capture))
            if capture is not None:
                reading = tracker.read(capture, step.outputs[0])
                self.highlight, _ = tracker.aim(reading)
                self.heatmap, self.region = reading.heatmap, tracker.regions[0]
            self.run.append(step)
            x = x + (x - self.guided(step.outputs)) / sigma * (following - sigma)
        for index, step in enumerate(self.run):
            step.around, step.shallow = self._around(), model.parts(self.frame, HighlightConfig.levels).shallow
            caches = (*step.around, *([step.shallow] if step.shallow else []))
            for cache in caches:
                cache.begin(step.sigma)
            self._do(index, step.x, record=caches)

    def _do(self, index: int, x: Tensor, sigma: float | None = None, **job: Any) -> list[Tensor]:
        evaluation = Evaluation(index, index, self.sigmas[index] if sigma is None else sigma, "dense", "", 1.0)
        return self.model.do(Job(evaluation, **job), x)

    def _around(self) -> Sequence[ActivationCache]:
        return self.parts.make_caches([self.region.outer]) if self.region.outer else ()

    def guided(self, outputs: Sequence[Tensor]) -> Tensor:
        """What the sampler gets of the two branches."""
        return outputs[1] + self.cfg * (outputs[0] - outputs[1])

    @cached_property
    def inside(self) -> Tensor:
        """Bool (H, W): the cells whose values count in a regional evaluation."""
        return boxes_mask(self.region.inner, self.frame)

    def forecast(self, index: int) -> list[Tensor]:
        """As the pack forecasts it, from the two steps before."""
        forecasts = Forecasts(prediction_type(False, axis=self.model.axis), None, self.model.axis)
        for at, step in enumerate(self.run[index - 2 : index], index - 2):
            forecasts.add_dense(at, step.x, step.outputs, step.sigma, torch.tensor(True))
        return forecasts.predict(index, self.run[index].x, self.run[index].sigma)

    def recorded(self, index: int, caches: Callable[[Step], Sequence[ActivationCache]], age: int, slope: bool) -> list:
        """New caches that know what was recorded `age` steps ago, and if `slope` one step earlier."""
        newest = index - age
        made = [caches(self.run[newest])] + ([caches(self.run[newest - 1])] if slope and newest else [])
        return [
            self._with_entries(newer, [entry for cache in reversed(own) for entry in cache.entries])
            for newer, own in ((own[0], own) for own in zip(*made, strict=True))
        ]

    @staticmethod
    def _with_entries(cache: ActivationCache, entries: list) -> ActivationCache:
        own = copy.copy(cache)
        own.entries = entries
        return own

    def kinds(self, index: int) -> Kinds:
        """Everything that could be done at a step instead of a dense evaluation."""
        now = self.run[index]
        yield "reuse", lambda: self.run[index - 1].outputs
        yield "forecast", lambda: self.forecast(index)
        if self.region.outer:
            for age, slope in [*((age, True) for age in AGES if age <= index), (1, False)]:
                name = f"regional, recorded {age} ago" + ("" if slope else ", not extrapolated")
                yield name, lambda age=age, slope=slope: self.regional(index, age, slope)
        if now.shallow is not None:
            caches = self.recorded(index, lambda step: [step.shallow] if step.shallow else [], 1, True)
            yield "shallow", lambda: self._do(index, now.x, compute=tuple(caches))
        else:
            for ratio in RATIOS:
                yield f"merged, r {ratio}", self.merged(index, ratio, attended=False)
            yield "attended exact, others merged", self.merged(index, RATIOS[-1], attended=True)
            yield "attended exact, others by the forecast's detail", self.merged(index, RATIOS[-1], attended=True, detail=True)
        yield "coarse", lambda: self.coarse(index)

    def regional(self, index: int, age: int, slope: bool) -> list[Tensor]:
        """The highlight computed, all else forecast."""
        caches = self.recorded(index, lambda step: step.around, age, slope)
        computed = self._do(index, self.run[index].x, compute=tuple(caches))
        pairs = zip(computed, self.forecast(index), strict=True)
        return [torch.where(self.inside, own, other) for own, other in pairs]

    def merged(self, index: int, ratio: float, attended: bool, detail: bool = False) -> Callable[[], list[Tensor]]:
        """What computes merged tokens, of which what sets them apart is remembered from the step before. attended: those that
        the prompt looks at stay as they are. detail: what sets them apart is taken from the forecast picture instead."""
        config = SDTMConfig(r=ratio, delta=0.0, **({"mcw": 1.0, "protect_steps": 0} if detail else {}))
        (state,) = self.model.methods(config, self.run[0].x.shape, self.sigmas)
        context = DenseContext(highlight=self.highlight, heatmap=self.heatmap) if attended else DenseContext()

        def task_at(at: int) -> MergeJob | None:
            state.after_dense(self.run[at - 1].outputs[0])
            return state.before_dense(Evaluation(at, at, self.run[at].sigma, "dense", "", 1.0), context)

        def do(at: int, task: MergeJob | None) -> list[Tensor]:
            return self._do(at, self.run[at].x, tasks=() if task is None else (task,))

        if not detail:
            do(index - 1, task_at(index - 1))  # which is exact, and recorded
        task = task_at(index)
        if not detail:
            return lambda: do(index, task)
        return lambda: [self._detailed(*pair, task) for pair in zip(do(index, task), self.forecast(index), strict=True)]

    def _detailed(self, computed: Tensor, forecast: Tensor, task: MergeJob | None) -> Tensor:
        """The mean of merged tokens as computed, and how they differ from it as forecast."""
        merge = task.images[0].merge if task is not None else None
        if merge is None:
            return computed
        grid = TokenGrid(self.frame, self.parts.align)
        both = torch.stack([patches(own[0], grid) for own in (computed, forecast)])
        mean, other = merge.unmerge(merge.merge(both))
        tokens = torch.where(merge.shared()[:, None], mean + both[1] - other, both[0])
        fold = tokens.T.unflatten(0, (computed.shape[1], grid.patch**2))
        return F.fold(fold.flatten(0, 1)[None], self.frame, grid.patch, stride=grid.patch)

    def coarse(self, index: int) -> list[Tensor]:
        """The frame at half size, at the noise level that averaging leaves, for low frequencies; the others are forecast."""
        now = self.run[index]
        small = F.avg_pool2d(now.x, 2)
        signal = 1 - now.sigma if self.model.axis.is_flow else 1.0
        scale = 1 / (signal + now.sigma / 2) if self.model.axis.is_flow else 1.0
        outputs = self._do(index, scale * small, sigma=scale * now.sigma / 2)
        pairs = zip(outputs, self.forecast(index), strict=True)
        return [other + F.interpolate(low - F.avg_pool2d(other, 2), scale_factor=2, mode="bilinear") for low, other in pairs]

    def off(self, index: int, outputs: Sequence[Tensor]) -> tuple[float, float]:
        """rms(answer - dense) / rms(dense) over the cells inside and outside the highlight."""
        true = self.guided(self.run[index].outputs)
        square, scale = (self.guided(outputs) - true).square().mean((0, 1)), true.square().mean()
        masks = (self.inside, ~self.inside)
        return tuple(float((square[mask].mean() / scale).sqrt()) if mask.any() else 0.0 for mask in masks)

    def cost(self, make: Callable[[], list[Tensor]]) -> float:
        """What a kind of evaluation takes of a dense one's multiply-accumulates."""
        return macs(make) / macs(lambda: self._do(0, self.run[0].x))


def study(kind: str, side: int, steps: int, scenes: int) -> str:
    """The table of one model, size and number of steps, as markdown."""
    network, text, _ = load_plain(kind)
    _, cfg = steps_and_cfg(kind)
    negative, found = encode_prompt(text, ""), defaultdict(lambda: defaultdict(list))
    costs: dict[str, float] = {}
    areas: list[float] = []
    for number, scene in enumerate(unseen_scenes(scenes, SEED)):
        model = plain_class(kind)(network, encode_prompt(text, scene.caption), negative)
        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED + number))
        with torch.inference_mode():
            path = DensePath(model, noise, steps, cfg)
            areas.append(float(path.inside.float().mean()))
            for index in range(2, steps):
                for name, make in path.kinds(index):
                    found[name][index].append(path.off(index, make()))
                    if name not in costs:
                        costs[name] = path.cost(make)
    heads = " | ".join(f"step {index + 1}" for index in range(2, steps))
    lines = [f"### {kind}, {side}x{side} cells, {steps} steps, CFG {cfg:g}, {scenes} scenes", "",
             f"The highlight has {statistics.fmean(areas):.0%} of the frame.", "",
             f"| kind | cost | {heads} |", "|---|---|" + "---|" * (steps - 2)]  # fmt: skip
    for name, by_step in found.items():
        cells = " | ".join(
            " / ".join(f"{100 * statistics.fmean(own):.1f}" for own in zip(*by_step[i], strict=True)) if by_step[i] else "-"
            for i in range(2, steps)
        )
        lines.append(f"| {name} | {costs[name]:.2f} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py evaluations", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*DENOISERS, *TURBO), default="mmdit turbo 8")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64], help="of the square latents")
    parser.add_argument("--steps", type=int, nargs="+", default=[8])
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for side in args.sides:
        for steps in args.steps:
            report = study(args.model, side, steps, args.scenes)
            say(report)
            (args.out / f"{args.model.replace(' ', '_')}_{side}_{steps}.md").write_text(report)
    return 0
