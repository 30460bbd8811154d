"""Compare accelerators on one model, side by side in one run: `python run.py bench`.

Every method is sampled at several strengths on the same prompts and seeds, and each picture is compared with the dense
one. Pictures and multiply-accumulates come from one pass, seconds from another, in which dense and accelerated runs
alternate. Results are appended to two CSV files as they come, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from ..engine.trace import KINDS
from ..tools.comfy import Sampling, Subject, boot
from ..tools.console import say
from ..tools.server import PACK
from . import prompts
from .cost import macs
from .fidelity import psnr, ssim

BORDER = 5  # pixels on either side of an object's outline
TIMED = 5  # rounds of timed runs
ROUND = 4  # accelerated runs after each dense one
SEED = 0


@dataclass(frozen=True)
class Result:
    """One picture of one method at one strength, against the dense one.

    share: of the frame that the dense picture's objects take; the areas of the fidelities are theirs.
    """

    sampler: str
    steps: int
    method: str
    setting: str
    prompt: int
    kind: str
    share: float
    psnr: float
    psnr_inside: float
    psnr_outside: float
    psnr_border: float
    ssim: float
    right: int
    wanted: int
    macs: int
    dense_macs: int
    partial_macs: int
    dense: int
    partial: int
    shallow: int
    skipped: int
    active: float


@dataclass(frozen=True)
class Timing:
    """Sampler seconds of one accelerated run and of the dense run of its round; `prompt` counts the rounds."""

    sampler: str
    steps: int
    method: str
    setting: str
    prompt: int
    seconds: float
    dense_seconds: float


class Table:
    """A CSV file of records that only grows."""

    def __init__(self, path: Path, record: type):
        self.path, self.names = path, [f.name for f in fields(record)]
        self.keys = self.names[: self.names.index("prompt") + 1]
        self.done: set[tuple[str, ...]] = set()
        if path.exists():
            with path.open() as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != self.names:
                    raise ValueError(f"{path} has columns of another version; move it away or choose another --out")
                self.done = {tuple(row[k] for k in self.keys) for row in reader}
        else:
            path.write_text(",".join(self.names) + "\n")

    def has(self, *key: object) -> bool:
        return tuple(str(k) for k in key) in self.done

    def add(self, record: Any) -> None:
        row = asdict(record)
        self.done.add(tuple(str(row[k]) for k in self.keys))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.names).writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def areas(mask: np.ndarray) -> dict[str, np.ndarray]:
    """Inside, outside and border of a mask (H, W) of objects; empty areas are left out."""
    near = ndimage.binary_dilation(mask, iterations=BORDER) & ~ndimage.binary_erosion(mask, iterations=BORDER)
    return {name: area for name, area in (("inside", mask), ("outside", ~mask), ("border", near)) if area.any()}


class Comparison:
    """The bench on one model."""

    def __init__(self, subject: Subject, asked: list[prompts.Prompt], methods: list, out: Path):
        self.subject, self.asked, self.methods, self.out = subject, asked, methods, out
        subject.cond("")
        out.mkdir(parents=True, exist_ok=True)
        self.tally = Tally()
        self.costs: dict[tuple[str, Sampling], int] = {}  # MACs of the methods that do not adapt
        self.results, self.timings = Table(out / "results.csv", Result), Table(out / "timings.csv", Timing)

    def _picture(self, method: Any, prompt: prompts.Prompt, sampling: Sampling) -> tuple[np.ndarray, int, Any]:
        """RGB, MACs executed and our run's trace where the method keeps one."""
        attached, latents = method.attach(self.subject.model, sampling), []
        self.subject.cond(prompt.text)  # encoded outside the count

        def sample() -> None:
            latents.append(self.subject.sample(attached.model, prompt.text, SEED, attached.sampling)[0])

        key = (method.label, sampling)
        if attached.trace is not None and method.adapts:
            sample()
            run = attached.trace.last
            executed = self.tally.of(run, sampling)
            if executed is None:
                executed = self.tally.learn(run, sampling, macs(sample))
            return self.subject.decode(latents[0]), executed, run
        if method.adapts or key not in self.costs:
            self.costs[key] = macs(sample)
        else:
            sample()
        run = attached.trace.last if attached.trace is not None else None
        return self.subject.decode(latents[0]), self.costs[key], run

    def _dense(self, index: int, sampling: Sampling) -> tuple[np.ndarray, int]:
        """The dense picture and its MACs, made once and kept. Raises ValueError where what was kept is another prompt's."""
        path = self.out / "dense" / f"{sampling.sampler}-{sampling.steps}-{index}.npz"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            image, executed, _ = self._picture(self.methods[0], self.asked[index], sampling)
            np.savez(path, image=image, macs=executed, text=self.asked[index].text)
        data = np.load(path)
        if "text" in data and str(data["text"]) != self.asked[index].text:
            raise ValueError(f'{path} is of "{data["text"]}"; with other prompts or another --limit choose another --out')
        executed = int(data["macs"])
        self.tally.known[sampling.cfg, "dense", False, 0, ()] = executed / sampling.steps  # the samplers of one call a step
        return data["image"], executed

    def _judge(self, index: int, reference: np.ndarray, image: np.ndarray) -> dict[str, Any]:
        scene = self.asked[index].scene
        if scene is None:
            parts, right, wanted, share = {}, 0, 0, float("nan")
        else:
            from ..demo.detector import colour_map, objects_right

            mask = colour_map(reference) >= 0
            parts, share = areas(mask), float(mask.mean())
            right, wanted = objects_right(scene, image), len(scene.things)
        by_area = {f"psnr_{name}": psnr(reference, image, parts[name]) if name in parts else float("nan")
                   for name in ("inside", "outside", "border")}  # fmt: skip
        whole = {"psnr": psnr(reference, image), "ssim": ssim(reference, image)}
        return {"share": share, "right": right, "wanted": wanted, **whole, **by_area}

    def fidelity(self, sampling: Sampling) -> None:
        """One picture a prompt of every method, with its MACs."""
        progress = Progress(f"{sampling.sampler}, {sampling.steps} steps: pictures", len(self.asked) * len(self.methods))
        for index, prompt in enumerate(self.asked):
            reference, dense_macs = self._dense(index, sampling)
            for method in self.methods:
                key = (sampling.sampler, sampling.steps, method.name, method.setting, index)
                progress.step()
                if self.results.has(*key):
                    continue
                if method is self.methods[0]:
                    image, executed, run = reference, dense_macs, None
                else:
                    image, executed, run = self._picture(method, prompt, sampling)
                counts = {kind: run.count(kind) if run else 0 for kind in KINDS}
                self.results.add(Result(
                    *key, prompt.kind, macs=executed, dense_macs=dense_macs, partial_macs=_partial(run, executed, dense_macs),
                    active=run.mean_active if run else 1.0, **counts, **self._judge(index, reference, image),
                ))  # fmt: skip
                self._keep(image, sampling, method, index)
        progress.end()

    def _keep(self, image: np.ndarray, sampling: Sampling, method: Any, index: int) -> None:
        name = method.label.replace("/", "-").replace(" ", "_")
        folder = self.out / "pictures" / f"{sampling.sampler}-{sampling.steps}" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)

    def seconds(self, sampling: Sampling) -> None:
        """Timed rounds on the first prompts: a dense run, then a few methods, which are compared with it."""
        timed = [i for i, p in enumerate(self.asked) if p.kind == self.asked[0].kind][:TIMED]
        timed = [timed[i % len(timed)] for i in range(TIMED)]
        progress = Progress(f"{sampling.sampler}, {sampling.steps} steps: timing", TIMED * (len(self.methods) - 1))
        self._time(self.methods[0], timed[0], sampling)
        for turn, index in enumerate(timed):
            for start in range(1, len(self.methods), ROUND):
                dense = None
                for method in self.methods[start : start + ROUND]:
                    key = (sampling.sampler, sampling.steps, method.name, method.setting, turn)
                    progress.step()
                    if not self.timings.has(*key):
                        dense = dense or self._time(self.methods[0], index, sampling)
                        self.timings.add(Timing(*key, seconds=self._time(method, index, sampling), dense_seconds=dense))
        progress.end()

    def _time(self, method: Any, index: int, sampling: Sampling) -> float:
        attached = method.attach(self.subject.model, sampling)
        return self.subject.sample(attached.model, self.asked[index].text, SEED, attached.sampling)[1]


