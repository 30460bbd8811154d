"""Forecasts of a prediction from earlier evaluations, apart for the whole frame and for the highlight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .trace import Boxes, inside

MAX_REACH = 4.0  # how many spacings of the last two points a straight line is trusted
# How much of the last slope goes on, measured on the demo model: all of it overshoots, none of it lags behind.
PERSISTENCE = {"noise": 0.7, "denoised": 0.5}


def extrapolate(newer: Tensor, older: Tensor, weight: float) -> Tensor:
    """newer + weight * (newer - older)."""
    return newer.lerp(older, -weight) if weight else newer


def reach(sigma: float, newer: float, older: float) -> float:
    """How far `sigma` lies beyond `newer`, in spacings of newer and older, on the axis of log sigma."""
    spacing = math.log(older) - math.log(newer)
    if spacing <= 1e-6:
        return 0.0
    return max(0.0, min(MAX_REACH, (math.log(newer) - math.log(sigma)) / spacing))


@dataclass
class Point:
    sigma: float
    value: Tensor


@dataclass
class Forecast:
    """History of one prediction (B, C, ...) along a sampling run.

    space: "noise" keeps (x - denoised) / sigma, the slope of the sampler's path, which deterministic samplers are
    linear in; "denoised" keeps the denoised image, the only smooth thing under fresh noise. Both are extrapolated in
    log sigma along the slope of the last two points, damped by `PERSISTENCE`. The inside of the highlight has a
    history of its own, which partial evaluations extend.
    """

    space: Literal["noise", "denoised"]
    whole: list[Point] = field(default_factory=list)
    inside: list[Point] = field(default_factory=list)

    def _value(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        return (x - denoised) / sigma if self.space == "noise" else denoised

    @staticmethod
    def _push(points: list[Point], sigma: float, value: Tensor) -> None:
        if points and sigma >= points[-1].sigma * (1 - 1e-6):
            points.pop()  # the same sigma again, as Heun's second evaluation: the newer one counts
        points.append(Point(sigma, value))
        del points[:-2]

    def add_dense(self, x: Tensor, denoised: Tensor, sigma: float) -> None:
        """Record a full evaluation at x; tensors are kept, not copied."""
        value = self._value(x, denoised, sigma)
        self._push(self.whole, sigma, value)
        self._push(self.inside, sigma, value)

    def add_partial(self, x: Tensor, denoised: Tensor, sigma: float) -> None:
        """Record a partial evaluation; only the inside of the highlight will be read from it."""
        self._push(self.inside, sigma, self._value(x, denoised, sigma))

    @property
    def ready(self) -> bool:
        return len(self.whole) == 2

    @property
    def last_sigma(self) -> float:
        return min(self.whole[-1].sigma, self.inside[-1].sigma)

    def _extrapolated(self, points: list[Point], sigma: float) -> Tensor:
        older, newer = points
        return extrapolate(newer.value, older.value, PERSISTENCE[self.space] * reach(sigma, newer.sigma, older.sigma))

    def predict(self, x: Tensor, sigma: float, boxes: Boxes = ()) -> Tensor:
        """Forecast the denoised image at x and sigma; inside `boxes` from the highlight's own history."""
        value = self._extrapolated(self.whole, sigma)
        if any(boxes) and self.inside[-1].sigma < self.whole[-1].sigma:
            inner = self._extrapolated(self.inside, sigma)
            value = value.clone()
            for box in inside(boxes):
                value[box] = inner[box]
        return x - sigma * value if self.space == "noise" else value
