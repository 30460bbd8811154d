"""Compare accelerators on one model, side by side in one run: `python run.py bench`.

Every method is sampled at several strengths on the same prompts and seeds, and each picture is compared with the dense one.
Results are appended to a CSV file as they come, so that an interrupted run goes on where it stopped; `page.py` makes the page.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..demo.load import DENOISERS, TURBO, TURBO_STEPS
from ..engine.trace import KINDS
from ..tools.comfy import Sampling, Subject, boot
from ..tools.console import say
from ..tools.server import PACK
from . import page, prompts, worst
from .fidelity import psnr, ssim
from .meter import Meter
from .page import OURS
from .shared import Shared

TIMED = 5  # rounds of timed runs
ROUND = 4  # accelerated runs after each dense one
APART = 5000  # between the noise seeds of the first prompt
DOCS = PACK / "docs" / "benchmarks"


@dataclass(frozen=True)
class Result:
    """One picture of one method at one strength, against the dense one.

    cells: the latent's side. share: of the frame that the dense picture's objects take, over which psnr_inside is. right: how
    many of the wanted objects are there. macs: executed, of as many as the dense run's. dense to skipped: of ours, how many
    evaluations of each kind. merged: how many of the dense ones computed merged tokens.
    """

    sampler: str
    steps: int
    cells: int
    method: str
    setting: str
    seed: int
    prompt: int
    kind: str
    share: float
    psnr: float
    psnr_inside: float
    ssim: float
    right: int
    wanted: int
    macs: int
    dense_macs: int
    dense: int
    partial: int
    shallow: int
    skipped: int
    merged: int


@dataclass(frozen=True)
class Timing:
    """Sampler seconds of one accelerated run and of the dense run of its round; `prompt` counts the rounds."""

    sampler: str
    steps: int
    cells: int
    method: str
    setting: str
    prompt: int
    seconds: float
    dense_seconds: float


class Table:
    """A CSV file of records that only grows. A record is known by its fields up to `prompt`."""

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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(self.names) + "\n")

    def has(self, *key: object) -> bool:
        return tuple(str(k) for k in key) in self.done

    def add(self, record: Any) -> None:
        row = asdict(record)
        self.done.add(tuple(str(row[k]) for k in self.keys))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.names, lineterminator="\n").writerow(
                {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
            )


class Comparison:
    """The bench on one model. results: the CSV file. out: where dense pictures are kept, and the timings."""

    def __init__(self, subject: Subject, asked: list[prompts.Prompt], methods: list, results: Path, out: Path):
        self.subject, self.asked, self.methods, self.out = subject, asked, methods, out
        subject.cond("")
        out.mkdir(parents=True, exist_ok=True)
        self.tally, self.meter = Tally(), Meter(subject.model.get_model_object("diffusion_model"))
        self.shared = Shared()
        self.costs: dict[tuple[str, Sampling], int] = {}  # MACs of the methods that do not adapt
        self.added = 0  # pictures that were not there before
        self.results, self.timings = Table(results, Result), Table(out / "timings.csv", Timing)

    def picture(self, method: Any, index: int, seed: int, sampling: Sampling) -> tuple[np.ndarray, int, Any]:
        """RGB, MACs executed and our run's trace where the method keeps one."""
        text, attached, latents = self.asked[index].text, method.attach(self.subject.model, sampling), []
        model = self.shared.attached(attached.model) if method.whole else attached.model
        self.subject.cond(text)  # encoded outside the count

        def sample() -> None:
            latents.append(self.subject.sample(model, text, index + APART * seed, attached.sampling)[0])

        executed = self._executed(method, sampling, attached, sample)
        return self.subject.decode(latents[0]), executed, attached.trace.last if attached.trace is not None else None

    def _executed(self, method: Any, sampling: Sampling, attached: Any, sample: Callable[[], None]) -> int:
        """Sample, and count the MACs."""
        if method.whole:
            calls = self.shared.calls
            sample()
            return round((self.shared.calls - calls) * self.tally.known[sampling.cfg, "dense", False, 0, ()])
        if attached.trace is not None and method.adapts:
            sample()
            executed = self.tally.of(attached.trace.last, sampling)
            return self.tally.learn(attached.trace.last, sampling, self.meter.exactly(sample)) if executed is None else executed
        key = (method.label, sampling)
        if method.adapts:
            return self.meter.of(sample)
        if key in self.costs:
            sample()
        else:
            self.costs[key] = self.meter.exactly(sample)
        return self.costs[key]

    def dense(self, index: int, seed: int, sampling: Sampling) -> tuple[np.ndarray, int]:
        """The dense picture and its MACs, made once and kept. Raises ValueError where what was kept is another prompt's."""
        name = f"{sampling.sampler}-{sampling.steps}-{self.subject.size}-{seed}-{index}.npz"
        path = self.out / "dense" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            image, executed, _ = self.picture(self.methods[0], index, seed, sampling)
            np.savez_compressed(path, image=image.astype(np.float32), macs=executed, text=self.asked[index].text)
        data = np.load(path)
        if str(data["text"]) != self.asked[index].text:
            raise ValueError(f'{path} is of "{data["text"]}"; with other prompts choose another --out')
        executed = int(data["macs"])
        self.tally.known[sampling.cfg, "dense", False, 0, ()] = executed / sampling.steps  # the samplers of one call a step
        return data["image"], executed

    def _judge(self, index: int, reference: np.ndarray, image: np.ndarray) -> dict[str, Any]:
        scene, inside, right, wanted = self.asked[index].scene, None, 0, 0
        if scene is not None:
            from ..demo.detector import colour_map, objects_right

            inside, right, wanted = colour_map(reference) >= 0, objects_right(scene, image), len(scene.things)
        there = inside is not None and bool(inside.any())
        return {
            "share": float(inside.mean()) if inside is not None else float("nan"), "right": right, "wanted": wanted,
            "psnr": psnr(reference, image), "ssim": ssim(reference, image),
            "psnr_inside": psnr(reference, image, inside) if there else float("nan"),
        }  # fmt: skip

    def fidelity(self, sampling: Sampling, seeds: int) -> None:
        """One picture of every method, prompt and seed, with its MACs."""
        total = len(self.asked) * seeds * len(self.methods)
        progress = Progress(f"{sampling.sampler}, {sampling.steps} steps: pictures", total)
        for seed in range(seeds):
            for index in range(len(self.asked)):
                self._of_one(index, seed, sampling, progress)
        progress.end()

    def _of_one(self, index: int, seed: int, sampling: Sampling, progress: Progress) -> None:
        """Every method's picture of one prompt and seed."""
        self.shared.forget()
        for method in self.methods:
            key = (sampling.sampler, sampling.steps, self.subject.size, method.name, method.setting, seed, index)
            progress.step()
            if self.results.has(*key):
                continue
            reference, dense_macs = self.dense(index, seed, sampling)
            if method is self.methods[0]:
                image, executed, run = reference, dense_macs, None
            else:
                image, executed, run = self.picture(method, index, seed, sampling)
            counts = {kind: run.count(kind) if run else 0 for kind in KINDS}
            counts["merged"] = sum(e.tokens_saved > 0 for e in run.evaluations) if run else 0
            judged = self._judge(index, reference, image)
            self.added += 1
            self.results.add(Result(*key, self.asked[index].kind, macs=executed, dense_macs=dense_macs, **counts, **judged))

    def worst(self, samplings: Sequence[Sampling]) -> list[worst.Picture]:
        """The worst picture of presets in every way of sampling, each after the dense one."""
        with self.results.path.open() as file:
            rows = list(csv.DictReader(file))
        shown: list[worst.Picture] = []
        for sampling, preset in product(samplings, worst.SHOWN):
            cell = [sampling.sampler, str(sampling.steps), str(self.subject.size)]
            own = [row for row in rows if [row["sampler"], row["steps"], row["cells"]] == cell]
            method = next((m for m in self.methods if (m.name, m.setting) == (OURS, preset)), None)
            if method and (row := worst.worst_of(own, OURS, preset)) and int(row["prompt"]) < len(self.asked):
                index, seed = int(row["prompt"]), int(row["seed"])
                dense, _ = self.dense(index, seed, sampling)
                shown += worst.pair(dense, self.picture(method, index, seed, sampling)[0], sampling.steps, preset)
        return shown

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
                    key = (sampling.sampler, sampling.steps, self.subject.size, method.name, method.setting, turn)
                    progress.step()
                    if not self.timings.has(*key):
                        dense = dense or self._time(self.methods[0], index, sampling)
                        self.timings.add(Timing(*key, seconds=self._time(method, index, sampling), dense_seconds=dense))
        progress.end()

    def _time(self, method: Any, index: int, sampling: Sampling) -> float:
        attached = method.attach(self.subject.model, sampling)
        return self.subject.sample(attached.model, self.asked[index].text, index, attached.sampling)[1]


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


