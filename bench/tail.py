"""What leads the worst pictures astray, and whether anything tells while sampling: `python run.py tail`.

Scenes are sampled by a path that is `speed` times cheaper, by Euler's method in plain torch. Then each gap of its plan is
forecast alone, all else being dense, which says what that gap costs each picture; and at the end of each gap the error of the
forecast is measured, which is what a run could plan anew by.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..demo.load import DENOISERS
from ..demo.vae import picture_of
from ..engine.placement.path import cheapest, dense_steps
from ..engine.prediction.forecast import Forecast
from ..engine.tuning import PATH_WARMUP
from ..tools.console import say
from ..tools.server import PACK
from . import worst
from .fidelity import spread
from .gaps import Bench

SEED = 4747  # of scenes and noise, that nothing was tuned on
POOLED = 4  # latent cells a side, over whose means a forecast's error has its peak


@dataclass(frozen=True)
class Gap:
    """A gap of the plan, from one dense step to the next. off: what it costs each picture where it alone is forecast, mean
    squares (scenes,). probe, peak: mean square of the forecast's error at its end, of the frame and of its worst part; None
    where the run ends in the gap."""

    start: int
    end: int
    off: np.ndarray
    probe: np.ndarray | None
    peak: np.ndarray | None

    @property
    def forecast(self) -> range:
        return range(self.start + 1, self.end)


class Tail:
    """One plan on scenes in one batch."""

    def __init__(self, bench: Bench, speed: float):
        self.bench, errors = bench, bench.errors
        paths = cheapest(errors.costs, PATH_WARMUP - 1, bench.steps)
        count = dense_steps(bench.steps, speed) - PATH_WARMUP
        self.dense = (*range(PATH_WARMUP), *next(own for own in paths.dense if len(own) >= count))
        self.forecast = [i for i in range(bench.steps) if i not in self.dense]
        self.latents, probes = self._probed()
        self.off = bench.off(self.latents)
        ends = [gap for gap in pairwise((*self.dense, bench.steps)) if gap[1] - gap[0] > 1]
        self.gaps = [Gap(a, b, bench.off(bench.latents(range(a + 1, b))), *probes.get(b, (None, None))) for a, b in ends]

    def _probed(self) -> tuple[Tensor, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """What comes out, and by step, how far off the forecasts of what the sampler is given were at dense evaluations."""
        sigmas, lost = self.bench.errors.sigmas, {}
        taken = Forecast.add_dense

        def add_dense(branch: Forecast, index: int, x: Tensor, denoised: Tensor, sigma: float, boxes=()) -> Tensor:
            if branch.ready:
                step = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - sigma))
                lost.setdefault(step, []).append(branch.predicted(x, denoised, sigma) - branch.frame.predictor.predict(sigma))
            return taken(branch, index, x, denoised, sigma, boxes)

        with mock.patch.object(Forecast, "add_dense", add_dense):
            latents = self.bench.latents(self.forecast)
        cfg, probes = self.bench.cfg, {}
        for step, (positive, negative) in lost.items():
            off = (negative + cfg * (positive - negative)).square().mean(1, keepdim=True)
            peak = torch.nn.functional.avg_pool2d(off, POOLED).amax((1, 2, 3))
            probes[step] = (off.mean((1, 2, 3)).double().numpy(), peak.double().numpy())
        return latents, probes

    def decibels(self, off: np.ndarray | float) -> np.ndarray:
        return 10 * np.log10(self.bench.errors.scale / np.maximum(off, 1e-30))

    def rows(self) -> Iterator[str]:
        """A row for every gap: what it costs by itself, and how well its probe ranks the pictures by what they end at."""
        yield "| gap | sigma | expected | alone: mean, worst | of the worst picture | probe and result | its peak and result |"
        yield "|---|---|---|---|---|---|---|"
        last = int(self.off.argmax())
        for gap in self.gaps:
            before = max(step for step in self.dense if step < gap.start)
            expected = self.bench.errors.costs[gap.start, gap.start - before - 1, gap.end - gap.start - 1]
            ranks = ["-" if own is None else f"{spearmanr(own, self.off).statistic:.2f}" for own in (gap.probe, gap.peak)]
            figures = [*self.decibels(np.array([expected, gap.off.mean(), gap.off.max(), gap.off[last]]))]
            told = f"{figures[0]:.1f} | {figures[1]:.1f}, {figures[2]:.1f} | {figures[3]:.1f}"
            yield f"| {gap.start} to {gap.end} | {self.bench.errors.sigmas[gap.start]:.2f} | {told} | {' | '.join(ranks)} |"

    def worst(self, count: int) -> Iterator[tuple[str, list[worst.Picture]]]:
        """The worst pictures: a row of text and one of pictures each, with the gap that costs it most, and without that."""

        @cache  # most of them have the same one
        def dense_in(forecast: range) -> Tensor:
            return self.bench.latents([i for i in self.forecast if i not in forecast])

        for index in self.off.argsort()[::-1][:count]:
            gap = max(self.gaps, key=lambda own: own.off[index])
            mended = dense_in(gap.forecast)
            own, alone, left = (
                float(self.decibels(off)) for off in (self.off[index], gap.off[index], self.bench.off(mended)[index])
            )
            rank = "-" if gap.probe is None else f"{int((gap.probe > gap.probe[index]).sum()) + 1} of {len(gap.probe)}"
            caption = self.bench.scenes[index].caption
            pictures = [picture_of(self.bench.vae, latents[index : index + 1]).numpy() for latents in (
                self.bench.dense, self.latents, mended)]  # fmt: skip
            names = ("dense", f"path, {own:.1f} dB", f"{gap.start} to {gap.end} dense, {left:.1f} dB")
            row = f"| {caption} | {own:.1f} | {gap.start} to {gap.end} | {alone:.1f} | {left:.1f} | {rank} |"
            yield row, list(zip(pictures, names, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py tail", description="What leads the worst pictures astray.")
    parser.add_argument("--model", choices=list(DENOISERS), default="mmdit")
    parser.add_argument("--side", type=int, default=32, help="of the square latents")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--speed", type=float, default=3.0)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--worst", type=int, default=4, help="how many pictures are looked at")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "tail")
    args = parser.parse_args()
    with torch.inference_mode():
        tail = Tail(Bench(args.model, args.side, args.steps, args.scenes, args.seed), args.speed)
        kinds = "".join("D" if i in tail.dense else "." for i in range(args.steps))
        expected = tail.bench.errors.of(tail.dense)
        head = ["| picture | dB | worst gap | alone | without it | its probe's rank |", "|---|---|---|---|---|---|"]
        lines = [f"`{kinds}`: {spread(tail.decibels(tail.off))}, expected {expected:.1f}", "", *tail.rows(), "", *head]
        texts, pictures = zip(*tail.worst(args.worst), strict=True)
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*lines, *texts])
    (args.out / f"{args.model}.md").write_text(text + "\n")
    worst.draw(pictures, args.out / f"{args.model}-tail.jpg")
    say(text)
    return 0
