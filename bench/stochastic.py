"""Presets under samplers that add noise, on the demo models: `python run.py stochastic`.

Scenes whose captions training never saw are sampled densely, with every preset, and densely in as many steps as each preset
costs, all from the same seed. The detector says which objects a picture has that the dense one has not. Results are appended
to a CSV file as they come, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..demo.detector import MAX_OFFSET, MIN_OVERLAP, Found, detect, matches
from ..demo.scenes import Scene, unseen_scenes
from ..engine.config import PRESETS, HighlightConfig
from ..engine.trace import RunRecord, Trace
from ..tools.comfy import Sampling, Subject, boot
from ..tools.console import say
from ..tools.server import PACK
from .compare import Table
from .fidelity import psnr
from .prompts import OBJECTS

SAMPLERS = (
    "euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "lcm", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "er_sde", "seeds_2", "seeds_3", "exp_heun_2_x0_sde", "sa_solver", "sa_solver_pece",
)  # fmt: skip
TYPES = {"str": str, "int": int, "float": float}  # of a row's fields
PAGE, MEASURED = PACK / "docs" / "stochastic.md", PACK / "docs" / "benchmarks" / "stochastic.csv"
START, END = "<!-- measured -->", "<!-- end of measured -->"
FEWER = ": fewer steps"  # after a preset's name: the dense run of as many steps as the preset costs


@dataclass(frozen=True)
class Result:
    """One picture against the dense one: `saved` of the seconds; new: objects the dense one has not; right: of the `wanted`
    ones; kinds: one letter an evaluation."""

    model: str
    sampler: str
    scheduler: str
    steps: int
    method: str
    prompt: int
    psnr: float
    new: int
    right: int
    dense_right: int
    wanted: int
    saved: float
    kinds: str


def new_objects(before: list[Found], after: list[Found]) -> list[Found]:
    """What is found after and not before: nothing of its colour is near, or what is there clearly has another shape."""

    def same(a: Found, b: Found) -> bool:
        near = max(abs(p - q) for p, q in zip(a.centre, b.centre, strict=True)) <= MAX_OFFSET
        clear = min(a.overlap, b.overlap) >= MIN_OVERLAP
        return a.colour == b.colour and near and (a.shape == b.shape or not clear)

    return [found for found in after if not any(same(found, other) for other in before)]


def right_objects(scene: Scene, found: list[Found]) -> int:
    """How many of the scene's objects are among the found ones, each of which serves once."""
    left, right = list(found), 0
    for thing in scene.things:
        if hit := next((f for f in left if matches(thing, f)), None):
            left.remove(hit)
            right += 1
    return right


def cost(run: RunRecord) -> float:
    """What a run's evaluations took, as a share of as many dense ones."""
    dense = statistics.median(e.seconds for e in run.evaluations if e.kind == "dense")
    return min(1.0, sum(e.seconds for e in run.evaluations) / (dense * len(run.evaluations)))


class Stochastic:
    """Samples scenes in one batch on one of the demo models."""

    def __init__(self, kind: str, scenes: list[Scene], seed: int, out: Path):
        self.kind, self.scenes, self.seed, self.out = kind, scenes, seed, out
        self.subject = Subject.demo(kind)
        conds = [self.subject.cond(scene.caption)[0] for scene in scenes]
        pooled = [extra["pooled_output"] for _, extra in conds if extra.get("pooled_output") is not None]
        self.positive = [[torch.cat([cond for cond, _ in conds]), {"pooled_output": torch.cat(pooled)} if pooled else {}]]
        out.mkdir(parents=True, exist_ok=True)
        self.results = Table(out / "stochastic.csv", Result)

    @torch.no_grad()
    def latents(self, model: Any, sampling: Sampling) -> Tensor:
        """What comes out (scenes, 4, h, w)."""
        import comfy.sample

        latent = torch.zeros(len(self.scenes), 4, self.subject.size, self.subject.size)
        return comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, self.seed), sampling.steps, sampling.cfg, sampling.sampler,
            sampling.scheduler, self.positive, self.subject.cond(""), latent, disable_pbar=True, seed=self.seed,
        )  # fmt: skip

    def decoded(self, latents: Tensor) -> np.ndarray:
        """RGB (scenes, H, W, 3) in 0..1."""
        return self.subject.vae.decode(latents).float().clamp(0, 1).numpy()

    def pictures(self, model: Any, sampling: Sampling) -> np.ndarray:
        """What comes out as RGB (scenes, H, W, 3) in 0..1."""
        return self.decoded(self.latents(model, sampling))

    def dense(self, sampling: Sampling) -> np.ndarray:
        """The same without the pack, kept in a file."""
        name = f"{self.kind}-{self.seed}-{len(self.scenes)}-{sampling.sampler}-{sampling.scheduler}-{sampling.steps}.npy"
        path = self.out / "dense" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            np.save(path, self.pictures(self.subject.model, sampling).astype(np.float16))
        return np.load(path).astype(np.float32)

    def compare(self, sampling: Sampling, presets: list[str], fewer: bool) -> None:
        """Every preset, and where `fewer`, the dense run of as many steps as it costs."""
        key = (self.kind, sampling.sampler, sampling.scheduler, sampling.steps)
        left = [preset for preset in presets if not self.results.has(*key, preset, len(self.scenes) - 1)]
        if not left:
            return
        reference = self.dense(sampling)
        found = [detect(image) for image in reference]
        for preset in left:
            trace = Trace()
            images = self.pictures(attached(self.subject.model, preset, trace), sampling)
            share = cost(trace.last)
            kinds = trace.last.letters
            self._judge((*key, preset), reference, found, images, 1 - share, kinds)
            steps = round(share * sampling.steps)
            if fewer and steps < sampling.steps:
                images = self.dense(Sampling(sampling.sampler, steps, sampling.cfg, sampling.scheduler))
                self._judge((*key, preset + FEWER), reference, found, images, 1 - steps / sampling.steps, "D" * steps)

    def _judge(self, key: tuple, reference: np.ndarray, found: list, images: np.ndarray, saved: float, kinds: str) -> None:
        for index, (scene, dense, before, image) in enumerate(zip(self.scenes, reference, found, images, strict=True)):
            after = detect(image)
            self.results.add(Result(
                *key, index, psnr(dense, image), len(new_objects(before, after)), right_objects(scene, after),
                right_objects(scene, before), len(scene.things), saved, kinds,
            ))  # fmt: skip
        say(" ".join(map(str, key)) + f": {kinds}")


