"""What merged evaluations cost at SD3 medium's true shape: a part of `python run.py shapes`.

Dense evaluations and merged ones of several shares are timed in turn through one of the 24 blocks on a CPU, all of them on a
GPU, and so are the matching, the gathers and the recording of detail. Medians are summed over the schedule as each preset plans
it, for merging alone and beside Highlight Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..engine.config import PACES, HighlightConfig
from ..engine.job import Job, Request
from ..engine.merging.config import PRESETS, SDTMConfig
from ..engine.merging.job import MergeJob
from ..engine.merging.key_bias import KeyBias, KeyBiasOverride
from ..engine.merging.matcher import BUCKETS
from ..engine.merging.matching import Merge
from ..engine.merging.sites import ATTENTION, MLP, MergedTokens, MergeResiduals, merging
from ..engine.merging.stages import MergingRun
from ..engine.method import DenseContext
from ..engine.partial.storage import DenseStorage
from ..engine.partial.token_subset import TokenGrid, subsets_of
from ..engine.partial.transformer import patched_blocks
from ..engine.setup import start_run
from ..engine.time_axis import FLOW
from ..engine.trace import Evaluation, RunRecord
from .timing import timed
from .true_shape import STREAMS, build_sd3

BLOCKS = 24
PARTS = (8, 16)  # of 32 that are saved
SCHEDULES = (50, 30)
PROMPT, WIDTH = 154, 64 * 24  # tokens, channels
SERVED = SDTMConfig.reuse  # evaluations by a matching
UNWEIGHTED = f"structure {PARTS[1]}/32, unweighted"
BOTH, ONE = frozenset((ATTENTION, MLP)), frozenset((MLP,))


def flow_sigmas(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """SD3's schedule, evenly spaced and shifted, its final 0 included."""
    even = [1 - i / steps for i in range(steps + 1)]
    return tuple(shift * t / (1 + (shift - 1) * t) for t in even)


def matched(grid: TokenGrid, parts: int, stage: str, device: torch.device) -> Callable[[], MergingRun]:
    """A state whose single image has just been matched with so many 32nds of its tokens saved; calling it matches anew."""
    switch = 1.0 if stage == "structure" else 0.0
    config = SDTMConfig(r=parts / BUCKETS, delta=0.0, switch=switch, mcw=1.0, protect_steps=0, reuse=1)
    state = MergingRun(config, flow_sigmas(SCHEDULES[0]), grid, 1, BLOCKS)
    latent = torch.randn(1, 16, *grid.frame, device=device)

    def match() -> MergingRun:
        state.after_dense(latent)
        state.before_dense(Evaluation(0, 10, state.sigmas[10], "dense", "", 1.0), DenseContext())
        return state

    return match


def planned(preset: str, steps: int, pace: str | None) -> list[tuple[str, int, frozenset[str]]]:
    """(what, 32nds saved, kinds) of every evaluation of a run, what being dense, whole, merged or skipped."""
    sigmas = flow_sigmas(steps)
    grid = TokenGrid((64, 64))
    merged = MergingRun(SDTMConfig(**PRESETS[preset]), sigmas, grid, 1, BLOCKS) if preset else None
    config = HighlightConfig(enabled=False)
    if pace:
        config = HighlightConfig(pace=PACES[pace], correct="never")
    record = RunRecord((1, 16, *grid.frame), "euler", sigmas)
    run = start_run(config, record, 2, subsets_of(grid, FLOW), axis=FLOW, methods=[merged] if merged else [], exact=True)
    done: list[tuple[str, int, frozenset[str]]] = []

    def dense(job: Job) -> list[torch.Tensor]:
        task = job.task(MergeJob)
        merges = task is not None and not task.record
        what = "merged" if merges else "whole" if task is not None else "dense"
        done.append((what, merged.matcher.saved if merges else 0, task.parts if merges else frozenset()))
        if job.capture is not None:  # attention that looks at nothing
            job.capture.add(torch.ones(1, 2, 4), (2, 2))
        return [torch.randn(1, 16, *grid.frame)] * 2

    for sigma in sigmas[:-1]:
        before = len(done)
        run.evaluate(Request(torch.randn(1, 16, *grid.frame), sigma, "plan"), dense)
        if len(done) == before:
            done.append(("skipped", 0, frozenset()))
    return done


