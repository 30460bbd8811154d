"""Gaps as the user lists them, spread over the schedule."""

from __future__ import annotations

from ..tuning import REGIONAL_GAP
from .context import FORECAST, SHALLOW, Context, PlannedStep, filled


def spread_gaps(length: int, gaps: tuple[int, ...]) -> list[int]:
    """Split `length` steps into gaps taken from `gaps`, spread evenly over the way.

    What does not fit is taken from the first gaps, so that the last ones, where the detail is, keep their rhythm.
    """
    placed: list[int] = []
    position = 0
    while position < length:
        gap = gaps[min(len(gaps) - 1, position * len(gaps) // length)]
        placed.append(gap)
        position += gap
    excess = position - length
    while excess and excess >= placed[0]:
        excess -= placed.pop(0)
    if excess:
        placed[0] -= excess
    return placed


class Intervals:
    """The config's own gaps, filled with forecasts unless shallow evaluations are asked for."""

    def suits(self, context: Context) -> bool:
        return isinstance(context.config.interval, tuple)

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        interval = context.config.interval
        gaps = spread_gaps(context.last - start, interval if isinstance(interval, tuple) else (1,))
        if context.shallow and context.config.shallow == "always":
            return filled(context, start, gaps, SHALLOW)
        return filled(context, start, gaps, FORECAST, REGIONAL_GAP)
