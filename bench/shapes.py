"""What partial evaluations cost at true shape: `python run.py shapes`. Real architectures with random weights.

Dense, dense with recording, dense with its cross-attention listened to, and windows of several areas are timed in turn;
printed are ratios of medians, next to the multiply-accumulates. On a GPU in half precision, on a CPU in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..demo.diffusion import normal_sigmas
from ..engine.config import PRESETS, HighlightConfig
from ..engine.partial.attention_override import SubsetOverride
from ..engine.partial.token_gather import TokenGather
from ..engine.partial.token_subset import TokenGrid, TokenSubset
from ..engine.partial.transformer import patched_blocks, record_subsets
from ..engine.partial.unet_blocks import computing_window, depth_and_alignment, recording_windows
from ..engine.partial.unet_window import Window, shallow_window
from ..engine.placement.context import Context
from ..engine.placement.plan import make_plan
from ..engine.region.heatmap import HeatmapAccumulator, token_maps
from ..engine.region.regions import grow
from ..engine.trace import LETTERS
from ..tools.comfy import boot
from ..tools.console import say
from ..tools.server import PACK
from .cost import macs
from .dit_shapes import TURBO, measure_transformer
from .merge_shapes import measure_merging
from .shapes_control import measure_control
from .timing import Clock, timed
from .true_shape import SIDE, STREAMS, build, build_sd3, square

FAMILIES = ("SD15", "SD15+ControlNet", "SDXL", "SD3", "SDTM-1024", "SDTM-2048", *TURBO)
AREAS = (0.05, 0.10, 0.25, 0.50, 0.75)
MASKS = (0.05, 0.10)  # of inpainting: what the node computes for one has a halo around it
INPAINTING_STEPS = (20, 8, 4)


def by_kind(window: Window) -> tuple[int, int, int]:
    """Bytes of one recording: rings and statistics, outside tokens of self-attention, what enters from inner blocks."""
    sizes = {"ring": 0, "tokens": 0, "within": 0}
    for module, calls in window.entries[-1].parts.items():
        ring = isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm)
        kind = "ring" if ring else "tokens" if hasattr(module, "to_q") else "within"
        sizes[kind] += sum(part.bytes for part in calls.values())
    return sizes["ring"], sizes["tokens"], sizes["within"]


@torch.no_grad()
def measure(family: str, repeats: int, levels: int) -> list[str]:
    """The table of one family, as markdown."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    streams = STREAMS[:1] if family == "SDXL" and device.type == "cpu" else STREAMS
    unet, side = build(family, device, dtype), SIDE[family]
    depth, align = depth_and_alignment(unet, (side, side), levels)
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    rows = len(streams)
    x, context = make(rows, 4, side, side), make(rows, 77, 768 if family == "SD15" else 2048)
    labels = make(rows, 2816) if family == "SDXL" else None
    timesteps = torch.full((rows,), 500.0, device=device)
    dense = lambda: unet(x, timesteps, context, labels, transformer_options={})  # noqa: E731
    frame = (side, side)
    windows = {f"{area:.0%}": Window(square(area, side, align), frame, depth=depth) for area in AREAS}
    for area in MASKS:
        around = grow(square(area, side, align), HighlightConfig.halo, align, frame)
        windows[f"mask of {area:.0%}"] = Window(around, frame, depth=depth)
    windows["shallow"] = shallow_window(frame)

    def record(windows: Sequence[Window], sigma: float = 1.0) -> None:
        for window in windows:
            window.begin(sigma)
        with recording_windows(unet, windows, streams):
            dense()

    def listen() -> None:
        from ..host.attention import HeatmapTap, cross_attention_sites

        accumulator = HeatmapAccumulator()
        tap = HeatmapTap(accumulator, cross_attention_sites(unet), [(0, "positive", None)], rows, (side, side))
        unet(x, timesteps, context, labels, transformer_options=tap.attached({}))
        accumulator.heatmap()

    def compute(window: Window) -> None:
        with computing_window(unet, window, streams, 1.0):
            unet(window.crop(x), timesteps, context, labels, transformer_options={})

    record(list(windows.values()))
    calls: dict[str, Callable[[], object]] = {
        "dense": dense,
        "recording": lambda: record([windows["25%"]]),
        "listening": listen,
    }
    calls |= {name: lambda window=window: compute(window) for name, window in windows.items()}
    counted = {name: macs(call) for name, call in calls.items()}
    seconds = timed(calls, repeats, device, warm=False)  # counting was the warm-up
    rows_named = "CFG" if rows == 2 else "one stream"
    lines = [f"### {family}, {side * 8}x{side * 8}, {rows_named}, {str(dtype).removeprefix('torch.')}, {device.type}, "
             f"{f'windows through the finest {levels} levels' if levels else 'windows through all levels'}", "",
             "| evaluation | share of the frame | MACs / dense | seconds / dense | allowed: 1.15 MACs + 3% | recorded, MB: "
             "rings | outside tokens | from within |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in calls:
        window = windows.get(name)
        y0, y1, x0, x1 = window.box if window else (0, side, 0, side)
        cost, took = counted[name] / counted["dense"], seconds[name] / seconds["dense"]
        recorded = " | ".join(f"{size / 2**20:.1f}" for size in by_kind(window)) if window else "- | - | -"
        lines.append(f"| {name} | {(y1 - y0) * (x1 - x0) / side**2:.0%} | {cost:.3f} | {took:.3f} | "
                     f"{1.15 * cost + 0.03:.3f} | {recorded} |")  # fmt: skip
    costs = {name: (counted[name] / counted["dense"], seconds[name] / seconds["dense"]) for name in calls}
    lines += ["", *inpainting_plans(costs)]
    return [*lines, "", f"Dense: {seconds['dense']:.2f} s, {counted['dense'] / 1e9:.0f} GMACs.", ""]


def inpainting_plans(costs: dict[str, tuple[float, float]]) -> list[str]:
    """What the node's plans behind noise masks cost, as markdown. costs: multiply-accumulates and seconds of each kind of
    evaluation, in dense ones; every dense evaluation of such a plan is a recording one."""
    lines = ["| inpainting plan, euler, normal | steps | evaluations | times faster, by MACs | by the sum of medians |",
             "|---|---|---|---|---|"]  # fmt: skip
    for steps in INPAINTING_STEPS:
        for preset, own in PRESETS.items():
            context = Context.of(normal_sigmas(steps)[:-1].tolist(), HighlightConfig(**own), inpaints=True)
            letters = "".join(LETTERS[step.kind] for step in make_plan(context))
            for area in MASKS:
                kinds = {"D": costs["recording"], "P": costs[f"mask of {area:.0%}"]}
                faster = [steps / sum(kinds[letter][i] for letter in letters) for i in range(2)]
                lines.append(f"| {preset}, mask of {area:.0%} | {steps} | `{letters}` | {faster[0]:.2f} | {faster[1]:.2f} |")
    return lines


def subset(share: float, grid: TokenGrid) -> TokenSubset:
    """Whole rows of tokens in the middle of the frame, about that share of it."""
    height, width = grid.frame
    rows = max(grid.patch, round(share * height / grid.patch) * grid.patch)
    start = (height - rows) // 2 // grid.patch * grid.patch
    return TokenSubset([(start, start + rows, 0, width)], grid)


@torch.no_grad()
def measure_sd3(repeats: int, blocks: int = 2) -> list[str]:
    """The table of SD3 medium at 1024x1024: `blocks` of its 24 blocks, all alike, at true width."""
    from ..host.call import ModelCall
    from ..host.dit import DiTCall, transformer_of
    from ..host.families.sd3 import FAMILY

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    network = build_sd3(blocks, device, dtype)
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    x, context, pooled = make(2, 16, 128, 128), make(2, 154, 4096), make(2, 2048)
    timesteps, grid = torch.full((2,), 500.0, device=device), TokenGrid((128, 128))

    def evaluate(x, t, c_concat, c_crossattn, control, options) -> torch.Tensor:
        return network(x, t, context=c_crossattn, y=pooled, transformer_options=options)

    options = {"uuids": STREAMS, "cond_or_uncond": [0, 1]}
    call = DiTCall(ModelCall(evaluate, x, timesteps, c_crossattn=context, options=options), FAMILY)
    transformer = transformer_of(FAMILY, network)

    def record(subsets: Sequence[TokenSubset], sigma: float = 0.9) -> None:
        for own in subsets:
            own.begin(sigma)
        record_subsets(transformer, call, subsets, grid.count)

    def listen() -> None:
        accumulator = HeatmapAccumulator()
        capture = lambda block, q, k, heads: accumulator.add(token_maps(q[:1], k[:1], heads), grid.size)  # noqa: E731
        record_subsets(transformer, call, [], grid.count, capture=capture)
        accumulator.heatmap()

    def compute(own: TokenSubset, clock: Clock | None = None) -> None:
        gather = TokenGather(own)
        override = SubsetOverride(gather, call.keys, 0.8)
        if clock is not None:
            override._full = clock.of(override._full)
        with patched_blocks(transformer, override, gather):
            call(override)

    def keys_alone(own: TokenSubset) -> float:
        clock, get = Clock(device), own.get
        own.get = clock.of(get)
        spent = clock.seconds_of(lambda: compute(own, clock))
        own.get = get
        return spent

    subsets = {share: subset(share, grid).to(device) for share in AREAS}
    for sigma in (1.0, 0.9):
        record(list(subsets.values()), sigma)
    calls: dict[str, Callable[[], object]] = {"dense": call, "recording": lambda: record([subsets[0.25]])}
    calls["listening"] = listen
    calls |= {f"{share:.0%}": lambda own=own: compute(own) for share, own in subsets.items()}
    counted = {name: macs(made) for name, made in calls.items()}
    seconds = timed(calls, repeats, device, warm=False)  # counting was the warm-up
    apart = {f"{share:.0%}": keys_alone(own) for share, own in subsets.items()}
    lines = [f"### SD3 medium, 1024x1024, CFG, {str(dtype).removeprefix('torch.')}, {device.type}, {blocks} of 24 blocks", "",
             "Of a partial evaluation, `keys` is what it takes to extrapolate the others' keys and values and to put them into "
             "their places. Listening is to every block here; the node listens to 4 of 24.", "",
             "| evaluation | share of image tokens | MACs / dense | seconds / dense | keys | without keys | allowed: 1.15 "
             "shares + 3% | recorded, MB in 24 blocks |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in calls:
        own = subsets.get(float(name.rstrip("%")) / 100) if name.endswith("%") else None
        share = len(own.active) / grid.count if own else 1.0
        recorded = f"{own.bytes / 2**20 * 24 / blocks:.0f}" if own else "-"
        cost, took = counted[name] / counted["dense"], seconds[name] / seconds["dense"]
        keys = apart.get(name, 0.0) / seconds["dense"]
        lines.append(f"| {name} | {share:.1%} | {cost:.3f} | {took:.3f} | {keys:.3f} | {took - keys:.3f} | "
                     f"{1.15 * share + 0.03:.3f} | {recorded} |")  # fmt: skip
    return [*lines, "", f"Dense, {blocks} blocks: {seconds['dense']:.2f} s, {counted['dense'] / 1e9:.0f} GMACs.", ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py shapes", description="Cost of partial evaluations at true shape.")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--levels", type=int, default=HighlightConfig.levels, help="of the UNet that windows compute; 0: all")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "bench")
    args = parser.parse_args()
    boot()
    args.out.mkdir(parents=True, exist_ok=True)
    for family in args.families:
        if family in TURBO:
            table = measure_transformer(family, args.repeats)
        elif family.startswith("SDTM-"):
            table = measure_merging(int(family.removeprefix("SDTM-")), args.repeats)
        elif family == "SD15+ControlNet":
            table = measure_control(args.repeats, args.levels)
        else:
            table = measure_sd3(args.repeats) if family == "SD3" else measure(family, args.repeats, args.levels)
        report = "\n".join(table)
        say(report)
        (args.out / f"shapes-{family}.md").write_text(report)
    return 0
