"""How good the demo model is: prompts that training never saw, judged by the exact detector.

`python run.py judge` samples with the stock KSampler of a headless ComfyUI where there is one, else in plain torch.
"""

from __future__ import annotations

import argparse
import sys

from ..demo.detector import all_right
from ..demo.load import DENOISERS, TURBO
from ..demo.scenes import unseen_scenes
from ..demo.vae import PIXELS
from ..tools.console import say
from .demo import SIDE, backend

SEED = 555  # of the prompts; the committed ones of the demo have another


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py judge", description="Objects right on prompts never trained on.")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--model", choices=(*DENOISERS, *TURBO), default="unet")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the latents, in cells of {PIXELS} pixels")
    args = parser.parse_args()
    scenes = unseen_scenes(args.prompts, SEED, objects=(1, 2, 1, 3))
    right: dict[int, list[bool]] = {}
    with backend(kind=args.model, side=args.side) as source:
        for seed, scene in enumerate(scenes):
            image = source.sample(scene.caption, seed, "dense").image
            right.setdefault(len(scene.things), []).append(all_right(scene, image))
            sys.stdout.write(f"\r  {seed + 1}/{len(scenes)} prompts, {sum(map(sum, right.values()))} right ")
            sys.stdout.flush()
    sys.stdout.write("\n")
    for count, results in sorted(right.items()):
        say(f"{count} objects: {sum(results)} of {len(results)} prompts with every object right")
    return 0