class Tally:
    """MACs of traced runs from those of their pieces, so that not every run has to be counted, which takes twice its time.

    A run with one kind of piece not met before is counted, and tells that piece's cost.
    """

    def __init__(self) -> None:
        self.known: dict[tuple, float] = {}

    @staticmethod
    def _pieces(run: Any, sampling: Sampling) -> Counter:
        pieces: Counter = Counter()
        for e in run.evaluations:
            if e.kind == "dense":
                pieces[sampling.cfg, "dense", e.heatmap is not None, e.tokens_saved, e.parts_merged] += 1
            elif e.kind == "shallow":
                pieces[sampling.cfg, "shallow"] += 1
            for y0, y1, x0, x1 in (box for own in e.windows for box in own):
                edges = (y0 == 0, y1 == run.shape[2], x0 == 0, x1 == run.shape[3])
                pieces[sampling.cfg, "window", y1 - y0, x1 - x0, edges, run.depth] += 1
        return pieces

    def of(self, run: Any, sampling: Sampling) -> int | None:
        """The run's MACs, None where a piece is not known."""
        pieces = self._pieces(run, sampling)
        return None if set(pieces) - set(self.known) else round(sum(n * self.known[p] for p, n in pieces.items()))

    def learn(self, run: Any, sampling: Sampling, executed: int) -> int:
        """Take up a counted run; returns its MACs."""
        pieces = self._pieces(run, sampling)
        new = set(pieces) - set(self.known)
        if len(new) == 1:
            (piece,) = new
            rest = sum(n * self.known[p] for p, n in pieces.items() if p != piece)
            self.known[piece] = (executed - rest) / pieces[piece]
        return executed


