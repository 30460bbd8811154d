"""SADA: Jiang et al., "Stability-guided Adaptive Diffusion Acceleration", ICML 2025 (arXiv 2507.17135), without its pruning of
tokens, which concerns large frames: the criterion, and interpolation in the later part of the schedule.

A slope is that of the latent in the model's own scale over the share of the schedule: (beta/2)(-x + eps / sigma) for diffusion,
with beta the fall of log(alpha^2) over one step times their number, and the velocity for flows. The released code takes beta of
one of the 1000 training steps, by which its latent is hardly led on; and for flows it does not interpolate, but goes on along
the line through the last two slopes, and with the last one after that.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...host.run import time_axis_of
from .fsampler import lagrange
from .whole import Step, at_prediction

BEGIN, SWITCH, END = 10 / 50, 24 / 50, 47 / 50  # shares of the steps after which skips, interpolation and neither begin
IN_A_ROW = 4
EVERY, POINTS = 4, 4  # of the interpolation: which steps are computed, and how many it goes through
FLOW_SWITCH, FLOW_POINTS = 20 / 50, 3


class Sada:
    """One run. flow: whether sigma is a flow's time."""

    def __init__(self, flow: bool):
        self.flow, self.in_a_row = flow, 0
        self.switch, self.through = (FLOW_SWITCH, FLOW_POINTS) if flow else (SWITCH, POINTS)
        self.slopes: list[Tensor] = []
        self.points: list[tuple[float, Tensor]] = []  # step and denoised latent
        self.last: tuple[Step, Tensor] | None = None  # the step before, and its guided noise or velocity
        self.between = False  # whether a skipped step is interpolated

    def skips(self, at: Step) -> bool:
        share = (at.index - 1) / at.count  # the decision falls at the end of the step before
        if len(self.slopes) < 3 or self.in_a_row >= IN_A_ROW or not BEGIN <= share < END:
            return False
        self.between = share >= self.switch and len(self.points) >= self.through
        return (at.index - 1) % EVERY != 0 if self.between else self._is_stable(at)

    def _is_stable(self, at: Step) -> bool:
        f0, f1, f2 = self.slopes[-1], self.slopes[-2], self.slopes[-3]
        bend = f0 - 2 * f1 + f2
        return float((-bend if self.flow else (at.x - self._ahead(at)) * bend).mean()) <= 0

    def _ahead(self, at: Step) -> Tensor:
        """The latent that the slopes lead to from the one of the step before."""
        assert self.last is not None
        before, (f2, f1, f0) = self.last[0], self.slopes
        ahead = _in_model_scale(before.x, before.sigma) - (0.625 * f0 + 0.75 * f1 - 0.375 * f2) / at.count
        return ahead * math.sqrt(1 + at.sigma**2)

    def forecast(self, at: Step) -> Tensor:
        assert self.last is not None
        if self.between:
            return lagrange(self.points, float(at.index))
        if self.flow:
            return at.x - at.sigma * (2 * self.slopes[-1] - self.slopes[-2])
        return self._ahead(at) - at.sigma * self.last[1]

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        direction = (at.x - value) / at.sigma
        self.in_a_row = 0 if computed else self.in_a_row + 1
        if at.index % EVERY == 1:
            self.points = [*self.points, (float(at.index), value)][-self.through :]
        self.slopes = [*self.slopes, direction if self.flow else self._slope(at, direction)][-3:]
        self.last = at, direction

    @staticmethod
    def _slope(at: Step, noise: Tensor) -> Tensor:
        """The derivative of the model's latent by the share of the schedule, upwards in noise."""
        here, there = (math.log1p(sigma**2) for sigma in (at.sigma, at.sigmas[at.index + 1]))
        beta = (here - there) * at.count
        scale = at.sigma / math.sqrt(1 + at.sigma**2)
        return 0.5 * beta * (noise / scale - _in_model_scale(at.x, at.sigma))


def _in_model_scale(x: Any, sigma: float) -> Tensor:
    """A latent of unit signal as a variance-preserving model has it."""
    return x / math.sqrt(1 + sigma**2)


def apply(model: Any) -> Any:
    """Skips where the criterion says so, and every three of four steps from the middle on."""
    flow = time_axis_of(model).is_flow
    return at_prediction(model, "sada", lambda: Sada(flow))
