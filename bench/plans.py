"""Whether plans are ranked by the error that they are expected to have, on the demo models: `python run.py plans`.

Single gaps, gaps one after another and plans drawn at random are sampled as they are; what is measured of a plan is the mean
square over all pictures, in which the worst ones count most. Results are appended to a CSV file, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from ..demo.scenes import unseen_scenes
from ..engine.config import HighlightConfig
from ..engine.trace import Trace
from ..engine.tuning import LONGEST_GAP, PATH_WARMUP
from ..tools.comfy import Sampling, boot
from ..tools.console import say
from ..tools.server import PACK
from .compare import Table
from .gaps import forecasting
from .paths import SCHEDULERS
from .promises import give_profile, snr
from .prompts import OBJECTS
from .stochastic import Stochastic

PAIRS = (((1, 3), (3, 6)), ((2, 4), (4, 7)), ((1, 3), (3, 5)), ((5, 8), (8, 11)), ((10, 13), (13, 17)))  # of 20 steps
DRAWN = 2  # plans for every number of dense evaluations


@dataclass(frozen=True)
class Result:
    """One picture of a plan, D for a dense evaluation and a dot for a forecast. snr: of its latent to the dense one; expected:
    of the plan; both in decibels."""

    model: str
    sampler: str
    steps: int
    plan: str
    prompt: int
    snr: float
    expected: float


def with_gaps(steps: int, *gaps: tuple[int, int]) -> str:
    """A plan that is dense but between the steps of these pairs."""
    forecast = {k for a, b in gaps for k in range(a + 1, b)}
    return "".join("." if k in forecast else "D" for k in range(steps))


def drawn(steps: int, seed: int) -> list[str]:
    """Single gaps, pairs of gaps, and plans drawn at random, as letters."""
    chance = random.Random(seed)
    plans = [with_gaps(steps, (a, a + length)) for length in (2, 3, 4) for a in range(1, steps - length + 1, 3)]
    plans += [with_gaps(steps, *pair) for pair in PAIRS if pair[1][1] < steps]
    for count in range(steps // 3, steps * 4 // 5 + 1):
        for _ in range(DRAWN):
            dense = {*range(PATH_WARMUP), *chance.sample(range(PATH_WARMUP, steps), count - PATH_WARMUP)}
            plans.append("".join("D" if k in dense else "." for k in range(steps)))
    return [own for own in dict.fromkeys(plans) if "." * LONGEST_GAP not in own]


class Plans:
    """Samples scenes in one batch on one of the demo models."""

    def __init__(self, kind: str, count: int, seed: int, out: Path):
        self.kind = kind
        self.bench = Stochastic(kind, unseen_scenes(count, seed, OBJECTS), seed, out)
        self.results = Table(out / "plans.csv", Result)

    def measure(self, sampler: str, steps: int, plans: list[str]) -> None:
        """Every one of these plans that was not measured yet."""
        key, last = (self.kind, sampler, steps), len(self.bench.scenes) - 1
        left = [own for own in plans if not self.results.has(*key, own, last)]
        if not left:
            return
        sampling = Sampling(sampler, steps, 3.0, SCHEDULERS[self.kind])
        dense = self.bench.latents(self.bench.subject.model, sampling)
        for own in left:
            near, expected = self.sampled(sampling, own, dense)
            for index, value in enumerate(near):
                self.results.add(Result(*key, own, index, value, expected))
            say(f"{' '.join(map(str, key))} {own}: {mean_square(near):.1f} dB, expected {expected:.1f}")

    def sampled(self, sampling: Sampling, letters: str, dense: torch.Tensor) -> tuple[list[float], float]:
        """What a plan's pictures are at, and what it was expected to be at."""
        from ..host.attach import attach

        trace = Trace()
        with forecasting({k for k, letter in enumerate(letters) if letter == "."}):
            model = attach(self.bench.subject.model, HighlightConfig(correct="never", shallow="never"), trace)
            latents = self.bench.latents(model, sampling)
        run = trace.last
        assert run is not None and run.letters == letters and run.expected_error is not None, run
        return snr(dense, latents), run.expected_error


def mean_square(near: list[float]) -> float:
    """The signal-to-noise ratio, in decibels, of the mean of squares of pictures with these."""
    return float(-10 * np.log10(np.mean(10 ** (-np.array(near) / 10))))


def report(path: Path) -> list[str]:
    """A row for every way of sampling: how plans rank, and how far expectations are off."""
    groups: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    with path.open() as file:
        for row in csv.DictReader(file):
            groups[row["model"], row["sampler"], row["steps"]][row["plan"]].append(row)
    lines = [
        "| model, sampler, steps | plans | Spearman's correlation | expected beyond measured, dB: mean, spread | one in ten |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for way, plans in groups.items():
        expected = np.array([float(rows[0]["expected"]) for rows in plans.values()])
        measured = np.array([mean_square([float(row["snr"]) for row in rows]) for rows in plans.values()])
        off, rank = expected - measured, spearmanr(expected, measured).statistic
        low, high = np.percentile(off, [10, 90])
        lines.append(
            f"| {', '.join(way)} | {len(plans)} | {rank:.2f} | {off.mean():+.1f}, {off.std():.1f} | {low:+.1f}, {high:+.1f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py plans", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SCHEDULERS), default="unet")
    parser.add_argument("--samplers", default="euler,dpmpp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=5757, help="of the scenes and of the noise")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "plans")
    args = parser.parse_args()
    boot()
    with torch.no_grad():
        bench = Plans(args.model, args.scenes, args.seed, args.out)
        give_profile(bench.bench.subject, args.model)
        for sampler in args.samplers.split(","):
            bench.measure(sampler, args.steps, drawn(args.steps, seed=7))
    text = "\n".join(report(args.out / "plans.csv"))
    (args.out / "plans.md").write_text(text + "\n")
    say(text)
    return 0