def attached(model: Any, preset: str, trace: Trace) -> Any:
    from ..host.attach import attach

    return attach(model, HighlightConfig(**PRESETS[preset]), trace)


@dataclass(frozen=True)
class Row:
    """All pictures of one method: psnr: the mean, and the worst; new, right, dense_right: objects in all of them; spared: the
    share of the evaluations that are not computed in full."""

    model: str
    sampler: str
    scheduler: str
    steps: int
    scenes: int
    weights: str
    method: str
    spared: float
    psnr: float
    worst: float
    new: int
    right: int
    dense_right: int

    @property
    def key(self) -> tuple:
        """The method, and what it was measured on."""
        return self.model, self.sampler, self.scheduler, self.steps, self.scenes, self.weights, self.method

    @property
    def pictures(self) -> str:
        return f"{self.psnr:.1f} / {self.worst:.1f}, {self.new}, {self.right}/{self.dense_right}"


def summed(path: Path, weights: str) -> list[Row]:
    """The rows of a CSV file of single pictures."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    with path.open() as file:
        for own in csv.DictReader(file):
            groups[own["model"], own["sampler"], own["scheduler"], int(own["steps"]), own["method"]].append(own)
    rows = []
    for (*setting, method), own in groups.items():
        near, kinds = [float(picture["psnr"]) for picture in own], own[0]["kinds"]
        objects = (sum(int(picture[name]) for picture in own) for name in ("new", "right", "dense_right"))
        spared = 0.0 if method.endswith(FEWER) else 1 - kinds.count("D") / len(kinds)
        rows.append(Row(*setting, len(own), weights, method, spared, statistics.mean(near), min(near), *objects))
    return rows


def published() -> list[Row]:
    """The rows of docs/benchmarks/stochastic.csv."""
    with MEASURED.open() as file:
        return [Row(**{f.name: TYPES[f.type](own[f.name]) for f in fields(Row)}) for own in csv.DictReader(file)]


def publish(rows: list[Row]) -> None:
    """Write rows to that file, in place of those that measure the same, and all of them to docs/stochastic.md."""
    rows = sorted({row.key: row for row in [*published(), *rows]}.values(), key=lambda row: row.key)
    with MEASURED.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(f.name for f in fields(Row))
        table.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in astuple(row)] for row in rows)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text("\n".join([before + START, "", *report(published()), END + rest.partition(END)[2]]), encoding="utf-8")


def report(rows: list[Row]) -> list[str]:
    """A table a model: one line for what was measured, one column for a preset, dense runs of fewer steps in brackets."""
    groups: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        groups[row.key[:-1]][row.method] = row
    lines = []
    for model in sorted({row.model for row in rows}, reverse=True):
        head = f"| sampler, scheduler, steps | scenes, weights | {' | '.join(PRESETS)} |"
        lines += [f"### Demo {model}", "", head, "|---" * (2 + len(PRESETS)) + "|"]
        for key, methods in sorted(item for item in groups.items() if item[0][0] == model):
            cells = [_cell(methods.get(preset), methods.get(preset + FEWER)) for preset in PRESETS]
            lines.append(f"| {', '.join(map(str, key[1:4]))} | {key[4]}, {key[5]} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _cell(preset: Row | None, fewer: Row | None) -> str:
    if preset is None:
        return "-"
    return f"{preset.spared:.0%}, {preset.pictures}" + (f" ({fewer.pictures})" if fewer else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py stochastic", description="Presets under samplers that add noise.")
    parser.add_argument("--model", choices=["unet", "mmdit"], default="unet")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--schedulers", default="normal,karras,simple,beta")
    parser.add_argument("--steps", default="8,12,20,30")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=4242, help="of the scenes and of the noise")
    parser.add_argument("--no-fewer", action="store_true", help="leave out dense runs of fewer steps")
    parser.add_argument("--half", action="store_true", help="the denoiser's weights in bfloat16, which takes half the time")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "stochastic")
    parser.add_argument("--docs", action="store_true", help="write the table to docs/")
    args = parser.parse_args()
    boot()
    if args.half:
        from comfy import cli_args

        cli_args.args.bf16_unet = True
    bench = Stochastic(args.model, unseen_scenes(args.scenes, args.seed, OBJECTS), args.seed, args.out)
    for steps in (int(n) for n in args.steps.split(",")):
        for scheduler in args.schedulers.split(","):
            for sampler in args.samplers.split(","):
                bench.compare(Sampling(sampler, steps, 3.0, scheduler), args.presets.split(","), not args.no_fewer)
    rows = summed(args.out / "stochastic.csv", "bfloat16" if args.half else "float32")
    if args.docs:
        publish(rows)
    else:
        (args.out / "stochastic.md").write_text("\n".join(report(rows)))
    return 0
