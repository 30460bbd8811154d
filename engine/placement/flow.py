"""Gaps in flows, from the pace."""

from __future__ import annotations

import math

from ..tuning import FLOW_LEAST_PACE, FLOW_PACE, FLOW_PACE_SHARE, LONG_SCHEDULE, SHORT_FLOW
from .context import FORECAST, Context, PlannedStep, filled, regional_gap


def flow_pace(context: Context) -> float:
    """The pace that forecasts of a flow allow, between `FLOW_LEAST_PACE` and little more than `FLOW_PACE`."""
    pace = max(context.pace, min(context.config.pace, FLOW_LEAST_PACE))
    return min(pace, FLOW_PACE + (pace - FLOW_PACE) / FLOW_PACE_SHARE)


def flow_gaps(length: int, pace: float, few: bool = False) -> list[int]:
    """Gaps between dense evaluations over `length` steps of a flow.

    From two steps they grow by one to the pace, on average, and before the end they shrink again in the same way to two,
    since nothing corrects what the last one gets wrong. Paces above `FLOW_PACE` grow by more, or in `few` steps to four at
    once, and the last gap then reaches beyond the end; paces under three end with a gap of one. Steps alone count:
    schedulers of flows space them by themselves.
    """
    pace = min(pace, max(length, FLOW_PACE + 1))  # no gap is longer than that, and the loops below count it down
    growth = max(1, math.floor(pace) - math.floor(FLOW_PACE) + 1)
    if few and pace > FLOW_PACE:
        length, pace, growth = length + (length > 0), 4.0, 2
    least = 2 if growth == 1 and pace >= 3 else 1
    gaps: list[int] = []
    left = length
    while left:
        paced = math.floor(pace * (len(gaps) + 1)) - math.floor(pace * len(gaps))
        gap = min(paced, gaps[-1] + growth if gaps else 2)
        while gap > 1 and (sum(range(gap, least - 1, -growth)) > left or left == gap > 2):
            gap -= 1
        gaps.append(gap)
        left -= gap
    return gaps


class FlowGaps:
    """Gaps that grow from two to the pace and shrink again."""

    def suits(self, context: Context) -> bool:
        return context.axis.is_flow and context.config.interval is None

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        pace = max(1.0, flow_pace(context))
        used = min(pace, FLOW_PACE) if context.steps < SHORT_FLOW else pace
        gaps = flow_gaps(context.last - start, used, few=context.steps < LONG_SCHEDULE)
        return filled(context, start, gaps, FORECAST, regional_gap(pace))
