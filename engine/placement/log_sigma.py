"""Gaps along log sigma, from the pace."""

from __future__ import annotations

from collections.abc import Sequence

from ..time_axis import DIFFUSION
from ..tuning import DENSE_TAIL, LOG_SIGMA_FIRST_GAP, LOG_SIGMA_SHARE, LOG_SIGMA_SLACK, PACE_PER_GROWTH
from .context import FORECAST, Context, PlannedStep, filled, regional_gap


def paced_gaps(sigmas: Sequence[float], pace: float, tail: int = DENSE_TAIL) -> list[int]:
    """Gaps between dense evaluations over the steps at these sigmas (descending), from the first to the last.

    A dense evaluation is due when the run has come `pace` average steps further, where distance is a quarter steps and
    three quarters log sigma: predictions change with both. A gap is at most `pace` / PACE_PER_GROWTH longer than the gap
    before it, since a forecast reaches no further than the slope it stands on was measured over, and the last `tail` steps
    are dense.
    """
    last = len(sigmas) - 1
    places = [DIFFUSION.half_log_snr(sigma) for sigma in sigmas]
    whole = max(places[-1] - places[0], 1e-6)
    way = [(1 - LOG_SIGMA_SHARE) * i / max(last, 1) + LOG_SIGMA_SHARE * (at - places[0]) / whole for i, at in enumerate(places)]
    limit, growth = pace / max(last, 1) * LOG_SIGMA_SLACK, max(1, round(pace / PACE_PER_GROWTH))
    gaps: list[int] = []
    position = 0
    while position < last:
        longest, end = gaps[-1] + growth if gaps else min(1 + growth, LOG_SIGMA_FIRST_GAP), position + 1
        while end <= last - tail and end - position < longest and way[end + 1] - way[position] <= limit:
            end += 1
        gaps.append(end - position)
        position = end
    return gaps


class LogSigmaGaps:
    """Gaps of equal distance along log sigma and steps."""

    def suits(self, context: Context) -> bool:
        return True

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        pace = max(1.0, context.pace)
        gaps = paced_gaps(context.sigmas[start : context.last + 1], pace, context.traits.dense_tail)
        return filled(context, start, gaps, FORECAST, regional_gap(pace))
