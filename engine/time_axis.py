"""The time axis along which predictions are smooth: half the log signal-to-noise ratio of a sigma."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .tuning import FLOW_CEILING

SMALLEST_SIGMA = 1e-6


@dataclass(frozen=True)
class TimeAxis:
    """How a model mixes signal and noise, and the axis that follows from it.

    is_flow: False where x = x0 + sigma noise (eps- and v-prediction), True where x = (1 - sigma) x0 + sigma noise.
    """

    is_flow: bool

    def half_log_snr(self, sigma: float) -> float:
        """Half the log signal-to-noise ratio at `sigma`, up to a constant; it rises as the noise falls (the lambda of
        DPM-Solver, Lu et al. 2022). A flow's start, where there is no signal, is given a finite value, as is all above it."""
        floor = max(sigma, SMALLEST_SIGMA)
        return math.log(max(FLOW_CEILING - sigma, SMALLEST_SIGMA) / floor) if self.is_flow else -math.log(floor)


DIFFUSION, FLOW = TimeAxis(is_flow=False), TimeAxis(is_flow=True)
