"""Gaps where the sampler puts back what is outside the highlight, so that the highlight is all that has to be right."""

from __future__ import annotations

from ..tuning import INPAINT_LEAST_GAP, INPAINT_PACE
from .context import Context, PlannedStep, filled

INSIDE = PlannedStep("partial", "the noise mask: what is outside of it is put back anyway")


def inpainting_gap(steps: int, pace: float) -> int:
    """The steps from one dense evaluation to the next: what the highlight looks at outside goes stale along the schedule, in
    however many steps that is sampled."""
    return max(INPAINT_LEAST_GAP, round(steps * min(1.0, pace / INPAINT_PACE)))


class InpaintingGaps:
    """The highlight in every step, and now and then a dense evaluation, by which what it looks at outside is renewed."""

    def suits(self, context: Context) -> bool:
        return context.inpaints and context.regional and context.config.interval is None

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        count = context.last - start
        gap = inpainting_gap(context.steps, context.config.pace)
        return filled(context, start, [gap] * count, INSIDE)
