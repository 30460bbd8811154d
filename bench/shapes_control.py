"""SD1.5 with a ControlNet at true shape: what each kind of evaluation costs, summed over the plans of the presets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from ..demo.diffusion import normal_sigmas
from ..engine.config import PRESETS, HighlightConfig
from ..engine.partial.unet_blocks import computing_window, depth_and_alignment, recording_windows
from ..engine.partial.unet_window import Window
from ..engine.placement.context import Context
from ..engine.placement.plan import make_plan
from .cost import macs
from .timing import timed
from .true_shape import SIDE, STREAMS, build, randomise, square

AREA, STEPS = 0.25, 30
SAMPLERS = ("euler", "dpmpp_2m", "euler_ancestral")


def build_net(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """ComfyUI's own ControlNet of SD1.5 at true shape, weights random."""
    import comfy.cldm.cldm
    import comfy.ops

    net = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, hint_channels=3, model_channels=320, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4],
        num_heads=8, use_spatial_transformer=True, transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
        context_dim=768, legacy=False, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    randomise(net, torch.Generator(device).manual_seed(1))
    return net.eval()


def plan(sampler: str, preset: str, correct: str) -> Counter:
    """How many evaluations of each kind a preset plans over SD1.5's schedule."""
    config = HighlightConfig(**PRESETS[preset], correct=correct)
    sigmas = normal_sigmas(STEPS)[:-1].tolist()
    return Counter(step.kind for step in make_plan(Context.of(sigmas, config, sampler=sampler)))


@torch.no_grad()
def measure_control(repeats: int, levels: int, size: int = 8 * SIDE["SD15"]) -> list[str]:
    """The tables, as markdown. A ControlNet runs before the UNet, so their seconds add up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, side = torch.float16 if device.type == "cuda" else torch.float32, size // 8
    unet, net = build("SD15", device, dtype), build_net(device, dtype)
    depth, align = depth_and_alignment(unet, (side, side), levels)
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    x, context, hint = make(2, 4, side, side), make(2, 77, 768), make(1, 3, size, size)  # ComfyUI's hint has one row
    timesteps = torch.full((2,), 500.0, device=device)
    window = Window(square(AREA, side, align), (side, side), depth=depth)

    def dense() -> None:
        unet(x, timesteps, context, None, transformer_options={})

    def compute() -> None:
        with computing_window(unet, window, STREAMS, 1.0):
            unet(window.crop(x), timesteps, context, None, transformer_options={})

    window.begin(1.0)
    with recording_windows(unet, [window], STREAMS):
        dense()
    calls: dict[str, Callable[[], object]] = {
        "UNet": dense, "net": lambda: net(x, hint, timesteps, context), "window": compute,
    }  # fmt: skip
    counted = {name: macs(call) for name, call in calls.items()}
    return report(
        timed(calls, repeats, device, warm=False), counted, size, f"{str(dtype).removeprefix('torch.')}, {device.type}"
    )


def report(seconds: dict[str, float], counted: dict[str, int], size: int, where: str) -> list[str]:
    costs = {
        kind: {"dense": cost["UNet"] + cost["net"], "reuse": cost["window"], "compute": cost["window"] + cost["net"]}
        for kind, cost in (("seconds", seconds), ("MACs", counted))
    }
    lines = [f"### SD1.5 with a ControlNet, {size}x{size}, CFG, {where}, windows of {AREA:.0%}", "",
             "| evaluation | MACs / dense | seconds / dense |", "|---|---|---|"]  # fmt: skip
    for name, key in (("dense", "dense"), ("partial, residuals reused", "reuse"), ("partial, net computed", "compute")):
        shares = [costs[kind][key] / costs[kind]["dense"] for kind in ("MACs", "seconds")]
        lines.append(f"| {name} | {shares[0]:.3f} | {shares[1]:.3f} |")
    lines += ["", f"Dense: {costs['seconds']['dense']:.1f} s, of which the net {seconds['net']:.1f} s.", "",
              f"| {STEPS} steps | preset | highlight | dense / partial / skipped | speed-up reused | computed |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for sampler in SAMPLERS:
        for preset in PRESETS:
            for correct in ("never", "always"):
                kinds = plan(sampler, preset, correct)
                speeds = [_speed(kinds, costs["seconds"], key) for key in ("reuse", "compute")]
                shown = " / ".join(str(kinds[kind]) for kind in ("dense", "partial", "skipped"))
                lines.append(f"| {sampler} | {preset} | {correct} | {shown} | {speeds[0]:.2f} | {speeds[1]:.2f} |")
    return [*lines, ""]


def _speed(kinds: Counter, cost: dict[str, float], partial: str) -> float:
    return sum(kinds.values()) * cost["dense"] / (kinds["dense"] * cost["dense"] + kinds["partial"] * cost[partial])
