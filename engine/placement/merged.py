"""Dense evaluations that are computed on merged tokens, in few steps without guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..tuning import MERGING_PACE, PATH_WARMUP
from .context import Context, PlannedStep
from .path import forecast_in_few


def merged_in_few(plan: Sequence[PlannedStep], context: Context) -> list[PlannedStep]:
    """A plan in which some dense steps merge tokens, where a preset plans few steps: under a fast one those that end a gap, and
    where nothing is forecast those from the third step on. Each has an exact one before it, of which it remembers what sets
    tokens apart, and a computed one after it, which mends what it gets wrong. What is computed last is the result itself and
    stays exact.
    """
    plan, forecast = list(plan), forecast_in_few(context)
    if forecast is None or forecast and context.pace < MERGING_PACE:
        return plan
    free = () if forecast else free_steps(context)
    dense, merged = [i for i, step in enumerate(plan) if step.kind == "dense"], -1
    for before, own, _ in zip(dense, dense[1:], dense[2:], strict=False):
        if (own - before > 1 or own in free) and before != merged:
            plan[own], merged = replace(plan[own], merged=True), own
    return plan


def free_steps(context: Context) -> Sequence[int]:
    """The steps that need not be exact, under samplers whose errors a later computed step ends."""
    if not context.config.active or any(context.renewed) or context.traits.multiplies:
        return ()
    return range(context.first + max(context.config.warmup, PATH_WARMUP), context.last + 1)
