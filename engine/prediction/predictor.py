"""Predictors: what stands for a prediction that is not computed, from those that were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..extrapolation import PredictionType, damping, extrapolate, extrapolation_ratio, is_below
from ..time_axis import DIFFUSION, TimeAxis


@dataclass(frozen=True)
class Point:
    """A prediction (B, C, ...) computed at a sigma."""

    sigma: float
    value: Tensor


class Predictor(Protocol):
    """Extrapolates predictions (B, C, ...) of one type along the schedule. A new one is a class in a file of this folder and a
    row in `history.PREDICTORS`."""

    points: list[Point]  # the computed predictions that it keeps, oldest first

    def copy(self) -> Predictor:
        """Returns another one that knows the same and goes its own way; tensors are shared."""

    @property
    def ready(self) -> bool:
        """Whether enough is known to predict."""

    def add(self, sigma: float, value: Tensor) -> None:
        """Take up a computed prediction. At the sigma of the newest one, as in Heun's second evaluation, it replaces that."""

    def predict(self, sigma: float) -> Tensor:
        """Returns the prediction expected at a sigma below those of the points."""


class DampedLinear:
    """Continues the slope of the last two points along the time axis, damped.

    prediction: the type of the values. axis: the time axis of the model. More damping lags behind, less of it overshoots.
    """

    def __init__(self, prediction: PredictionType, axis: TimeAxis = DIFFUSION):
        self.prediction, self.axis = prediction, axis
        self.points: list[Point] = []

    def copy(self) -> DampedLinear:
        other = DampedLinear(self.prediction, self.axis)
        other.points = list(self.points)
        return other

    @property
    def ready(self) -> bool:
        return len(self.points) == 2

    def add(self, sigma: float, value: Tensor) -> None:
        if self.points and not is_below(sigma, self.points[-1].sigma):
            self.points.pop()
        self.points.append(Point(sigma, value))
        del self.points[:-2]

    def predict(self, sigma: float) -> Tensor:
        older, newer = self.points
        share = damping(self.prediction, newer.sigma, older.sigma, self.axis)
        ratio = extrapolation_ratio(sigma, newer.sigma, older.sigma, self.axis)
        return extrapolate(newer.value, older.value, share * ratio)
