"""The plan of a run: what every step of the schedule is to do, made before the first evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from ..config import ADAPTIVE, HighlightConfig
from ..time_axis import DIFFUSION, TimeAxis
from ..trace import Kind
from ..tuning import (
    FAST_PACE,
    FLOW_WARMUP,
    FLOW_WARMUP_SHORT,
    LONG_SCHEDULE,
    NOISY_SHALLOW_WARMUP,
    PATH_WARMUP,
    REGIONAL_GAP,
    SHALLOW_WARMUP,
    SHORT_FLOW,
    WARMUP,
    WARMUP_FAST,
)
from .adaptive import AdaptiveGaps, AdaptivePlacement
from .context import FORECAST, Context, Placement, PlannedStep
from .flow import FlowGaps
from .inpainting import InpaintingGaps
from .interval import Intervals
from .log_sigma import LogSigmaGaps
from .merged import merged_in_few
from .noise import hold_to_noise
from .path import ShortestPath, dense_at_cost, places_a_pace
from .shallow import ShallowGaps

# The first that suits is used.
PLACEMENTS: tuple[Placement, ...] = (
    AdaptivePlacement(), ShallowGaps(), Intervals(), ShortestPath(), InpaintingGaps(), FlowGaps(), LogSigmaGaps(),
)  # fmt: skip
Merging = Literal["exact", "record", "merge"]  # "record": exact, and what sets tokens apart is remembered
STEP_TOLERANCE = 1e-4  # relative: samplers may nudge a sigma


def warm_up(context: Context) -> int:
    """How many dense steps the run starts with: as configured, or as many as were measured to be worth it. Shallow
    evaluations need one, forecasts several."""
    config = context.config
    if config.warmup:
        return config.warmup
    if ShortestPath().suits(context) or InpaintingGaps().suits(context):
        return PATH_WARMUP
    if context.axis.is_flow:
        return FLOW_WARMUP_SHORT if context.steps < SHORT_FLOW else FLOW_WARMUP
    if context.shallow:
        return NOISY_SHALLOW_WARMUP if context.ends_gaps_by_noise else SHALLOW_WARMUP
    return WARMUP_FAST if config.pace >= FAST_PACE else WARMUP


def regional_pays(steps: int, noisy: bool, one_step: bool | None, axis: TimeAxis = DIFFUSION) -> bool:
    """Whether computing the highlight in a gap is worth at least as much as more dense evaluations.

    one_step: whether one later prediction makes up for any earlier one, None where the sampler's response is not known.
    Where it is known, that does not pay in flows, nor in long schedules of deterministic one-step samplers: there the
    corrector brings the state back exactly, and even an exact regional evaluation would no more than break even.
    """
    if one_step is None:
        return True
    return not axis.is_flow and (steps < LONG_SCHEDULE or noisy or not one_step)


def placed_by_path(context: Context) -> Context:
    """The context of a pace whose dense steps the path is to place: that of the fidelity which its preset promises, or of the
    speed which costs as much as what the rules make of the pace. Any other context as it is."""
    if not places_a_pace(context):
        return context
    if context.config.promise:
        asked = {"fidelity": context.config.promise}
    else:
        asked = {"speed": context.steps / dense_at_cost(make_plan(replace(context, errors=None)))}
    return replace(context, config=replace(context.config, **asked, shallow="auto"), regional=False)


def make_plan(context: Context) -> list[PlannedStep]:
    """Plan every step of a schedule: dense outside the range and in the warm-up, and then as the placement has it."""
    config, first, last = context.config, context.first, context.last
    if not config.active:
        return [PlannedStep("dense", inactive_because(config))] * context.steps
    plan = [PlannedStep("dense", "outside start and end percent")] * context.steps
    if last < first:
        return plan
    context = placed_by_path(context)
    start = min(first + warm_up(context) - 1, last)
    plan[first : start + 1] = [PlannedStep("dense", "warm-up")] * (start + 1 - first)
    placement = next(own for own in PLACEMENTS if own.suits(context))
    plan[start + 1 : last + 1] = placement.place(context, start)
    return hold_to_noise(plan, context) if context.ends_gaps_by_noise else plan


def expected_error(context: Context, plan: Sequence[PlannedStep]) -> float | None:
    """What the result of a plan is expected to lack, in decibels (`ErrorModel.of`); None where that is not known."""
    known = all(step.kind in ("dense", "skipped") and not step.merged for step in plan)
    if context.errors is None or not known or context.config.interval == ADAPTIVE:
        return None
    return context.errors.of([i for i, step in enumerate(plan) if step.kind == "dense"])


def inactive_because(config: HighlightConfig) -> str:
    """Why an inactive config computes every evaluation."""
    return "interval 1" if config.enabled else "off"


class Plan:
    """The steps of a run, and how an adaptive interval changes them while sampling.

    can_merge: whether tokens can be merged where the plan wants that.
    """

    def __init__(self, context: Context, can_merge: bool = False):
        context = placed_by_path(context)
        self.steps, self.regional = make_plan(context), context.regional
        if can_merge:
            self.steps = merged_in_few(self.steps, context)
        # What is done where no region can be computed: where all was left to the region, the plan of a run without one.
        self.without_region = make_plan(replace(context, inpaints=False)) if context.inpaints else None
        # What is done under fresh noise where shallow evaluations are blocked, which may reach over more of it than forecasts.
        shallow = context.shallow and context.ends_gaps_by_noise
        self.without_shallow = make_plan(replace(context, shallow=False)) if shallow else None
        self.merges = any(step.merged for step in self.steps)
        self.tail = context.traits.dense_tail
        self.expected, self.asked = expected_error(context, self.steps), context.config.fidelity or None
        self.adaptive = AdaptiveGaps(context.config.pace) if context.config.interval == ADAPTIVE else None
        regional = set(range(context.last)) if self.adaptive and self.regional else self._before("partial")
        self._recorded = {"partial": regional, "shallow": self._before("shallow")}

    def _before(self, kind: Kind) -> set[int]:
        """The dense steps whose recordings a step of this kind will use: the two before each gap that has one."""
        recorded: set[int] = set()
        dense: list[int] = []
        for i, step in enumerate(self.steps):
            if step.kind == "dense":
                dense.append(i)
            elif step.kind == kind:
                recorded.update(dense[-2:])
        return recorded

    def at(self, step: int) -> PlannedStep:
        """What a step is to do, as far as is known when it comes."""
        planned = self.steps[step]
        if self.adaptive is None or planned.kind != "skipped":
            return planned
        since = step - (self.adaptive.last_dense or 0)
        if self.adaptive.due(step):
            return PlannedStep("dense", f"refresh after {since}, by the forecast's error")
        if self.regional and self.adaptive.gap >= REGIONAL_GAP and since == -(-self.adaptive.gap // 2):
            return PlannedStep("partial", "highlight corrects the forecast and measures its error")
        return FORECAST

    def is_dense_without_region(self, step: int) -> bool:
        """Whether a step is to be dense where it was to compute the region and cannot; else it is forecast."""
        return self.without_region is not None and self.without_region[step].kind == "dense"

    def merging(self, step: int) -> Merging | None:
        """What methods that merge tokens are to do in a dense evaluation of this step; None where that is theirs to say."""
        if not self.merges:
            return None
        if self.steps[step].merged:
            return "merge"
        following = next((planned for planned in self.steps[step + 1 :] if planned.kind == "dense"), None)
        return "record" if following is not None and following.merged else "exact"

    def records(self, step: int, kind: Kind) -> bool:
        """Whether a dense evaluation of this step is to record what later ones of a kind will lack."""
        return step in self._recorded[kind]

    def saves_from(self, step: int) -> bool:
        """Whether anything is to be saved from this step on."""
        return any(planned.kind != "dense" for planned in self.steps[step:])

    def computes_region_from(self, step: int) -> bool:
        """Whether a regional evaluation may come from this step on."""
        left = self.steps[step:]
        return any(p.kind == "partial" for p in left) or bool(self.adaptive and self.regional)

    def is_tail(self, step: int) -> bool:
        """Whether this is one of the last steps, whose errors nothing corrects."""
        return step >= len(self.steps) - self.tail


def on_schedule(sigma: float, sigmas: Sequence[float], dtype: torch.dtype) -> float:
    """The sigma of the schedule that `sigma`, read from a tensor of this dtype, is but for rounding to half precision."""
    if dtype.itemsize >= 4:
        return sigma
    nearest = min(sigmas, key=lambda own: abs(own - sigma), default=sigma)
    return nearest if abs(nearest - sigma) <= torch.finfo(dtype).eps * sigma else sigma


def step_of(sigma: float, sigmas: tuple[float, ...]) -> int:
    """Index i of the step whose sigmas bracket `sigma`: sigmas[i] >= sigma > sigmas[i + 1], with 0.01% tolerance.

    Samplers evaluate between the grid's sigmas and may nudge them, so neither counting nor equality would do.
    """
    above = sum(s >= sigma * (1 - STEP_TOLERANCE) for s in sigmas[:-1])
    return max(0, above - 1)