def log_profile(subject: Subject, sampling: Sampling, asked: Sequence[str]) -> None:
    """Make the profile of a model that has none of its own, as Profile a Model does, from dense runs on prompts that are not
    judged and that it knows how to draw. It is kept in ComfyUI's user directory, where every Highlight node finds it."""
    from ..engine.profile import write_profile
    from ..host.profiles import begun, path_of
    from ..host.profiling import with_picture
    from ..host.run import time_axis_of

    path = path_of(subject.model)
    if path.exists():
        return
    profile = begun(subject.model, path, time_axis_of(subject.model))
    for number, prompt in enumerate(asked):
        say(f"profile: picture {number + 1} of {len(asked)}")
        sample = partial(subject.sample, prompt=prompt, seed=number, sampling=sampling)
        profile = with_picture(profile, subject.model, sampling.cfg, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_profile(profile, path)
    say(f"profile: {path}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="run.py bench", description="Accelerators side by side on one model.")
    made.add_argument("--model", choices=[*DENOISERS, *TURBO, "second"], default="unet", help="which of the demo models")
    own = made.add_argument_group("your own model instead")
    own.add_argument("--checkpoint", type=Path, help="a checkpoint with text encoder and VAE")
    own.add_argument("--diffusion-model", type=Path, help="a diffusion model, beside --text-encoders, --clip-type and --vae")
    own.add_argument("--text-encoders", type=Path, nargs="+", default=[])
    own.add_argument("--clip-type", default="stable_diffusion", help="as Load CLIP has it")
    own.add_argument("--vae", type=Path)
    own.add_argument("--workflow", type=Path, help="a workflow with one sampler node, saved, or exported for the API")
    own.add_argument("--no-profile", action="store_true", help="do not make the model's own profile where it has none")
    made.add_argument("--size", type=int, default=512, help="of the pictures, in pixels")
    made.add_argument("--prompts", type=Path, help="your own prompts: one a line, '# name' before a class of them")
    made.add_argument("--limit", type=int, default=48, help="at most this many prompts, or of each class of a file")
    made.add_argument("--seeds", type=int, default=1, help="noises of each prompt")
    made.add_argument("--samplers", help="default: euler")
    made.add_argument("--scheduler", help="default: simple for flows, normal for others")
    made.add_argument("--steps", help="default: 8 for turbo models, 30,20,12 for others, or the workflow's")
    made.add_argument("--cfg", type=float, help="default: 1 for turbo models, 3 for other demo models, 7 for a checkpoint")
    made.add_argument("--only", help="compare only methods whose name contains one of these, comma between")
    made.add_argument("--study", action="store_true", help="our ablations too")
    made.add_argument("--clock", action="store_true", help="time the methods too; that takes an idle machine")
    made.add_argument("--docs", action="store_true", help="keep the results in docs/benchmarks/ and write docs/benchmarks.md")
    made.add_argument("--out", type=Path, default=PACK / "out" / "bench")
    return made


def subject_of(args: argparse.Namespace) -> tuple[str, Subject]:
    """What the arguments name: its name and itself. Raises SystemExit where they do not fit together."""
    cells = args.size // 8
    if args.workflow:
        from .workflow import WorkflowSubject

        return args.workflow.stem, WorkflowSubject(args.workflow)
    if args.diffusion_model:
        if not (args.text_encoders and args.vae):
            raise SystemExit("--diffusion-model needs --text-encoders and --vae beside it")
        files = args.diffusion_model, args.text_encoders, args.clip_type, args.vae
        return args.diffusion_model.stem, Subject.files(*files, size=cells)
    if args.checkpoint:
        return args.checkpoint.stem, Subject.checkpoint(args.checkpoint, cells)
    return args.model.replace(" ", "-"), Subject.demo(args.model, cells)


def demo_of(args: argparse.Namespace) -> bool:
    """Whether a demo model is compared."""
    return not (args.checkpoint or args.diffusion_model or args.workflow)


def samplings(args: argparse.Namespace, subject: Subject) -> list[Sampling]:
    """How to sample, one after the other: as asked, or else as the workflow, or as is usual for the model."""
    turbo, own = demo_of(args) and args.model in TURBO, subject.sampling
    if own is not None:
        return [replace(own, steps=int(n)) for n in (args.steps or str(own.steps)).split(",")]
    cfg = args.cfg or (1.0 if turbo else 3.0 if demo_of(args) else 7.0)
    scheduler = args.scheduler or ("simple" if subject.flow else "normal")  # as both are sampled by their authors
    steps = args.steps or (str(TURBO_STEPS[args.model]) if turbo else "30,20,12")
    names = (args.samplers or "euler").split(",")
    return [Sampling(sampler, int(n), cfg, scheduler) for n in steps.split(",") for sampler in names]


def main() -> int:
    args = parser().parse_args()
    boot()
    from .methods import methods

    name, subject = subject_of(args)
    if not demo_of(args):
        args.prompts = args.prompts or prompts.FOLDER / "general.txt"
    asked = prompts.read(args.prompts, args.limit) if args.prompts else prompts.judged(args.limit)
    wanted = args.only.split(",") if args.only else [""]
    chosen = [m for m in methods(subject, args.study) if m.name == "dense" or any(word in m.label for word in wanted)]
    say(f"{name}: {len(asked)} prompts, {len(chosen)} methods and strengths, torch {torch.__version__}")
    folder = DOCS if args.docs else args.out
    comparison = Comparison(subject, asked, chosen, folder / f"{name}.csv", args.out / name)
    ways = samplings(args, subject)
    for sampling in ways:
        if not (args.no_profile or (demo_of(args) and args.model != "second")):
            log_profile(subject, sampling, prompts.profiled(demo_of(args)))
        comparison.fidelity(sampling, args.seeds)
        if args.clock:
            comparison.seconds(sampling)
    path = folder / worst.NAME.format(name)
    if (comparison.added or not path.exists()) and (pictures := comparison.worst(ways)):
        worst.draw([pictures], path)
    say(str(page.write(folder)))
    return 0
