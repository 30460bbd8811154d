"""Writes the bundled profiles, of the demo models: `python run.py profiles`. Some minutes on a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..demo.load import encode_prompt, load_plain
from ..demo.plain import PlainModel
from ..demo.plain_flow import PlainFlow
from ..demo.scenes import unseen_scenes
from ..engine.profile import BUNDLED, Profile, Recorder, write_profile
from .console import say

KINDS: dict[str, tuple[Any, str]] = {"unet": (PlainModel, "diffusion"), "mmdit": (PlainFlow, "flow")}
SCENES, FIRST_NOISE = 1919, 7000  # seeds, used for nothing else
STEPS, CFG, PICTURES = 30, 3.0, 8


@torch.inference_mode()
def profile(kind: str) -> Profile:
    """Of a demo model: pictures of scenes that training never saw, by Euler's method, in one batch."""
    denoiser, text, _ = load_plain(kind)
    prompts = [encode_prompt(text, scene.caption) for scene in unseen_scenes(PICTURES, SCENES, (1, 2, 3, 0))]
    model = KINDS[kind][0](denoiser, torch.cat(prompts), encode_prompt(text, ""))
    seeds = [torch.Generator().manual_seed(FIRST_NOISE + i) for i in range(PICTURES)]
    sigmas, recorder = model.sigmas(STEPS), Recorder((CFG, 1 - CFG))
    x = model.noised(torch.cat([torch.randn(1, 4, 32, 32, generator=seed) for seed in seeds]), sigmas[0])
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        positive, negative = model(x, sigma)
        recorder.add(x, [positive, negative], sigma)
        x = x + (x - negative - CFG * (positive - negative)) / sigma * (following - sigma)
    return Profile(recorder.runs(), model.axis, f"demo {kind}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py profiles", description="Writes the bundled profiles.")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for kind, (_, name) in KINDS.items():
        write_profile(profile(kind), args.out / f"{name}.safetensors")
        say(f"{args.out / name}.safetensors: {(args.out / f'{name}.safetensors').stat().st_size} bytes")
    return 0