def block_macs(count: int, saved: int = 0, kinds: frozenset[str] = frozenset()) -> float:
    """MACs of one block and stream with so many 32nds of `count` image tokens saved: linear layers and attention."""
    left = count * (1 - saved / BUCKETS)
    attention, mlp = (left if kind in kinds else count for kind in (ATTENTION, MLP))
    linear = 4 * attention + 8 * mlp + 12 * PROMPT
    return WIDTH**2 * linear + 2 * WIDTH * (attention + PROMPT) ** 2


@torch.no_grad()
def measure_merging(side: int, repeats: int) -> list[str]:
    """The table of SD3 medium at a picture side, as markdown."""
    from ..host.call import ATTENTION_OVERRIDE
    from ..host.dit import transformer_of
    from ..host.families.sd3 import FAMILY

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    dtype, streams, count = (torch.bfloat16, 2, BLOCKS) if gpu else (torch.float32, 1, 1)
    network, grid = build_sd3(count, device, dtype), TokenGrid((side // 8, side // 8))
    blocks, keys = list(FAMILY.blocks(network)), STREAMS[:streams]
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    x, context, pooled = make(streams, 16, *grid.frame), make(streams, PROMPT, 4096), make(streams, 2048)
    timesteps = torch.full((streams,), 500.0, device=device)

    def call(options: dict | None = None) -> None:
        network(x, timesteps, context=context, y=pooled, transformer_options=options or {})

    def unweighed(merge: Merge, kinds: frozenset[str], details: MergeResiduals, options: dict | None = None) -> None:
        tokens = MergedTokens(merge)
        with merging(blocks, FAMILY.sites, FAMILY.gather_inputs, tokens, kinds, residuals=details, keys=keys):
            call(options)

    def merged(merge: Merge, kinds: frozenset[str], details: MergeResiduals) -> None:
        override = KeyBiasOverride(grid.count, merge if ATTENTION in kinds else None, KeyBias(proportional=True))
        with patched_blocks(transformer_of(FAMILY, network), override):
            unweighed(merge, kinds, details, {ATTENTION_OVERRIDE: override})

    matches = {(stage, n): matched(grid, n, stage, device) for stage in ("structure", "detail") for n in PARTS}
    ready = {key: match().matcher.images[0].merge for key, match in matches.items()}
    details = {key: MergeResiduals(1.0) for key in ready}
    for key, merge in ready.items():  # as if recorded: what counts is its shape
        details[key].entry.parts = dict.fromkeys(
            ((b, s) for b in range(count) for s in range(2)),
            {tuple(keys): DenseStorage(make(streams, len(merge.members), WIDTH))},
        )
    calls: dict[str, Callable[[], object]] = {"dense": call}
    for stage, n in ready if gpu or side <= 1024 else [("structure", n) for n in PARTS]:
        calls[f"{stage} {n}/32"] = lambda key=(stage, n): merged(ready[key], BOTH, details[key])
    if gpu or side <= 1024:
        calls[f"detail {PARTS[1]}/32, MLP"] = lambda: merged(ready["detail", PARTS[1]], ONE, details["detail", PARTS[1]])
    middle = ("structure", PARTS[1])
    calls[UNWEIGHTED] = lambda: unweighed(ready[middle], BOTH, details[middle])
    hidden, small = make(streams, grid.count, WIDTH), {}
    for (stage, n), merge in ready.items():
        small |= _parts(f"{stage} {n}/32", MergedTokens(merge), hidden, matches[stage, n])
    seconds = {**timed(small, 5, device), **timed(calls, repeats, device, warm=gpu or side <= 1024)}
    return _table(side, streams, count, grid.count, seconds, list(calls), str(dtype).removeprefix("torch."), device.type)


def _parts(name: str, tokens: MergedTokens, hidden: Tensor, match: Callable) -> dict[str, Callable]:
    """What merging does besides the model's own work: a matching, and the gathers and scatters of one station."""
    few, own = tokens.merge(hidden), tokens.residual(hidden)
    return {
        f"{name}: matching": match,
        f"{name}: merge": lambda: tokens.merge(hidden),
        f"{name}: unmerge": lambda: tokens.unmerge(few, own),
        f"{name}: detail": lambda: tokens.residual(hidden),
    }


def _costs(name: str, count: int) -> float:
    """MACs of an evaluation of the table, over dense."""
    stage, _, rest = name.partition(" ")
    saved = int(rest.split("/")[0]) if stage in ("structure", "detail") else 0
    return block_macs(count, saved, ONE if name.endswith("MLP") else BOTH) / block_macs(count)


def _overhead(name: str, seconds: dict[str, float]) -> float:
    """Seconds of matching, gathers and scatters in a merged evaluation of all blocks."""
    base, _, end = name.partition(", ")
    places = BLOCKS * (1 if end == "MLP" else 2)
    return seconds[f"{base}: matching"] / SERVED + places * (seconds[f"{base}: merge"] + seconds[f"{base}: unmerge"])


def _table(side, streams, blocks, tokens, seconds: dict, names: list[str], dtype: str, device: str) -> list[str]:
    dense, whole = seconds["dense"], seconds["dense"] * BLOCKS / blocks
    ratio = {name: seconds[name] / dense for name in names}
    overhead = {name: _overhead(name, seconds) / whole for name in names if name != "dense"}
    middle = UNWEIGHTED.partition(", ")[0]
    matching = seconds[f"{middle}: matching"] / SERVED / whole
    weights = {middle: 1 - seconds[UNWEIGHTED] / seconds[middle]}
    recording = {"whole": 1 + 2 * BLOCKS * seconds[f"{middle}: detail"] / whole}
    measured = f"{blocks} of {BLOCKS} blocks, {streams} of 2 streams"
    lines = [f"### SDTM on SD3 medium, {side}x{side}, {dtype}, {device}, {measured}", "",
             "| evaluation | MACs / dense | seconds / dense | of which matching, gathers, scatters | weights on keys |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        own = f"{overhead[name] / (ratio[name] + matching):.2%}" if name in overhead else ""
        weighing = f"{weights[name]:.1%}" if name in weights else ""
        lines.append(f"| {name} | {_costs(name, tokens):.3f} | {ratio[name]:.3f} | {own} | {weighing} |")
    lines.append(f"| whole, recording (the latter timed apart) | 1.000 | {recording['whole']:.3f} | | |")
    parts = [f"{part} {1e3 * seconds[f'{middle}: {part}']:.1f}" for part in ("matching", "merge", "unmerge", "detail")]
    lines += ["", f"Milliseconds at {middle}, a matching ({SERVED} evaluations) and one station: {', '.join(parts)}.", "",
              "| plan | steps | dense or whole, merged, skipped | times faster, by the sum of medians | by MACs | of which "
              "matching, gathers, scatters |", "|---|---|---|---|---|---|"]  # fmt: skip
    plans = [*((preset, None) for preset in PRESETS), ("", "balanced"), ("", "fast")]
    plans += [("balanced", "balanced"), ("balanced", "fast")]
    for preset, pace in plans:
        for steps in SCHEDULES:
            plan = planned(preset, steps, pace)
            costs = {name: _costs(name, tokens) for name in names}
            times = _mean(plan, ratio | recording, tokens, matching), _mean(plan, costs, tokens, 0.0)
            kinds = [what for what, _, _ in plan]
            merging = kinds.count("merged") * overhead[middle]
            name = " + ".join([f"SDTM {preset}"] * bool(preset) + [f"Highlight {pace}"] * bool(pace))
            lines.append(f"| {name} | {steps} | {kinds.count('dense') + kinds.count('whole')}, {kinds.count('merged')}, "
                         f"{kinds.count('skipped')} | {1 / times[0]:.2f} | {1 / times[1]:.2f} | "
                         f"{merging / len(plan) / times[0]:.2%} |")  # fmt: skip
    return [*lines, "", f"Dense, {blocks} blocks: {dense:.2f} s.", ""]


def _mean(plan: list, costs: dict[str, float], tokens: int, matching: float) -> float:
    """Mean cost of a plan's evaluations over dense. Between the measured shares, and beyond the last, how far seconds depart
    from MACs is interpolated; `matching` is added to each merged evaluation."""
    total = 0.0
    for what, saved, kinds in plan:
        if what == "merged":
            stage, end = ("structure", "") if ATTENTION in kinds else ("detail", ", MLP")
            counted = block_macs(tokens, saved, kinds) / block_macs(tokens)
            known = {n: f"{stage} {n}/32{end}" for n in PARTS if f"{stage} {n}/32{end}" in costs}
            factors = [1.0, *(costs[name] / _costs(name, tokens) for name in known.values())]
            total += counted * float(np.interp(saved, [0, *known], factors)) + matching
        elif what != "skipped":
            total += costs.get(what, 1.0)
    return total / len(plan)
