"""The demo command: the same prompts dense, highlighted and by forecast alone; a table and a contact sheet.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..demo.detector import colour_map, objects_right
from ..demo.load import encode_prompt, load_plain
from ..demo.plain import PlainModel, sample
from ..demo.scenes import Scene, parse_caption
from ..demo.vae import SCALE
from ..engine.config import HighlightConfig
from ..engine.overlay import frames
from .cost import Cost, CostModel
from .fidelity import psnr, ssim
from .probe import compare
from .server import PACK, Server
from .workflow import of_type, to_prompt

PROMPTS = PACK / "demo" / "prompts.txt"
WORKFLOW = PACK / "workflows" / "highlight_demo.json"
STEPS, CFG = 30, 3.0
SEEDS = 2
VARIANTS = ("dense", "highlight", "forecast")  # forecast: the same plan, partial evaluations left to the forecast
CONFIG = HighlightConfig()
STRIP = 5  # the contact sheet shows every fifth evaluation


@dataclass
class Sample:
    """One sampled picture: RGB (256, 256, 3) in 0..1, its run as `Run.as_dict`, and frames of its preview where asked for."""

    image: np.ndarray
    run: dict
    strip: np.ndarray | None = None


class Backend(Protocol):
    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample: ...


class PlainBackend:
    """The engine on the bundled model in plain torch."""

    def __init__(self) -> None:
        self.unet, self.text, self.vae = load_plain()

    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample:
        model = PlainModel(self.unet, encode_prompt(self.text, prompt), encode_prompt(self.text, ""))
        noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
        config = replace(CONFIG, enabled=variant != "dense", correct=variant != "forecast")
        latent, run = sample(model, noise, STEPS, CFG, config)
        with torch.inference_mode():
            image = (self.vae.decode(latent / SCALE)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
        shown = frames(run, image, every=STRIP)[0].numpy() if strip else None
        return Sample(image.numpy(), run.as_dict(), shown)


class ServerBackend:
    """The demo workflow on a headless ComfyUI."""

    def __init__(self, server: Server):
        self.server = server
        self.prompt = to_prompt(json.loads(WORKFLOW.read_text()), server.get("/object_info"))

    def sample(self, prompt: str, seed: int, variant: str, strip: bool = False) -> Sample:
        graph = copy.deepcopy(self.prompt)
        sampler = of_type(graph, "KSampler")
        sampler.update(seed=seed, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal")
        graph[sampler["positive"][0]]["inputs"]["text"] = prompt
        of_type(graph, "HighlightDiffusion").update(enabled=variant != "dense", correct=variant != "forecast")
        of_type(graph, "HighlightMaskPreview")["every"] = STRIP if strip else STEPS
        outputs = self.server.run(graph)
        preview = next(o for o in outputs.values() if "highlight_runs" in o)
        saved = next(o for o in outputs.values() if "highlight_runs" not in o and "images" in o)
        shown = np.stack([self._read(i) for i in preview["images"]]) if strip else None
        return Sample(self._read(saved["images"][0]), preview["highlight_runs"][-1], shown)

    def _read(self, image: dict) -> np.ndarray:
        return np.asarray(Image.open(self.server.path_of(image)).convert("RGB"), dtype=np.float32) / 255


@contextmanager
def backend() -> Iterator[Backend]:
    """ComfyUI where COMFYUI_PATH names one, else plain torch."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        say("sampling in plain torch, without the graph: the same engine on the bundled model")
        yield PlainBackend()
        return
    say(f"starting ComfyUI ({comfyui}) on the CPU ...")
    with Server(Path(comfyui)) as server:
        yield ServerBackend(server)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Row:
    """One prompt and seed: the three samples, compared."""

    scene: Scene
    seed: int
    samples: dict[str, Sample]

    def objects(self, variant: str) -> int:
        return objects_right(self.scene, self.samples[variant].image)

    def seconds(self, variant: str) -> float:
        return self.samples[variant].run["seconds"]

    def inside(self) -> np.ndarray:
        """The objects of the dense picture, bool (H, W)."""
        return colour_map(self.samples["dense"].image) >= 0

    def psnr(self, variant: str, inside: bool = False) -> float:
        mask = self.inside() if inside else None
        if mask is not None and not mask.any():
            mask = None
        return psnr(self.samples["dense"].image, self.samples[variant].image, mask)

    def ssim(self, variant: str) -> float:
        return ssim(self.samples["dense"].image, self.samples[variant].image)


