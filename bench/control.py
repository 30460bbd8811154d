"""A ControlNet beside Highlight Diffusion, on the demo: `python run.py control`.

Scenes whose objects lie anywhere are sampled after their outlines, with ComfyUI's own nodes, dense and accelerated in
turn: how near the pictures are, how well the objects fill their outlines, and what it took.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..demo.control import WEIGHTS, moved, outline
from ..demo.detector import colour_map
from ..demo.scenes import Scene, held_out, object_masks, sample_scene
from ..engine.config import PRESETS, HighlightConfig
from ..engine.trace import RunRecord, Trace
from ..tools.comfy import Sampling, Subject, boot, node
from ..tools.console import say
from ..tools.server import PACK
from .fidelity import psnr, ssim

SIDE = 256
DOCS = """# Control nets: speed and fidelity beside them

Written by `python run.py control --docs`; do not edit. The demo UNet with its ControlNet, on scenes whose objects lie anywhere,
with captions it never saw, sampled after their outlines by ComfyUI's own nodes; CFG 3, one CPU core, fp32. They take turns on
every scene; the speed-up is the median of the sampler's seconds, dense by accelerated. Fidelity is against the dense picture of
the same seed. "Corrected" is `correct: always`; the rows above it leave that to `auto`. Nets: evaluations in which the net ran.

![a scene](control.jpg)

*Left to right: the outline, the balanced preset without the control net, then the methods in the order of the table. Euler.*
"""
METHODS: dict[str, dict | None] = {
    "dense": None,
    "quality": {"preset": "quality"},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
    "balanced, corrected, nets reused": {"preset": "balanced", "correct": "always", "control": "reuse"},
    "balanced, corrected, nets computed": {"preset": "balanced", "correct": "always", "control": "compute"},
}


def scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with captions never trained on, one to three objects in turn, each anywhere in the frame."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = moved(sample_scene(rng, 1 + len(found) % 3), rng)
        if held_out(scene.caption):
            found.append(scene)
    return found


def overlap(scene: Scene, image: np.ndarray) -> float:
    """Intersection over union of what the detector takes for objects and the scene's, in a picture (H, W, 3)."""
    found, wanted = colour_map(image) >= 0, object_masks(scene, image.shape[0]).any(0)
    return float((found & wanted).sum() / (found | wanted).sum())


@dataclass
class Row:
    """What came of one method."""

    seconds: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)

    def line(self, name: str, dense: Row) -> str:
        count = lambda kind: statistics.mean(run.count(kind) for run in self.runs) if self.runs else 0.0  # noqa: E731
        nets = statistics.mean(sum(e.control == "computed" for e in run.evaluations) for run in self.runs) if self.runs else 0
        speed = statistics.median(a / b for a, b in zip(dense.seconds, self.seconds, strict=True))
        near = f"{np.mean(self.psnr):.1f} / {min(self.psnr):.1f} | {min(self.ssim):.3f}" if self.psnr else "- | -"
        kinds = " / ".join(f"{count(kind):.1f}" for kind in ("dense", "partial", "skipped"))
        return f"| {name} | {speed:.2f} | {near} | {np.mean(self.overlap):.3f} | {kinds} | {nets:.1f} |"


def pipeline(subject: Subject, strength: float) -> Callable[[Any, Scene, int, Sampling], tuple]:
    """Samples a scene after its outline with stock nodes; returns the latent and the sampler's seconds."""
    net = node("ControlNetLoader", control_net_name=f"{Path(WEIGHTS).name}.safetensors")[0]

    def sample(model: Any, scene: Scene, seed: int, sampling: Sampling) -> tuple[torch.Tensor, float]:
        image = torch.from_numpy(outline(scene, SIDE)).float()[None, ..., None].expand(-1, -1, -1, 3)
        positive, negative = (node("CLIPTextEncode", clip=subject.clip, text=text)[0] for text in (scene.caption, ""))
        if strength:
            positive, negative = node(
                "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, image=image,
                strength=strength, start_percent=0.0, end_percent=1.0,
            )  # fmt: skip
        latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
        started = time.perf_counter()
        sampled = node(
            "KSampler", model=model, seed=seed, steps=sampling.steps, cfg=sampling.cfg, sampler_name=sampling.sampler,
            scheduler=sampling.scheduler, positive=positive, negative=negative, latent_image=latent, denoise=1.0,
        )[0]  # fmt: skip
        return sampled["samples"], time.perf_counter() - started

    return sample


