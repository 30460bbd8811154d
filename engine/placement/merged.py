"""Dense evaluations that are computed on merged tokens, in few steps without guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..tuning import MERGING_PACE
from .context import Context, PlannedStep
from .path import forecast_in_few


def merged_in_few(plan: Sequence[PlannedStep], context: Context) -> list[PlannedStep]:
    """A plan in which some dense steps merge tokens, where a fast preset plans few steps: those that end a gap, with an exact
    one before them, of which they remember what sets tokens apart, and a computed one after them, which mends what they get
    wrong. What is computed last is the result itself and stays exact.
    """
    plan = list(plan)
    if forecast_in_few(context) is None or context.pace < MERGING_PACE:
        return plan
    dense, merged = [i for i, step in enumerate(plan) if step.kind == "dense"], -1
    for before, own, _ in zip(dense, dense[1:], dense[2:], strict=False):
        if own - before > 1 and before != merged:
            plan[own], merged = replace(plan[own], merged=True), own
    return plan
