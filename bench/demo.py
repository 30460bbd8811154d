"""The demo command: the same prompts dense, highlighted and with the highlight always computed; a table and a contact sheet.

With ComfyUI the pictures come from a headless server that runs `workflows/highlight_demo.json`; without, the same
engine samples the same model in plain torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..demo.detector import colour_map, objects_right
from ..demo.load import TURBO_STEPS, encode_prompt, load_plain
from ..demo.plain import PlainModel, sample
from ..demo.plain_flow import plain_class
from ..demo.scenes import Scene, parse_caption
from ..demo.vae import PIXELS, picture_of
from ..engine.config import HighlightConfig
from ..engine.report.overlay import frames
from ..engine.trace import KINDS
from ..tools.console import say
from ..tools.server import PACK, Server
from ..tools.workflow import of_type, to_prompt
from .cost import Cost, CostModel
from .fidelity import psnr, ssim
from .probe import compare

PROMPTS = PACK / "demo" / "prompts.txt"
WORKFLOW = PACK / "workflows" / "highlight_demo.json"
STEPS, CFG = 20, 3.0
SIDE = 64  # of the latents, in cells
SCHEDULERS = {"unet": "normal"} | dict.fromkeys(("mmdit", *TURBO_STEPS), "simple")
PROMPTS_SHOWN, SEEDS = 8, 1  # by default, to be done in minutes; seeds are pictures a prompt
COMPARED_EVERY = 4  # prompts between those that are also sampled in the variants below
PROBED = 3  # prompts whose partial evaluations are compared with dense ones
# corrected: with partial evaluations where the preset leaves it to the forecast; equal cost: with more dense ones instead
VARIANTS = {
    "dense": {"enabled": False}, "highlight": {}, "corrected": {"correct": "always"},
    "equal cost": {"correct": "never", "pace": 3.5},
}  # fmt: skip
COMPARED = ("corrected", "equal cost")
SHEET = 8  # prompts on the contact sheet
OPTIONS = ("--use-pytorch-cross-attention",)  # what is fastest on a CPU, dense and highlighted alike
STRIP = 5  # the contact sheet shows every fifth evaluation
SHRUNK = 2  # pixels of a picture to one of the contact sheet, in either direction


def steps_and_cfg(kind: str) -> tuple[int, float]:
    """In how many steps and at what CFG a demo model is sampled: distilled ones in theirs, at 1."""
    return (TURBO_STEPS[kind], 1.0) if kind in TURBO_STEPS else (STEPS, CFG)


@dataclass
class Sample:
    """A sampled picture: RGB (H, W, 3) in 0..1, its run as `Run.as_dict`, and frames of its preview if asked for."""

    image: np.ndarray
    run: dict
    strip: np.ndarray | None = None


class Backend(Protocol):
    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample: ...


class PlainBackend:
    """The engine on a bundled model in plain torch."""

    def __init__(self, kind: str, side: int) -> None:
        self.side, self.plain = side, plain_class(kind)
        self.steps, self.cfg = steps_and_cfg(kind)
        self.denoiser, self.text, self.vae = load_plain(kind)

    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample:
        model = self.plain(self.denoiser, encode_prompt(self.text, prompt), encode_prompt(self.text, ""))
        noise = torch.randn(1, 4, self.side, self.side, generator=torch.Generator().manual_seed(seed))
        latent, run = sample(model, noise, self.steps, self.cfg, HighlightConfig(**VARIANTS[variant]))
        with torch.inference_mode():
            image = picture_of(self.vae, latent)
        shown = frames(run, image, every=STRIP).numpy() if strip else None
        return Sample(image.numpy(), run.as_dict(), shown)


class ServerBackend:
    """The demo workflow on a headless ComfyUI."""

    def __init__(self, server: Server, kind: str, side: int):
        self.server, self.kind, self.pixels = server, kind, PIXELS * side
        self.steps, self.cfg = steps_and_cfg(kind)
        self.prompt = to_prompt(json.loads(WORKFLOW.read_text()), server.get("/object_info"))

    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample:
        graph = copy.deepcopy(self.prompt)
        sampler = of_type(graph, "KSampler")
        sampler.update(seed=seed, steps=self.steps, cfg=self.cfg, sampler_name="euler", scheduler=SCHEDULERS[self.kind])
        of_type(graph, "HighlightDemoModel")["kind"] = self.kind
        of_type(graph, "EmptyLatentImage").update(width=self.pixels, height=self.pixels)
        graph[sampler["positive"][0]]["inputs"]["text"] = prompt
        of_type(graph, "HighlightDiffusion").update(VARIANTS[variant])
        preview = next(key for key, node in graph.items() if node["class_type"] == "HighlightMaskPreview")
        graph[preview]["inputs"]["every"] = STRIP if strip else self.steps
        graph["frames"] = {"class_type": "PreviewImage", "inputs": {"images": [preview, 0]}}
        outputs = self.server.run(graph)
        saved = next(o for name, o in outputs.items() if name not in (preview, "frames") and "images" in o)
        shown = np.stack([self._read(i) for i in outputs["frames"]["images"]]) if strip else None
        return Sample(self._read(saved["images"][0]), outputs[preview]["highlight_runs"][-1], shown)

    def _read(self, image: dict) -> np.ndarray:
        return np.asarray(Image.open(self.server.path_of(image)).convert("RGB"), dtype=np.float32) / 255


@contextmanager
def backend(options: Sequence[str] = OPTIONS, kind: str = "unet", side: int = SIDE) -> Iterator[Backend]:
    """ComfyUI with these options where COMFYUI_PATH names one, else plain torch, with a bundled model of this kind and square
    latents of `side` cells."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        say("sampling in plain torch, without the graph: the same engine on the bundled model")
        yield PlainBackend(kind, side)
        return
    say(f"starting ComfyUI ({comfyui}) on the CPU ...")
    with Server(Path(comfyui), options=options) as server:
        yield ServerBackend(server, kind, side)


