"""Gaps between dense evaluations chosen while sampling, by how wrong the last forecasts were."""

from __future__ import annotations

import math

from ..config import ADAPTIVE
from ..tuning import ADAPTIVE_GROWTH, ADAPTIVE_ROUNDING, DRIFT_PER_PACE
from .context import FORECAST, Context, PlannedStep


class AdaptivePlacement:
    """Leaves the steps between warm-up and end open: they are planned as forecasts, and `AdaptiveGaps` says while sampling
    which of them are not."""

    def suits(self, context: Context) -> bool:
        return context.config.interval == ADAPTIVE

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        count = context.last - start
        tail = min(count, context.traits.dense_tail)
        return [FORECAST] * (count - tail) + [PlannedStep("dense", "last steps")] * tail


class AdaptiveGaps:
    """A step-size control, as solvers of differential equations have one: the drift of a gap is estimated from the error
    of the forecast at its end, it grows with the square of the gap's length, and the next gap is as long as it may be.
    """

    def __init__(self, pace: float):
        self.tolerance = DRIFT_PER_PACE * pace
        self.gap = 1
        self.last_dense: int | None = None
        self.last_sigma = math.inf

    def drift(self, sigma: float, error: float) -> float:
        """The drift at `sigma` as a share of the prediction, where the forecast was wrong by the share `error`: on average
        half of it over the way since the last dense evaluation. It is infinite where the error is not finite."""
        if not math.isfinite(error):
            return math.inf
        return error * (self.last_sigma / sigma - 1) / 2

    def due(self, step: int) -> bool:
        """Whether this step is to be dense."""
        return self.last_dense is None or step - self.last_dense >= self.gap

    def probe(self, sigma: float, error: float) -> None:
        """Take up the error that a regional evaluation measured inside the highlight: a large one ends the gap."""
        if self.drift(sigma, error) > self.tolerance:
            self.gap = 1

    def computed(self, step: int, sigma: float, error: float | None) -> None:
        """Take up a dense evaluation at `step` and the `error` of the forecast there, None where there was none."""
        if error is not None and self.last_dense is not None and step > self.last_dense:
            length = step - self.last_dense
            longest = length * math.sqrt(self.tolerance / max(self.drift(sigma, error), 1e-9))
            self.gap = max(1, min(length + ADAPTIVE_GROWTH, int(longest + ADAPTIVE_ROUNDING)))
        self.last_dense, self.last_sigma = step, sigma
