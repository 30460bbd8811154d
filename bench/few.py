"""Presets in few steps beside dense runs of even fewer: `python run.py few --model "mmdit turbo 8" --steps 8`.

In plain torch, at the CFG that the model is made for. Fidelity is to the dense picture of the same noise and steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ..demo.detector import objects_right
from ..demo.load import DENOISERS, TURBO, encode_prompt, load_plain
from ..demo.plain import sample
from ..demo.plain_flow import plain_class
from ..demo.scenes import unseen_scenes
from ..demo.vae import picture_of
from ..engine.config import PRESETS, HighlightConfig
from ..tools.console import say
from ..tools.server import PACK
from .demo import steps_and_cfg
from .fidelity import SPREAD, psnr, spread

SEED = 7700  # of scenes and noise, that nothing was tuned on
MERGED_COST = 0.56  # of a merged evaluation at 32x32 cells, in multiply-accumulates of a dense one; run.py evaluations
HEAD = f"| way | dense evaluations | plan | PSNR {SPREAD} | objects right |\n|---|---|---|---|---|"


def table(kind: str, side: int, steps: int, cfg: float, count: int) -> str:
    """Every preset, and dense runs of fewer steps, as markdown."""
    network, text, vae = load_plain(kind)
    scenes = unseen_scenes(count, SEED)
    contexts = torch.cat([encode_prompt(text, scene.caption) for scene in scenes])
    model = plain_class(kind)(network, contexts, encode_prompt(text, ""))
    noise = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(SEED))
    total = sum(len(scene.things) for scene in scenes)

    def drawn(number: int, config: HighlightConfig) -> tuple[list[np.ndarray], str]:
        latents, run = sample(model, noise, number, cfg, config)
        with torch.inference_mode():
            return [picture_of(vae, latent[None]).numpy() for latent in latents], run.letters

    reference, _ = drawn(steps, HighlightConfig(enabled=False))

    def row(name: str, number: int, config: HighlightConfig) -> tuple[str, float]:
        pictures, plan = drawn(number, config)
        near = [psnr(a, b) for a, b in zip(reference, pictures, strict=True)]
        right, computed = sum(map(objects_right, scenes, pictures)), plan.count("D") + MERGED_COST * plan.count("M")
        return f"| {name} | {computed:.3g} | `{plan}` | {spread(near)} | {right} of {total} |", computed

    rows = [row(name, steps, HighlightConfig(**own)) for name, own in PRESETS.items()]
    fewer = sorted({round(computed) for _, computed in rows if computed < steps}, reverse=True)
    rows += [row(f"{number} steps", number, HighlightConfig(enabled=False)) for number in fewer]
    right = sum(map(objects_right, scenes, reference))
    title = (
        f"### {kind}, {side}x{side} cells, {steps} steps, CFG {cfg:g}: {count} scenes, {right} of {total} objects right, dense"
    )
    return "\n".join([title, "", HEAD, *(line for line, _ in rows), ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py few", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*DENOISERS, *TURBO), default="mmdit turbo 8")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64], help="of the square latents")
    parser.add_argument("--steps", type=int, nargs="+", default=[8])
    parser.add_argument("--cfg", type=float, help="of models that are not made for CFG 1")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "few")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg = args.cfg or steps_and_cfg(args.model)[1]
    for side in args.sides:
        for steps in args.steps:
            report = table(args.model, side, steps, cfg, args.scenes)
            say(report)
            (args.out / f"{args.model.replace(' ', '_')}_{side}_{steps}.md").write_text(report)
    return 0
