"""What each ingredient of a partial evaluation is worth: `python run.py ablate`.

Along dense runs of the demo model, in plain torch: wherever the plan has a partial evaluation, the highlight is computed
with one ingredient left out or stale, and compared with the dense evaluation at the very same point. Heatmaps are
compared with the true objects on the way.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.diffusion import normal_sigmas
from ..demo.load import encode_prompt, load_plain
from ..demo.plain import STREAMS, PlainModel, listening
from ..demo.unet import UNet
from ..engine.config import HighlightConfig
from ..engine.partial.unet_blocks import computing_window, depth_and_alignment, recording_windows
from ..engine.partial.unet_window import Window
from ..engine.placement.context import Context
from ..engine.placement.plan import make_plan
from ..engine.prediction.forecast import Forecast
from ..engine.region.heatmap import HeatmapAccumulator
from ..engine.region.regions import Region, find_region
from ..engine.region.tracking import refined_by
from ..tools.console import say
from ..tools.server import PACK
from .cost import CostModel
from .prompts import demo as demo_prompts

STEPS, CFG, FRAME = 30, 3.0, (32, 32)
HISTORY = 2  # recordings a partial evaluation needs


@dataclass(frozen=True)
class Variant:
    """A way to compute the highlight. off: ingredients left out; stale: those not forecast but taken as recorded."""

    name: str
    off: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    halo: int = HighlightConfig.halo
    levels: int = HighlightConfig.levels


ALL = frozenset({"rings", "tokens", "statistics", "deep"})
VARIANTS = (
    Variant("as it is"),
    Variant("no rings around convolutions", off=frozenset({"rings"})),
    Variant("no outside tokens", off=frozenset({"tokens"})),
    Variant("the crop's own statistics", off=frozenset({"statistics"})),
    Variant("bare crop", off=frozenset({"rings", "tokens", "statistics"}), levels=0),
    Variant("stale rings", stale=frozenset({"rings"})),
    Variant("stale tokens", stale=frozenset({"tokens"})),
    Variant("stale statistics", stale=frozenset({"statistics"})),
    Variant("stale deep levels", stale=frozenset({"deep"})),
    Variant("all stale", stale=ALL),
    Variant("halo 0", halo=0),
    Variant("halo 4", halo=4),
    Variant("finest level only", levels=1),
    Variant("three levels", levels=3),
    Variant("all levels", levels=0),
)


class AblatedWindow(Window):
    """A window that goes without something."""

    variant = VARIANTS[0]

    def _ingredient(self, module: nn.Module) -> str:
        if isinstance(module, nn.GroupNorm):
            return "statistics"
        if isinstance(module, nn.Conv2d):
            return "rings"
        return "tokens" if hasattr(module, "to_q") else "deep"

    def get(self, module, keys, sigma: float) -> Tensor:
        if self._ingredient(module) in self.variant.stale:
            sigma = self.entries[-1].sigma
        return super().get(module, keys, sigma)

    def conv(self, conv, x: Tensor, keys, sigma: float) -> Tensor:
        return F.pad(x, (1, 1, 1, 1)) if "rings" in self.variant.off else super().conv(conv, x, keys, sigma)

    def norm(self, norm, x: Tensor, keys, sigma: float) -> Tensor:
        if "statistics" in self.variant.off:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return super().norm(norm, x, keys, sigma)

    def attention(self, attention, tokens: Tensor, keys, sigma: float) -> Tensor:
        return tokens if "tokens" in self.variant.off else super().attention(attention, tokens, keys, sigma)


@dataclass
class Tally:
    """Errors of one variant inside the highlight, as shares of the forecast's at the same points."""

    shares: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def _error(values: list[Tensor], truth: list[Tensor], region: Region) -> float:
    """Distance to the truth inside the highlight, both streams together."""
    total = 0.0
    for value, true in zip(values, truth, strict=True):
        for y0, y1, x0, x1 in region.inner:
            total += float((value - true)[..., y0:y1, x0:x1].square().sum())
    return total**0.5


