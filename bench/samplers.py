"""Better samplers at equal evaluations: `python run.py samplers`.

A sampler that needs fewer steps is the plain alternative to skipping steps of another. Both are judged by the distance of
their pictures to the limit of the path, which the same noise leads to in very many steps: dense runs of as many steps as
evaluations are paid for, under every sampler and scheduler, and Highlight Diffusion at that cost in two and in three times as
many steps. Results are appended to a CSV file as they come.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..demo.scenes import unseen_scenes
from ..engine.config import HighlightConfig
from ..engine.trace import Trace
from ..tools.comfy import Sampling, boot
from ..tools.console import say
from ..tools.server import PACK
from .compare import Table
from .fidelity import psnr, spread
from .paths import SCHEDULERS
from .prompts import JUDGED, OBJECTS
from .stochastic import Stochastic

SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "deis", "ipndm", "res_multistep")
TIMES = (2, 3)  # as many steps as are paid for, where ours skips the others
LIMIT = "dpmpp_2m"  # the sampler of the limit, whose error falls with the square of the step


@dataclass(frozen=True)
class Result:
    """One picture beside the limit of its path. method: dense or ours. paid: evaluations that were computed, in so many
    steps."""

    model: str
    sampler: str
    scheduler: str
    paid: int
    method: str
    steps: int
    prompt: int
    psnr: float
    kinds: str


class Samplers:
    """Samples scenes in one batch on one of the demo models."""

    def __init__(self, kind: str, count: int, limit: int, out: Path):
        self.kind, self.count, self.usual = kind, count, SCHEDULERS[kind]
        self.bench = Stochastic(kind, unseen_scenes(count, JUDGED, OBJECTS), JUDGED, out)
        self.limit = self.bench.dense(Sampling(LIMIT, limit, 3.0, self.usual))
        self.results = Table(out / "samplers.csv", Result)

    def of(self, sampler: str, scheduler: str, paid: int) -> None:
        """The dense run of so many steps, and ours at its cost in more."""
        self._take(sampler, scheduler, paid, "dense", paid, HighlightConfig(enabled=False))
        for times in TIMES if scheduler == self.usual else ():
            self._take(sampler, scheduler, paid, "ours", times * paid, HighlightConfig(speed=float(times)))

    def _take(self, sampler: str, scheduler: str, paid: int, method: str, steps: int, config: HighlightConfig) -> None:
        from ..host.attach import attach

        key = (self.kind, sampler, scheduler, paid, method, steps)
        if self.results.has(*key, self.count - 1):
            return
        trace = Trace()
        images = self.bench.pictures(attach(self.bench.subject.model, config, trace), Sampling(sampler, steps, 3.0, scheduler))
        near = [psnr(a, b) for a, b in zip(self.limit, images, strict=True)]
        for index, own in enumerate(near):
            self.results.add(Result(*key, index, own, trace.last.letters))
        say(" ".join(map(str, key)) + f": {np.mean(near):.1f} / {min(near):.1f}")


def report(path: Path) -> list[str]:
    """A table a model: one row a sampler and scheduler, one column a number of evaluations."""
    groups: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))  # model, sampler and way, paid
    with path.open() as file:
        for row in csv.DictReader(file):
            steps, paid = int(row["steps"]), int(row["paid"])
            way = "dense" if row["method"] == "dense" else f"ours, {steps // paid} times as many steps"
            groups[row["model"]][row["sampler"], f"{row['scheduler']}, {way}"][paid].append(float(row["psnr"]))
    lines = []
    for model, rows in groups.items():
        paid = sorted({n for own in rows.values() for n in own})
        heads = " | ".join(f"{n} evaluations" for n in paid)
        lines += [f"## Demo {model}", "", f"| sampler | scheduler and way | {heads} |", "|---" * (len(paid) + 2) + "|"]
        for (sampler, way), own in rows.items():
            lines.append(f"| {sampler} | {way} | " + " | ".join(_cell(own.get(n)) for n in paid) + " |")
        lines.append("")
    return lines


def _cell(near: list[float] | None) -> str:
    return spread(near) if near else "-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py samplers", description="Better samplers at equal evaluations.")
    parser.add_argument("--model", choices=list(SCHEDULERS), default="mmdit")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--schedulers", help="default: the model's usual one, karras and beta")
    parser.add_argument("--paid", default="8,10,15", help="evaluations")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--limit", type=int, default=100, help="steps of the limit")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "samplers")
    args = parser.parse_args()
    boot()
    bench = Samplers(args.model, args.scenes, args.limit, args.out)
    for paid in (int(n) for n in args.paid.split(",")):
        for scheduler in (args.schedulers or f"{SCHEDULERS[args.model]},karras,beta").split(","):
            for sampler in args.samplers.split(","):
                bench.of(sampler, scheduler, paid)
    say("\n".join(report(args.out / "samplers.csv")))
    return 0
