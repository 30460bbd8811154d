"""What care costs and spares where a path is found by another model's profile: `python run.py care`.

Scenes are sampled in plain torch, densely and by the shortest path at some speeds, with no gap longer than 2 steps, than 4, and
with any gap. The second model has no profile of its own, so that the bundled one is another model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import PropertyMock, patch

import numpy as np
import torch

from ..demo.load import DENOISERS, encode_prompt, load_plain
from ..demo.plain import sample
from ..demo.plain_flow import plain_class
from ..demo.scenes import unseen_scenes
from ..demo.vae import picture_of
from ..engine.config import HighlightConfig
from ..engine.placement.context import Context
from ..tools.console import say
from ..tools.server import PACK
from .fidelity import psnr

CFG, SEED = 3.0, 9101
LIMITS = (2, 4, None)  # steps of the longest gap


def rows(kind: str, steps: int, speeds: list[float], scenes: int) -> Iterator[str]:
    """A row of the table for each speed: of each limit the plan, and mean and worst PSNR to the dense pictures."""
    network, text, vae = load_plain(kind)
    drawn = {(speed, limit): ("", []) for speed in speeds for limit in LIMITS}
    for number, scene in enumerate(unseen_scenes(scenes, SEED, (1, 2, 3))):
        model = plain_class(kind)(network, encode_prompt(text, scene.caption), encode_prompt(text, ""))
        noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(SEED * 1000 + number))
        with torch.inference_mode():
            dense = picture_of(vae, sample(model, noise, steps, CFG, HighlightConfig(enabled=False))[0]).numpy()
            for (speed, limit), (_, near) in drawn.items():
                with patch.object(Context, "careful_gap", PropertyMock(return_value=limit)):
                    latent, run = sample(model, noise, steps, CFG, HighlightConfig(speed=speed))
                near.append(psnr(dense, picture_of(vae, latent).numpy()))
                drawn[speed, limit] = run.letters, near
    for speed in speeds:
        cells = (f"`{plan}` {np.mean(near):.1f} / {min(near):.1f}" for plan, near in (drawn[speed, own] for own in LIMITS))
        yield f"| {kind} | {steps} | {speed:g} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py care", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*DENOISERS, "second"), default="second")
    parser.add_argument("--steps", default="4,6,8,10,12,20,30")
    parser.add_argument("--speeds", default="1.5,2,3")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "care")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    head = [*(f"gaps of at most {limit}" for limit in LIMITS if limit), "any gap"]
    lines = ["| model | steps | speed | " + " | ".join(head) + " |", "|---" * (3 + len(head)) + "|"]
    for steps in map(int, args.steps.split(",")):
        for row in rows(args.model, steps, [float(own) for own in args.speeds.split(",")], args.scenes):
            lines.append(row)
            say(row)
            (args.out / f"{args.model}.md").write_text("\n".join(lines) + "\n")
    return 0
