"""The rules for gaps and the shortest path at equal cost, on the demo models: `python run.py paths`.

Scenes whose captions training never saw, and whose seeds nothing was tuned on, are sampled densely, by the rules at some paces,
and by the path with as many dense evaluations as each of them cost. Results are appended to a CSV file as they come, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr

from ..demo.load import encode_prompt, load_plain
from ..demo.plain import PlainModel
from ..demo.scenes import unseen_scenes
from ..engine.config import HighlightConfig
from ..engine.placement import plan
from ..engine.trace import RunRecord, Trace
from ..tools.comfy import Sampling, boot
from ..tools.console import say
from ..tools.server import PACK
from .compare import Table
from .cost import CostModel
from .fidelity import SPREAD, psnr, spread
from .prompts import OBJECTS
from .stochastic import Stochastic

SCHEDULERS = {"unet": "normal", "mmdit": "simple", "second": "normal"}


@dataclass(frozen=True)
class Result:
    """One picture against the dense one. method: "rules" or "path". cost: in dense evaluations, by MACs. expected: signal-to-
    noise ratio that the plan was expected to have, in decibels, empty where not known. kinds: one letter an evaluation."""

    model: str
    sampler: str
    steps: int
    pace: str
    method: str
    prompt: int
    psnr: float
    cost: float
    expected: float | None
    kinds: str


class Costs:
    """What runs cost, in dense evaluations: of the demo UNet by MACs, of others by how many are dense."""

    def __init__(self, kind: str):
        self.model: CostModel | None = None
        if kind == "unet":
            unet, text, _ = load_plain()
            empty = encode_prompt(text, "")
            self.model = CostModel(PlainModel(unet, empty, empty), (1, 4, 32, 32))

    def of(self, run: RunRecord) -> float:
        if self.model is None:
            return float(run.count("dense"))
        cost = self.model.of(run.as_dict())
        return (cost.dense + cost.partial) / (run.shape[0] * self.model.full)


class Paths:
    """Samples scenes in one batch on one of the demo models, by rules and by path."""

    def __init__(self, kind: str, count: int, seed: int, out: Path):
        self.kind, self.costs = kind, Costs(kind)
        self.bench = Stochastic(kind, unseen_scenes(count, seed, OBJECTS), seed, out)
        self.results = Table(out / "paths.csv", Result)

    def compare(self, sampler: str, steps: int, pace: float) -> None:
        """The rules at a pace, and the path at their cost."""
        key, last = (self.kind, sampler, steps, f"{pace:g}"), len(self.bench.scenes) - 1
        if self.results.has(*key, "path", last):
            return
        sampling = Sampling(sampler, steps, 3.0, SCHEDULERS[self.kind])
        reference = self.bench.dense(sampling)
        with mock.patch.object(plan, "places_a_pace", lambda context: False):
            cost = self._run(key, "rules", HighlightConfig(pace=pace), sampling, reference)
        dense = max(2, math.floor(cost + 0.25))
        self._run(key, "path", HighlightConfig(speed=max(1.0, steps / dense)), sampling, reference)

    def _run(self, key: tuple, method: str, config: HighlightConfig, sampling: Sampling, reference: np.ndarray) -> float:
        from ..host.attach import attach

        trace = Trace()
        images = self.bench.pictures(attach(self.bench.subject.model, config, trace), sampling)
        run = trace.last
        kinds = run.letters
        cost, near = self.costs.of(run), [psnr(a, b) for a, b in zip(reference, images, strict=True)]
        for index, own in enumerate(near):
            self.results.add(Result(*key, method, index, own, cost, run.expected_error, kinds))
        say(" ".join(map(str, key)) + f" {method}: {np.mean(near):.1f} / {min(near):.1f} {kinds} expected {run.expected_error}")
        return cost


def report(path: Path) -> list[str]:
    """A row for every sampler, number of steps and pace, rules beside path; and how well expectations rank plans."""
    groups: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    with path.open() as file:
        for row in csv.DictReader(file):
            groups[row["model"], row["sampler"], int(row["steps"]), float(row["pace"])][row["method"]].append(row)
    lines = [
        "| model, sampler, steps | cost of rules / path | rules | path | rules' plan | path's plan |",
        "|---|---|---|---|---|---|",
    ]
    ranked: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (model, sampler, steps, _), methods in sorted(groups.items()):
        both = [methods["rules"], methods["path"]]
        costs = " / ".join(f"{float(own[0]['cost']):.1f}" for own in both)
        plans = " | ".join(f"`{own[0]['kinds']}`" for own in both)
        lines.append(f"| {model}, {sampler}, {steps} | {costs} | {' | '.join(map(_cell, both))} | {plans} |")
        for own in both:
            if own[0]["expected"] and set(own[0]["kinds"]) == {"D", "."}:
                ranked[model].append((float(own[0]["expected"]), float(np.mean([float(row["psnr"]) for row in own]))))
    for model, pairs in ranked.items():
        if len(pairs) > 2:
            lines += ["", f"{model}: Spearman's correlation of expected and measured error over {len(pairs)} plans "
                      f"{spearmanr(*zip(*pairs, strict=True)).statistic:.2f}"]  # fmt: skip
    return lines


def _cell(rows: list[dict]) -> str:
    return spread([float(row["psnr"]) for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py paths", description="The rules for gaps and the shortest path at equal cost.")
    parser.add_argument("--model", choices=list(SCHEDULERS), default="unet")
    parser.add_argument("--samplers", default="euler,dpmpp_2m,res_multistep,dpmpp_2m_sde,euler_ancestral")
    parser.add_argument("--steps", default="8,12,20,30,50")
    parser.add_argument("--paces", default="2,3,5,8")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--seed", type=int, default=2626, help="of the scenes and of the noise")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "paths")
    args = parser.parse_args()
    boot()
    with torch.no_grad():
        bench = Paths(args.model, args.scenes, args.seed, args.out)
        for steps in (int(n) for n in args.steps.split(",")):
            for sampler in args.samplers.split(","):
                for pace in (float(p) for p in args.paces.split(",")):
                    bench.compare(sampler, steps, pace)
    text = f"PSNR to the dense picture in decibels: {SPREAD}.\n\n" + "\n".join(report(args.out / "paths.csv"))
    (args.out / "paths.md").write_text(text + "\n")
    say(text)
    return 0