def collect(source: Backend, scenes: list[Scene], seeds: int) -> list[Row]:
    """Sample every prompt and seed in every variant, the variants in turn so that their timings pair up."""
    source.sample(scenes[0].caption, 10_000, "highlight")  # warm-up: loads models, fills caches
    rows, started, total = [], time.monotonic(), len(scenes) * seeds
    for scene in scenes:
        for seed in range(seeds):
            order = VARIANTS[len(rows) % 3 :] + VARIANTS[: len(rows) % 3]
            samples = {variant: source.sample(scene.caption, seed, variant) for variant in order}
            rows.append(Row(scene, seed, samples))
            passed = time.monotonic() - started
            sys.stdout.write(
                f"\r  {len(rows)}/{total} prompts, {passed:.0f} s, about {passed / len(rows) * (total - len(rows)):.0f} s left "
            )
            sys.stdout.flush()
    sys.stdout.write("\n")
    return rows


def _costs(rows: list[Row]) -> dict[str, Cost]:
    """MACs of all runs of each variant."""
    unet, text, _ = load_plain()
    empty = encode_prompt(text, "")
    model = CostModel(PlainModel(unet, empty, empty), (1, 4, 32, 32))
    totals = {}
    for variant in VARIANTS:
        costs = [model.of(row.samples[variant].run) for row in rows]
        totals[variant] = Cost(*(sum(getattr(c, name) for c in costs) for name in ("dense", "partial", "heatmap", "dense_run")))
    return totals


def table(rows: list[Row]) -> str:
    """The figures of the demo as text."""
    costs = _costs(rows)
    wanted = sum(len(row.scene.things) for row in rows)
    lines = [f"{'':34}" + "".join(f"{variant:>12}" for variant in VARIANTS)]

    def line(label: str, values: list[str]) -> None:
        lines.append(f"{label:34}" + "".join(f"{value:>12}" for value in values))

    def each(label: str, figure, form: str = "{:.2f}", skip_dense: bool = False) -> None:
        line(label, ["-" if skip_dense and v == "dense" else form.format(figure(v)) for v in VARIANTS])

    evaluations = {v: [e for row in rows for e in row.samples[v].run["evaluations"]] for v in VARIANTS}
    share = lambda v, kind: 100 * sum(e["kind"] == kind for e in evaluations[v]) / len(evaluations[v])  # noqa: E731
    each("sampler seconds, median", lambda v: statistics.median(row.seconds(v) for row in rows), "{:.3f}")
    each("times faster, wall clock (median)", lambda v: statistics.median(r.seconds("dense") / r.seconds(v) for r in rows))
    each("times cheaper, MACs", lambda v: costs[v].ratio)
    each("  MACs saved by skipping, %", lambda v: share(v, "skipped"), "{:.1f}")
    each("  MACs saved by partial, %", lambda v: share(v, "partial") - 100 * costs[v].partial / costs[v].dense_run, "{:.1f}")
    each("  MACs spent on heatmaps, %", lambda v: 100 * costs[v].heatmap / costs[v].dense_run, "{:.2f}")
    for kind in ("dense", "partial", "skipped"):
        each(f"evaluations {kind}, %", lambda v, kind=kind: share(v, kind), "{:.1f}")
    each("mean active area, %", lambda v: 100 * statistics.fmean(e["active"] for e in evaluations[v]), "{:.1f}")
    each("PSNR mean, dB", lambda v: statistics.fmean(row.psnr(v) for row in rows), "{:.1f}", True)
    each("PSNR worst, dB", lambda v: min(row.psnr(v) for row in rows), "{:.1f}", True)
    each("PSNR inside objects, mean, dB", lambda v: statistics.fmean(row.psnr(v, True) for row in rows), "{:.1f}", True)
    each("PSNR inside objects, worst, dB", lambda v: min(row.psnr(v, True) for row in rows), "{:.1f}", True)
    each("SSIM mean", lambda v: statistics.fmean(row.ssim(v) for row in rows), "{:.4f}", True)
    each("SSIM worst", lambda v: min(row.ssim(v) for row in rows), "{:.4f}", True)
    each(f"objects right, of {wanted}", lambda v: sum(row.objects(v) for row in rows), "{}")
    return "\n".join(lines)


