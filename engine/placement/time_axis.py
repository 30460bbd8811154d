"""Along what predictions are smooth: positions of sigmas, rising as the noise falls."""

from __future__ import annotations

import math
from collections.abc import Callable

Axis = Callable[[float], float]
FLOW_CEILING = 1.02  # a flow starts at sigma 1, where the ratio of signal to noise is none


def log_sigma(sigma: float) -> float:
    """Minus log sigma, where x = x0 + sigma noise."""
    return -math.log(max(sigma, 1e-6))


def log_ratio(sigma: float) -> float:
    """Log of the ratio of signal to noise, where x = (1 - sigma) x0 + sigma noise: what log sigma is to the other kind."""
    return math.log((FLOW_CEILING - sigma) / max(sigma, 1e-6))