def attached(model: Any, settings: dict | None, trace: Trace) -> Any:
    if settings is None:
        return model
    from ..host.attach import attach

    settings = dict(settings)
    preset = settings.pop("preset")
    return attach(model, HighlightConfig(**PRESETS[preset], **settings), trace)


@torch.no_grad()
def compare(asked: list[Scene], sampling: Sampling, names: list[str], out: Path) -> list[str]:
    """The table of one sampler, as markdown. Methods take turns on every scene."""
    from PIL import Image

    subject = Subject.demo()
    sample, uncontrolled = pipeline(subject, 1.0), pipeline(subject, 0.0)
    rows, left_alone = {name: Row() for name in names}, []
    sample(subject.model, asked[0], 0, Sampling(sampling.sampler, 2))
    for seed, scene in enumerate(asked):
        pictures = {}
        for name in names:
            trace = Trace()
            latent, seconds = sample(attached(subject.model, METHODS[name], trace), scene, seed, sampling)
            pictures[name] = image = subject.decode(latent)
            row = rows[name]
            row.seconds.append(seconds)
            row.overlap.append(overlap(scene, image))
            row.runs += [trace.last] if trace.last else []
            if name != "dense":
                row.psnr.append(psnr(pictures["dense"], image))
                row.ssim.append(ssim(pictures["dense"], image))
        free = subject.decode(uncontrolled(attached(subject.model, METHODS["balanced"], Trace()), scene, seed, sampling)[0])
        left_alone.append(overlap(scene, free))
        drawn = np.repeat(outline(scene, SIDE)[..., None], 3, -1).astype(np.float32)
        strip = np.concatenate([drawn, free, *pictures.values()], 1)
        Image.fromarray((strip * 255).round().astype(np.uint8)).save(out / f"control-{sampling.sampler}-{seed}.jpg", quality=90)
    return [
        f"### Demo ControlNet, {len(asked)} scenes, {sampling.sampler}, {sampling.steps} steps", "",
        "| method | speed-up | PSNR mean / worst | worst SSIM | objects in outlines, IoU | dense / partial / skipped | nets |",
        "|---|---|---|---|---|---|---|",
        *(row.line(name, rows["dense"]) for name, row in rows.items()), "",
        f"Without the control net the objects' IoU with the outlines is {np.mean(left_alone):.3f}.", "",
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py control", description="A ControlNet beside Highlight Diffusion, on the demo.")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=777, help="of the scenes")
    parser.add_argument("--samplers", default="euler,dpmpp_2m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default=";".join(METHODS), help="methods, a semicolon between; dense is always there")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "bench")
    parser.add_argument("--docs", action="store_true", help="write the tables to docs/ too")
    args = parser.parse_args()
    boot()
    from ..host.demo import show_adapters

    show_adapters()
    args.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in METHODS if name == "dense" or name in args.only.split(";")]
    asked, samplers = scenes(args.scenes, args.seed), args.samplers.split(",")
    for sampler in samplers:
        report = "\n".join(compare(asked, Sampling(sampler, args.steps), names, args.out))
        say(report)
        (args.out / f"control-{sampler}.md").write_text(report)
    if args.docs:
        write_docs(args.out, samplers, len(asked))
    return 0


def write_docs(out: Path, samplers: list[str], count: int) -> None:
    """The tables, and the first scene with three objects, as docs/control.md."""
    (PACK / "docs" / "control.md").write_text("\n".join([DOCS, *((out / f"control-{s}.md").read_text() for s in samplers)]))
    shutil.copy(out / f"control-{samplers[0]}-{min(2, count - 1)}.jpg", PACK / "docs" / "control.jpg")