class DensePath:
    """One dense run with every variant's windows beside it."""

    def __init__(self, unet: UNet, positive: Tensor, negative: Tensor, seed: int):
        self.unet, self.model = unet, PlainModel(unet, positive, negative)
        self.sigmas = normal_sigmas(STEPS).tolist()
        noise = torch.randn(1, 4, *FRAME, generator=torch.Generator().manual_seed(seed))
        self.x = noise * (1 + self.sigmas[0] ** 2) ** 0.5
        self.forecasts = [Forecast("eps") for _ in STREAMS]
        self.regions: dict[Variant, Region] = {}
        self.windows: dict[Variant, list[AblatedWindow]] = {}

    def _place(self, heatmap: Tensor) -> None:
        for variant in VARIANTS:
            depth, align = depth_and_alignment(self.unet, FRAME, variant.levels)
            _, region = find_region(heatmap, FRAME, align, HighlightConfig(halo=variant.halo))
            self.regions[variant] = region
            windows = [AblatedWindow(box, FRAME, depth=depth) for box in region.outer]
            for window in windows:
                window.variant = variant
            self.windows[variant] = windows

    def _dense(self, sigma: float) -> list[Tensor]:
        accumulator = HeatmapAccumulator()
        with ExitStack() as stack:
            if not self.windows:
                stack.enter_context(listening(self.unet, accumulator, FRAME))
            for windows in self.windows.values():
                for window in windows:
                    window.begin(sigma)
                if windows:
                    stack.enter_context(recording_windows(self.unet, windows, STREAMS))
            outputs = self.model(self.x, sigma)
        if accumulator.maps and self.forecasts[0].frame.predictor.points:  # from the second step on
            self._place(refined_by(accumulator.heatmap(), outputs[0]))
        return outputs

    def _compute(self, variant: Variant, sigma: float, guesses: list[Tensor]) -> list[Tensor]:
        full = [guess.clone() for guess in guesses]
        for window in self.windows[variant]:
            with computing_window(self.unet, window, STREAMS, sigma):
                parts = self.model(window.crop(self.x), sigma)
            for whole, part in zip(full, parts, strict=True):
                window.paste(whole, part)
        return full

    def points(self) -> Iterator[dict[Variant, tuple[float, float]]]:
        """At each planned partial evaluation: every variant's error over the forecast's, and its area."""
        plan = make_plan(Context.of(self.sigmas[:-1], HighlightConfig()))
        with torch.inference_mode():
            for step, (sigma, following) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
                if plan[step].kind == "dense":
                    outputs = self._dense(sigma)
                    for forecast, denoised in zip(self.forecasts, outputs, strict=True):
                        forecast.add_dense(step, self.x, denoised, sigma)
                else:
                    outputs = self.model(self.x, sigma)
                    if plan[step].kind == "partial" and all(self.windows.values()) and self._recorded():
                        guesses = [forecast.predict(step, self.x, sigma) for forecast in self.forecasts]
                        yield {v: self._measured(v, sigma, guesses, outputs) for v in VARIANTS}
                denoised = outputs[1] + CFG * (outputs[0] - outputs[1])
                self.x = self.x + (self.x - denoised) / sigma * (following - sigma)

    def _recorded(self) -> bool:
        return all(len(window.entries) == HISTORY for windows in self.windows.values() for window in windows)

    def _measured(self, variant: Variant, sigma: float, guesses: list[Tensor], truth: list[Tensor]) -> tuple[float, float]:
        region = self.regions[VARIANTS[0]]
        computed = _error(self._compute(variant, sigma, guesses), truth, region)
        return computed / max(_error(guesses, truth, region), 1e-12), self.regions[variant].area


def table(prompts: int) -> list[str]:
    """The worth of each ingredient, as markdown."""
    unet, text, _ = load_plain()
    negative = encode_prompt(text, "")
    tallies = {variant: Tally() for variant in VARIANTS}
    costs = CostModel(PlainModel(unet, negative, negative), (1, 4, *FRAME))
    asked = [p for p in demo_prompts() if p.kind in ("one object", "several objects")][:prompts]
    for seed, prompt in enumerate(asked):
        path = DensePath(unet, encode_prompt(text, prompt.text), negative, seed)
        for measured in path.points():
            for variant, (share, area) in measured.items():
                tallies[variant].shares.append(share)
                tallies[variant].areas.append(area)
                cost = sum(costs.window(w.box, w.depth) for w in path.windows[variant])
                tallies[variant].costs.append(cost / costs.full)
    lines = [
        f"Error inside the highlight of {len(tallies[VARIANTS[0]].shares)} partial evaluations of {len(asked)} prompts, as a "
        "share of the forecast's error at the same point (1 is no better than not computing).", "",
        "| the highlight computed | median | mean | nearer than the forecast, % | area | MACs / dense |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for variant, tally in tallies.items():
        if tally.shares:
            nearer = 100 * sum(share < 1 for share in tally.shares) / len(tally.shares)
            middle = statistics.median(tally.shares)
            mean, area, cost = map(statistics.fmean, (tally.shares, tally.areas, tally.costs))
            lines.append(f"| {variant.name} | {middle:.2f} | {mean:.2f} | {nearer:.0f} | {area:.2f} | {cost:.2f} |")
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py ablate", description="What each ingredient is worth, on the demo model.")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "bench")
    args = parser.parse_args()
    report = "\n".join(["### Ingredients of a partial evaluation", "", *table(args.prompts)])
    say(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablation.md").write_text(report)
    return 0
