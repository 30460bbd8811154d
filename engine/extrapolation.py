"""Extrapolation along the time axis, of predictions and of recorded activations alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .time_axis import DIFFUSION, TimeAxis
from .tuning import DAMPING, FLOW_DAMPING_POWER, FLOW_DAMPING_SPACING, MAX_EXTRAPOLATION

# What is held between evaluations: "eps", the noise (x - denoised) / sigma, or "x0", the denoised image.
PredictionType = Literal["eps", "x0"]
SAME_SIGMA = 1e-6  # relative difference under which two sigmas are one


def is_below(sigma: float, other: float) -> bool:
    """Whether a sigma is really below another one, and not the same but for rounding."""
    return other > sigma * (1 + SAME_SIGMA)


def spacings(sigma: float, newer: float, older: float, axis: TimeAxis) -> float:
    """How far `sigma` lies beyond `newer`, in spacings of newer and older."""
    position = axis.half_log_snr
    return (position(sigma) - position(newer)) / (position(newer) - position(older))


def extrapolation_ratio(sigma: float, newer: float, older: float, axis: TimeAxis = DIFFUSION) -> float:
    """The same, between 0 and `MAX_EXTRAPOLATION`; 0 where newer and older are at one sigma."""
    if not is_below(newer, older):
        return 0.0
    return max(0.0, min(MAX_EXTRAPOLATION, spacings(sigma, newer, older, axis)))


def extrapolate(newer: Tensor, older: Tensor, weight: float) -> Tensor:
    """newer + weight * (newer - older)."""
    return newer.lerp(older, -weight) if weight else newer


def damping(prediction: PredictionType, newer: float, older: float, axis: TimeAxis = DIFFUSION) -> float:
    """The share of the slope between predictions at two sigmas that goes on in a forecast (a damped trend, as in Gardner and
    McKenzie 1985). In flows it falls with the points' spacing, since a slope over more says less."""
    if not axis.is_flow:
        return DAMPING[prediction]
    spacing = axis.half_log_snr(newer) - axis.half_log_snr(older)
    return DAMPING["eps"] / (1 + (spacing / FLOW_DAMPING_SPACING) ** FLOW_DAMPING_POWER)


def parabola_weights(
    sigma: float, oldest: float, older: float, newest: float, axis: TimeAxis = DIFFUSION
) -> tuple[float, float, float]:
    """The Lagrange weights at `sigma` of the parabola through values at three sigmas, on the axis."""
    t, a, b, c = (axis.half_log_snr(s) for s in (sigma, oldest, older, newest))
    return (
        (t - b) * (t - c) / ((a - b) * (a - c)),
        (t - a) * (t - c) / ((b - a) * (b - c)),
        (t - a) * (t - b) / ((c - a) * (c - b)),
    )
