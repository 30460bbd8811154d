"""Whether presets keep what they promise, on the demo models: `python run.py promises`.

A preset promises the signal-to-noise ratio that its result is expected to have to the dense run. Scenes whose captions training
never saw, and whose seeds nothing was tuned on, are sampled densely and with every preset. Results are appended to a CSV file
as they come, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..demo.scenes import unseen_scenes
from ..engine.config import PRESETS, HighlightConfig
from ..engine.trace import Trace
from ..tools.comfy import Sampling, Subject, boot
from ..tools.console import say
from ..tools.server import PACK
from .compare import Table, log_profile
from .fidelity import BEST, SPREAD, psnr, spread
from .paths import SCHEDULERS, Costs
from .prompts import OBJECTS, profiled
from .stochastic import Stochastic

WITHIN = 3.0  # decibels below the promise that a single picture may be


@dataclass(frozen=True)
class Result:
    """One picture beside the dense one. snr: of the latents, in decibels. psnr: of the pictures. promise: the preset's.
    expected: of the plan, empty where not known. cost: in dense evaluations, by MACs."""

    model: str
    sampler: str
    steps: int
    preset: str
    prompt: int
    snr: float
    psnr: float
    promise: float
    expected: float | None
    cost: float
    kinds: str


def snr(reference: Tensor, other: Tensor) -> list[float]:
    """Signal-to-noise ratios in decibels of latents (B, C, H, W) to others."""
    signal, error = (v.double().square().mean((1, 2, 3)) for v in (reference, other - reference))
    return (10 * (signal / error.clamp(min=1e-30)).log10()).clamp(max=BEST).tolist()


class Promises:
    """Samples scenes in one batch on one of the demo models."""

    def __init__(self, kind: str, count: int, seed: int, out: Path):
        self.kind, self.costs = kind, Costs(kind)
        self.bench = Stochastic(kind, unseen_scenes(count, seed, OBJECTS), seed, out)
        self.results = Table(out / "promises.csv", Result)

    def judge(self, sampler: str, steps: int) -> None:
        """Every preset of a way of sampling."""
        from ..host.attach import attach

        key, last = (self.kind, sampler, steps), len(self.bench.scenes) - 1
        left = [preset for preset in PRESETS if not self.results.has(*key, preset, last)]
        if not left:
            return
        sampling, model = Sampling(sampler, steps, 3.0, SCHEDULERS[self.kind]), self.bench.subject.model
        dense = self.bench.latents(model, sampling)
        reference = self.bench.decoded(dense)
        for preset in left:
            trace = Trace()
            latents = self.bench.latents(attach(model, HighlightConfig(**PRESETS[preset]), trace), sampling)
            near = snr(dense, latents), [psnr(a, b) for a, b in zip(reference, self.bench.decoded(latents), strict=True)]
            run, cost, promise = trace.last, self.costs.of(trace.last), PRESETS[preset]["promise"]
            for index, own in enumerate(zip(*near, strict=True)):
                self.results.add(Result(*key, preset, index, *own, promise, run.expected_error, cost, run.letters))
            say(f"{' '.join(map(str, key))} {preset}: {', '.join(map(spread, near))} {run.letters}")


def give_profile(subject: Subject, kind: str) -> None:
    """Make the profile of the model that nothing is tuned to, where it has none yet; the others have the bundled ones."""
    if kind == "second":
        log_profile(subject, Sampling("euler", 30, 3.0, SCHEDULERS[kind]), profiled(demo=True))


def report(path: Path) -> list[str]:
    """A row for every way of sampling and preset."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            groups[row["model"], row["sampler"], int(row["steps"]), row["preset"], float(row["promise"])].append(row)
    lines = [
        "| model, sampler, steps | preset | times cheaper | plan | promised, expected | latents | within | pictures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, sampler, steps, preset, promise), rows in groups.items():
        near, pictures = ([float(row[name]) for row in rows] for name in ("snr", "psnr"))
        kept = np.mean(np.array(near) >= promise - WITHIN)
        expected = f"{float(rows[0]['expected']):.1f}" if rows[0]["expected"] else "-"
        lines.append(
            f"| {model}, {sampler}, {steps} | {preset} | {steps / float(rows[0]['cost']):.2f} | `{rows[0]['kinds']}` "
            f"| {promise:g}, {expected} | {spread(near)} | {kept:.0%} | {spread(pictures)} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py promises", description="Whether presets keep what they promise.")
    parser.add_argument("--model", choices=list(SCHEDULERS), default="unet")
    parser.add_argument("--samplers", default="euler,dpmpp_2m")
    parser.add_argument("--steps", default="12,20,30,50")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=3636, help="of the scenes and of the noise")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "promises")
    args = parser.parse_args()
    boot()
    with torch.no_grad():
        bench = Promises(args.model, args.scenes, args.seed, args.out)
        give_profile(bench.bench.subject, args.model)
        for steps in (int(n) for n in args.steps.split(",")):
            for sampler in args.samplers.split(","):
                bench.judge(sampler, steps)
    text = f"Decibels to the dense run: {SPREAD}. Within: at most {WITHIN:g} below the promise.\n\n"
    text += "\n".join(report(args.out / "promises.csv"))
    (args.out / "promises.md").write_text(text + "\n")
    say(text)
    return 0
