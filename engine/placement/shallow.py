"""Gaps that are filled with shallow evaluations."""

from __future__ import annotations

from ..config import HighlightConfig
from ..tuning import (
    LONG_SCHEDULE,
    SHALLOW_GROWTH_FROM,
    SHALLOW_GROWTH_SCALE,
    SHALLOW_LEAST_GROWTH,
    SHALLOW_PACE,
    SHALLOW_PACE_PER_GAP,
)
from .context import SHALLOW, Context, PlannedStep, filled


def shallow_gaps(length: int, pace: float) -> list[int]:
    """Gaps over `length` steps, growing from the first step on, at a higher pace faster and further: a step gone astray
    early leads to another picture.

    The last gap may reach beyond the end: the very last step is too close to the picture for a dense evaluation to be worth
    it, one before it is worth more.
    """
    growth = max(SHALLOW_LEAST_GROWTH, (pace - SHALLOW_GROWTH_FROM) / SHALLOW_GROWTH_SCALE)
    longest = max(2, round(pace / SHALLOW_PACE_PER_GAP))
    gaps: list[int] = []
    while sum(gaps) < length:
        gaps.append(min(longest, 1 + int((len(gaps) + 1) * growth)))
    lands_at_the_end = bool(gaps) and sum(gaps) == length and gaps[-1] > 1
    return [*gaps[:-1], gaps[-1] - 1, 2] if lands_at_the_end else gaps


def shallow_pays(steps: int, noisy: bool, config: HighlightConfig) -> bool:
    """Whether shallow evaluations are worth more than forecasts: in short schedules, from the pace on at which forecasts
    would have to reach too far, and in any schedule under fresh noise. They are not where the user asked for forecasts that the
    highlight corrects, or for gaps of a length."""
    wanted = config.interval is not None or config.correct == "always" or config.by_path
    return not wanted and (noisy or (steps < LONG_SCHEDULE and config.pace >= SHALLOW_PACE))


class ShallowGaps:
    """Shallow evaluations between dense ones."""

    def suits(self, context: Context) -> bool:
        return context.shallow and context.config.interval is None

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        if context.ends_gaps_by_noise:
            return [SHALLOW] * (context.last - start)
        return filled(context, start, shallow_gaps(context.last - start, context.config.pace), SHALLOW)
