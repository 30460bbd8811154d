"""What showing a run costs the sampler's thread: `python run.py live`. A listener stands in for ComfyUI's server.

The hook is timed at the latents of real models while its thread draws and sends beside it; its share is of a dense
evaluation of SD1.5 at 512x512 with CFG, timed on the real architecture with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch

from ..engine.trace import Evaluation, LatentColours, RunRecord
from ..tools.comfy import boot
from ..tools.console import say

SHAPES = {
    "SD1.5, 512x512": (1, 4, 64, 64),
    "SD1.5, 512x512, batch of 8": (8, 4, 64, 64),
    "SDXL, 1024x1024": (1, 4, 128, 128),
    "SDXL, 1024x1024, batch of 4": (4, 4, 128, 128),
    "Flux, 1024x1024": (1, 16, 128, 128),
    "Wan 2.1, 832x480, 81 frames": (1, 16, 21, 60, 104),
}
EVALUATIONS, PAUSE = 60, 0.02  # seconds the sampler has for itself between two


class Listener:
    """In the place of ComfyUI's server: takes messages and counts their bytes."""

    def __init__(self) -> None:
        self.sockets, self.sent = {"client": None}, 0
        self.messages = SimpleNamespace(qsize=lambda: 0)

    def send_sync(self, event: str, data: dict, client: str) -> None:
        self.sent += len(json.dumps(data))


def hook_seconds(shape: tuple[int, ...], device: torch.device) -> tuple[list[float], int]:
    """Seconds of the hook at each evaluation of a run of this shape, and how many bytes it sent."""
    from ..host.live import Live

    factors = tuple((0.1, 0.2, 0.3) for _ in range(shape[1]))
    run = RunRecord(shape, "euler", tuple(float(s) for s in range(EVALUATIONS, -1, -1)), colours=LatentColours(factors))
    listener, seconds = Listener(), []
    live = Live(run, listener, "client")
    for i in range(EVALUATIONS):
        denoised = torch.randn(shape, device=device)
        heat = torch.rand(shape[0], 1, shape[-2] // 2, shape[-1] // 2) if i % 3 == 0 else None
        run.evaluations.append(Evaluation(i, i, float(EVALUATIONS - i), "dense", "refresh", 1.0, heatmap=heat))
        if device.type == "cuda":
            torch.cuda.synchronize()
        before = run.preview_seconds
        live.show(denoised)
        seconds.append(run.preview_seconds - before)
        time.sleep(PAUSE)
    run.completed = True
    live.close()
    live.thread.join()
    return seconds, listener.sent


@torch.no_grad()
def dense_seconds(device: torch.device, repeats: int) -> float:
    """Median seconds of a dense evaluation of SD1.5 at 512x512 with CFG."""
    from .timing import timed
    from .true_shape import build

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet = build("SD15", device, dtype)
    x, context = torch.randn(2, 4, 64, 64, device=device, dtype=dtype), torch.randn(2, 77, 768, device=device, dtype=dtype)
    timesteps = torch.full((2,), 500.0, device=device)
    call: Any = lambda: unet(x, timesteps, context, None, transformer_options={})  # noqa: E731
    return timed({"dense": call}, repeats, device)["dense"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="dense evaluations of SD1.5 that are timed")
    repeats = parser.parse_args().repeats
    boot()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say(f"milliseconds of the sampler's thread an evaluation, {device.type}, {torch.get_num_threads()} threads of torch\n")
    say(f"{'latent':32} {'median':>8} {'worst':>8} {'KB sent':>8}")
    medians = {}
    for name, shape in SHAPES.items():
        seconds, sent = hook_seconds(shape, device)
        medians[name] = statistics.median(seconds)
        say(f"{name:32} {medians[name] * 1000:8.3f} {max(seconds) * 1000:8.3f} {sent / 1024:8.0f}")
    dense = dense_seconds(device, repeats)
    share = medians["SD1.5, 512x512"] / dense
    say(f"\na dense evaluation of SD1.5 at 512x512 with CFG takes {dense:.2f} s: the hook's share is {share:.5%}")
    return 0