@dataclass
class Row:
    """One picture of a prompt, by variant."""

    scene: Scene
    seed: int
    samples: dict[str, Sample]

    def image(self, variant: str) -> np.ndarray:
        return self.samples[variant].image

    def objects(self, variant: str) -> int:
        return objects_right(self.scene, self.image(variant))

    def seconds(self, variant: str) -> float:
        return self.samples[variant].run["seconds"]

    def psnr(self, variant: str, inside: bool = False) -> float:
        """To the dense picture: the whole, or its objects (the whole where it has none)."""
        mask = colour_map(self.image("dense")) >= 0 if inside else None
        if mask is not None and not mask.any():
            mask = None
        return psnr(self.image("dense"), self.image(variant), mask)

    def ssim(self, variant: str) -> float:
        return ssim(self.image("dense"), self.image(variant))


def collect(source: Backend, scenes: list[Scene], seeds: int) -> list[Row]:
    """Sample every prompt and seed in every variant, the variants in turn so that their timings pair up."""
    source.sample(scenes[0].caption, 10_000, "highlight")  # warm-up: loads models, fills caches
    rows, started, total = [], time.monotonic(), len(scenes) * seeds
    for number, scene in enumerate(scenes):
        for seed in range(seeds):
            order = ["dense", "highlight"] if seed % 2 else ["highlight", "dense"]
            if number % COMPARED_EVERY == 0:
                order[seed:seed] = COMPARED
            strip = seed == 0 and number % max(1, len(scenes) // SHEET) == 0
            samples = {v: source.sample(scene.caption, seed, v, strip and v == "highlight") for v in order}
            rows.append(Row(scene, seed, samples))
            passed = time.monotonic() - started
            left = passed / len(rows) * (total - len(rows))
            sys.stdout.write(f"\r  {len(rows)}/{total} pictures, {passed:.0f} s, about {left:.0f} s left ")
            sys.stdout.flush()
    sys.stdout.write("\n")
    return rows


def _costs(rows: list[Row], variants: Sequence[str]) -> dict[str, Cost]:
    """MACs of all runs of each variant."""
    unet, text, _ = load_plain()
    empty = encode_prompt(text, "")
    model = CostModel(PlainModel(unet, empty, empty), (1, 4, SIDE, SIDE))
    totals = {}
    for variant in variants:
        costs = [model.of(row.samples[variant].run) for row in rows]
        totals[variant] = Cost(*(sum(getattr(c, name) for c in costs) for name in ("dense", "partial", "heatmap", "dense_run")))
    return totals


def table(rows: list[Row], variants: Sequence[str]) -> str:
    """Figures of some variants side by side, as text."""
    costs = _costs(rows, variants)
    wanted = sum(len(row.scene.things) for row in rows)
    lines = [f"{'':34}" + "".join(f"{variant:>12}" for variant in variants)]

    def each(label: str, figure, form: str = "{:.2f}", skip_dense: bool = False) -> None:
        values = ["-" if skip_dense and v == "dense" else form.format(figure(v)) for v in variants]
        lines.append(f"{label:34}" + "".join(f"{value:>12}" for value in values))

    evaluations = {v: [e for row in rows for e in row.samples[v].run["evaluations"]] for v in variants}
    share = lambda v, kind: 100 * sum(e["kind"] == kind for e in evaluations[v]) / len(evaluations[v])  # noqa: E731
    fidelity = {(v, i): [row.psnr(v, i) for row in rows] for v in variants if v != "dense" for i in (False, True)}
    similarity = {v: [row.ssim(v) for row in rows] for v in variants if v != "dense"}
    each("sampler seconds, median", lambda v: statistics.median(row.seconds(v) for row in rows), "{:.3f}")
    each("times faster, wall clock (median)", lambda v: statistics.median(r.seconds("dense") / r.seconds(v) for r in rows))
    each("times cheaper, MACs", lambda v: costs[v].ratio)
    each("  MACs saved by skipping, %", lambda v: share(v, "skipped"), "{:.1f}")
    part = lambda v: share(v, "partial") + share(v, "shallow") - 100 * costs[v].partial / costs[v].dense_run  # noqa: E731
    each("  MACs saved by partial, %", part, "{:.1f}")
    each("  MACs spent on heatmaps, %", lambda v: 100 * costs[v].heatmap / costs[v].dense_run, "{:.2f}")
    for kind in (kind for kind in KINDS if any(share(v, kind) for v in variants)):
        each(f"evaluations {kind}, %", lambda v, kind=kind: share(v, kind), "{:.1f}")
    each("mean active area, %", lambda v: 100 * statistics.fmean(e["active"] for e in evaluations[v]), "{:.1f}")
    each("PSNR mean, dB", lambda v: statistics.fmean(fidelity[v, False]), "{:.1f}", True)
    each("PSNR worst, dB", lambda v: min(fidelity[v, False]), "{:.1f}", True)
    each("PSNR inside objects, mean, dB", lambda v: statistics.fmean(fidelity[v, True]), "{:.1f}", True)
    each("PSNR inside objects, worst, dB", lambda v: min(fidelity[v, True]), "{:.1f}", True)
    each("SSIM mean", lambda v: statistics.fmean(similarity[v]), "{:.4f}", True)
    each("SSIM worst", lambda v: min(similarity[v]), "{:.4f}", True)
    each(f"objects right, of {wanted}", lambda v: sum(row.objects(v) for row in rows), "{}")
    return "\n".join(lines)


def probe_lines(scenes: list[Scene]) -> str:
    """Partial evaluations against dense ones at the same points, for some of the prompts, as text."""
    unet, text, _ = load_plain()
    negative, found = encode_prompt(text, ""), []
    for scene in scenes[:: max(1, len(scenes) // PROBED)]:
        model = PlainModel(unet, encode_prompt(text, scene.caption), negative)
        noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        found += compare(model, noise, STEPS, CFG, HighlightConfig(correct="always"))
    lines = ["", "partial evaluations against dense ones at the same point, inside the highlight:"]
    for label, picked in (("all", found), ("of at most 35% active area", [c for c in found if c.active <= 0.35])):
        if picked:
            nearer = sum(c.nearer for c in picked)
            ratio = statistics.median(c.computed / max(c.forecast, 1e-9) for c in picked)
            lines.append(f"  {label}: {nearer} of {len(picked)} nearer than the forecast; median error {ratio:.2f} of its")
    if not found:
        lines.append("  none: no highlight was small and sharp enough in these prompts")
    return "\n".join(lines)


def contact_sheet(rows: list[Row], path: Path) -> None:
    """Dense, highlighted, difference (8 times) and some frames of the preview, a row a prompt."""
    picked = [row for row in rows if row.samples["highlight"].strip is not None][:SHEET]
    pictures = []
    for row in picked:
        dense, highlight = row.image("dense"), row.image("highlight")
        difference = np.clip(np.abs(dense - highlight) * 8, 0, 1)
        strip = [frame[: dense.shape[0]] for frame in row.samples["highlight"].strip]
        picture = np.concatenate([dense, highlight, difference, *strip], axis=1)
        pictures.append(Image.fromarray((picture * 255).round().astype(np.uint8)).reduce(SHRUNK))
    width = max(p.width for p in pictures)
    label, height = 18, pictures[0].height
    sheet = Image.new("RGB", (width, len(pictures) * (height + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (row, picture) in enumerate(zip(picked, pictures, strict=True)):
        top = i * (height + label)
        draw.text(
            (4, top + 3), f"dense | highlighted | difference x8 | highlight over the steps:   {row.scene.caption}", "black"
        )
        sheet.paste(picture, (0, top + label))
    sheet.save(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description="Dense against highlighted sampling of the demo model.")
    parser.add_argument("--prompts", type=int, default=PROMPTS_SHOWN, help="how many of the 48 committed prompts")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="pictures a prompt")
    parser.add_argument("--out", type=Path, default=PACK / "out")
    args = parser.parse_args()
    scenes = [parse_caption(line) for line in PROMPTS.read_text().splitlines()][: args.prompts]
    args.out.mkdir(parents=True, exist_ok=True)
    with backend() as source:
        rows = collect(source, scenes, args.seeds)
    contact_sheet(rows, args.out / "demo.png")
    both = [row for row in rows if COMPARED[0] in row.samples]
    report = "\n".join([
        f"{len(scenes)} prompts, {args.seeds} pictures each, {PIXELS * SIDE} px, {STEPS} steps, euler, CFG {CFG}; "
        "fidelity to dense",
        "", table(rows, ("dense", "highlight")), "",
        f"the same with the highlight computed in each longer gap (correct: always), and with more dense evaluations for about "
        f"that cost (pace 3.5), on {len(both)} of the pictures:",
        "", table(both, ("highlight", *COMPARED)), probe_lines(scenes), "",
    ])  # fmt: skip
    say(report)
    (args.out / "demo.txt").write_text(report)
    say(f"contact sheet: {args.out / 'demo.png'}")
    return 0