def probe_lines(scenes: list[Scene]) -> str:
    """Partial evaluations against dense ones at the same points, for every other prompt, as text."""
    unet, text, _ = load_plain()
    negative, found = encode_prompt(text, ""), []
    for scene in scenes[::2]:
        model = PlainModel(unet, encode_prompt(text, scene.caption), negative)
        noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        found += compare(model, noise, STEPS, CFG, CONFIG)
    lines = ["", "partial evaluations against dense ones at the same point, inside the highlight:"]
    for label, picked in (("all", found), ("of at most 35% active area", [c for c in found if c.active <= 0.35])):
        if picked:
            nearer = sum(c.nearer for c in picked)
            ratio = statistics.median(c.computed / max(c.forecast, 1e-9) for c in picked)
            lines.append(f"  {label}: {nearer} of {len(picked)} nearer than the forecast; median error {ratio:.2f} of its")
    if not found:
        lines.append("  none: no highlight was small and sharp enough in these prompts")
    return "\n".join(lines)


def contact_sheet(source: Backend, rows: list[Row], path: Path, shown: int = 8) -> None:
    """Dense, highlighted, difference (8 times) and some frames of the preview, a row a prompt."""
    picked = [rows[i * len(rows) // min(shown, len(rows))] for i in range(min(shown, len(rows)))]
    pictures = []
    for row in picked:
        dense, highlight = row.samples["dense"].image, row.samples["highlight"].image
        difference = np.clip(np.abs(dense - highlight) * 8, 0, 1)
        strip = source.sample(row.scene.caption, row.seed, "highlight", strip=True).strip
        pictures.append(np.concatenate([dense, highlight, difference, *(frame[: dense.shape[0]] for frame in strip)], axis=1))
    width = max(p.shape[1] for p in pictures)
    label, height = 18, pictures[0].shape[0]
    sheet = Image.new("RGB", (width, len(pictures) * (height + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (row, picture) in enumerate(zip(picked, pictures, strict=True)):
        top = i * (height + label)
        draw.text(
            (4, top + 3), f"dense | highlighted | difference x8 | highlight over the steps:   {row.scene.caption}", "black"
        )
        sheet.paste(Image.fromarray((picture * 255).round().astype(np.uint8)), (0, top + label))
    sheet.save(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description="Dense against highlighted sampling of the demo model.")
    parser.add_argument("--prompts", type=int, default=12, help="how many of the 48 committed prompts")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=PACK / "out")
    args = parser.parse_args()
    scenes = [parse_caption(line) for line in PROMPTS.read_text().splitlines()][: args.prompts]
    args.out.mkdir(parents=True, exist_ok=True)
    with backend() as source:
        rows = collect(source, scenes, args.seeds)
        contact_sheet(source, rows, args.out / "demo.png")
    report = table(rows) + "\n" + probe_lines(scenes)
    say(f"{len(scenes)} prompts, {args.seeds} seeds, {STEPS} steps, euler, CFG {CFG}; fidelity against dense\n\n{report}\n")
    (args.out / "demo.txt").write_text(report + "\n")
    say(f"contact sheet: {args.out / 'demo.png'}")
    return 0
