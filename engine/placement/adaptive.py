"""Gaps between dense evaluations chosen while sampling, by how wrong the last forecasts were."""

from __future__ import annotations

import math

GROWTH = 2  # steps by which a gap may be longer than the one before
# How far a run may drift off its path in one gap, as a share of the prediction, for each unit of pace: pace 2 drifts
# as little as the quality preset, 5 as the balanced.
DRIFT_PER_PACE = 0.004


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
        """Drift at `sigma` as a share of the prediction, where the forecast was wrong by the share `error`: on average
        half of it over the way since the last dense evaluation. Of an error that is not finite nothing is known but that
        the forecast was useless."""
        if not math.isfinite(error):
            return math.inf
        return error * (self.last_sigma / sigma - 1) / 2

    def due(self, step: int) -> bool:
        """True when this step is to be dense."""
        return self.last_dense is None or step - self.last_dense >= self.gap

    def probe(self, sigma: float, error: float) -> None:
        """A partial evaluation measured the forecast where the prompt looks: too wrong there, and the gap ends."""
        if self.drift(sigma, error) > self.tolerance:
            self.gap = 1

    def computed(self, step: int, sigma: float, error: float | None) -> None:
        """A dense evaluation at `step`; `error` of the forecast there, None where there was none."""
        if error is not None and self.last_dense is not None and step > self.last_dense:
            length = step - self.last_dense
            longest = length * math.sqrt(self.tolerance / max(self.drift(sigma, error), 1e-9))
            self.gap = max(1, min(length + GROWTH, int(longest + 0.3)))
        self.last_dense, self.last_sigma = step, sigma