def _partial(run: Any, executed: int, dense_macs: int) -> int:
    """MACs of a run that are not its dense evaluations': those of windows, shallow ones and heatmaps."""
    if run is None:
        return 0
    return max(0, executed - dense_macs * run.count("dense") // max(len(run.evaluations), 1))


class Progress:
    """A line that counts up."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.count, self.started = label, total, 0, time.monotonic()

    def step(self) -> None:
        passed = time.monotonic() - self.started
        left = passed / self.count * (self.total - self.count) if self.count else 0.0
        self.count += 1
        sys.stdout.write(f"\r  {self.label}: {self.count}/{self.total}, about {left / 60:.0f} min left ")
        sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.write("\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py bench", description="Accelerators side by side on one model.")
    parser.add_argument("--model", choices=["unet", "mmdit"], default="unet", help="which of the demo models")
    parser.add_argument("--checkpoint", type=Path, help="your own checkpoint instead of the demo model")
    parser.add_argument("--size", type=int, default=512, help="picture size for --checkpoint, in pixels")
    parser.add_argument("--prompts", type=Path, help="your own prompts: one a line, '# name' before a class of them")
    parser.add_argument("--limit", type=int, help="at most this many prompts of each class")
    parser.add_argument("--samplers", default="euler,dpmpp_2m,euler_ancestral,dpmpp_2m_sde")
    parser.add_argument("--steps", default="30,12")
    parser.add_argument("--cfg", type=float, help="default: 3 for the demo model, 7 for a checkpoint")
    parser.add_argument("--only", help="compare only methods whose name contains one of these, comma between")
    parser.add_argument("--no-timing", action="store_true", help="pictures and MACs only")
    parser.add_argument("--docs", action="store_true", help="write the report to docs/benchmarks/")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "bench")
    args = parser.parse_args()
    if args.checkpoint and not args.prompts:
        args.prompts = prompts.FOLDER / "general.txt"
    boot()
    from .methods import methods

    subject = Subject.checkpoint(args.checkpoint, args.size // 8) if args.checkpoint else Subject.demo(args.model)
    asked = prompts.read(args.prompts, args.limit) if args.prompts else prompts.demo(args.limit)
    wanted = args.only.split(",") if args.only else [""]
    chosen = [m for m in methods(subject.transformer) if m.name == "dense" or any(word in m.label for word in wanted)]
    say(f"{len(asked)} prompts, {len(chosen)} methods and strengths, torch {torch.__version__}")
    scheduler = "simple" if subject.transformer else "normal"  # as both are sampled by their authors
    comparison = Comparison(subject, asked, chosen, args.out)
    for steps in (int(n) for n in args.steps.split(",")):
        for sampler in args.samplers.split(","):
            sampling = Sampling(sampler, steps, args.cfg or (7.0 if args.checkpoint else 3.0), scheduler)
            comparison.fidelity(sampling)
            if not args.no_timing:
                comparison.seconds(sampling)
    from .redundancy import draw
    from .report import write

    kind = "transformer" if subject.transformer else "unet"
    folder, name = (PACK / "docs" / "benchmarks", kind) if args.docs else (args.out, f"report-{kind}")
    folder.mkdir(parents=True, exist_ok=True)
    if not subject.transformer and not args.checkpoint:
        draw(asked[0].text, folder / f"{name}-redundancy.png")
    say(f"report: {write(args.out, folder, name, 'python run.py bench ' + ' '.join(sys.argv[1:]))}")
    return 0
