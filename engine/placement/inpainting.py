"""Gaps where the sampler puts back what is outside the highlight, so that the highlight is all that has to be right."""

from __future__ import annotations

import math
from itertools import pairwise

from ..tuning import INPAINT_GAPS, INPAINT_GROWTH, INPAINT_LEAST_GAP, INPAINT_MORE_GAPS, INPAINT_PACE
from .context import Context, PlannedStep, filled

INSIDE = PlannedStep("partial", "the noise mask: what is outside of it is put back anyway")


def inpainting_gaps(count: int, pace: float) -> list[int]:
    """The steps from one dense evaluation to the next, the last of them to the end: `count` in all.

    What the highlight looks at outside goes stale along the schedule, in however many steps that is sampled, so there are as
    many gaps in 50 steps as in 20. They grow, since what is off at first moves everything after it.
    """
    mean_gap = max(INPAINT_LEAST_GAP, 1 + pace / INPAINT_PACE)
    gaps = math.ceil(min(INPAINT_GAPS + INPAINT_MORE_GAPS / pace, count / mean_gap))
    ends = [round(count * (end / gaps) ** INPAINT_GROWTH) for end in range(gaps + 1)]
    return [b - a for a, b in pairwise(ends)]


class InpaintingGaps:
    """The highlight in every step, and now and then a dense evaluation, by which what it looks at outside is renewed."""

    def suits(self, context: Context) -> bool:
        return context.inpaints and context.regional and context.config.interval is None

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        return filled(context, start, inpainting_gaps(context.last - start + 1, context.config.pace), INSIDE)
