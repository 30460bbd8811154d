"""Spectrum: "Adaptive Spectral Feature Forecasting" (arXiv 2603.01623, CVPR 2026), of the last hidden state, as published, or
of the denoised latent, as its ports to ComfyUI and stable-diffusion.cpp have it.

Other packs lay the polynomials over the run's own steps, with a weight that grows with the window (judian17's), or over sigma,
and compute the last three steps and the first six (xmarre's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .whole import Step, at_hidden, at_prediction

PUBLISHED_STEPS = 50  # over which the published code lays its polynomials, whatever the number of steps


@dataclass(frozen=True)
class Settings:
    """growth: of the window at each computed step. mix: of the polynomial, the rest is linear. degree, ridge: of the fit by
    Chebyshev polynomials. window, warmup: at the beginning. slope: share of the linear one's, in ports whatever the gap is.
    until: share of the steps after which all are computed. kept: how many computed steps are fitted."""

    growth: float
    mix: float
    degree: int = 4
    ridge: float = 0.1
    window: float = 2.0
    warmup: int = 5
    slope: float | None = None
    until: float = 1.0
    kept: int = 100


PUBLISHED = ("moderate", "aggressive")
SETTINGS = {
    "moderate": Settings(0.75, 0.5),
    "aggressive": Settings(3.0, 1.0),
    "as ported": Settings(0.5, 0.4, degree=3, ridge=1.0, warmup=4, slope=0.5, until=0.9, kept=6),  # stable-diffusion.cpp
}


class Spectrum:
    """One run."""

    def __init__(self, own: Settings):
        self.own, self.window, self.in_a_row = own, own.window, 0
        self.points: list[tuple[int, Tensor]] = []

    def skips(self, at: Step) -> bool:
        if at.index < self.own.warmup or at.index >= self.own.until * at.count:
            return False
        return (self.in_a_row + 1) % math.floor(self.window) != 0

    def forecast(self, at: Step) -> Tensor:
        weights = self.own.mix * self._fitted(at.index)
        (i, _), (j, _) = self.points[-2:]
        ahead = self.own.slope if self.own.slope is not None else (at.index - j) / (j - i)
        weights[-1] += (1 - self.own.mix) * (1 + ahead)
        weights[-2] -= (1 - self.own.mix) * ahead
        total = weights[0] * self.points[0][1]
        for weight, (_, value) in zip(weights[1:], self.points[1:], strict=True):
            total = total + weight * value
        return total

    def _fitted(self, step: int) -> np.ndarray:
        """The weights of the computed values in the ridge regression's value at a step."""
        place = lambda n: 2 * np.asarray(n) / PUBLISHED_STEPS - 1  # noqa: E731
        basis = np.polynomial.chebyshev.chebvander(place([n for n, _ in self.points]), self.own.degree)
        wanted = np.polynomial.chebyshev.chebvander(place([step]), self.own.degree)[0]
        return np.linalg.solve(basis.T @ basis + self.own.ridge * np.eye(self.own.degree + 1), wanted) @ basis.T

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        if not computed:
            self.in_a_row += 1
            return
        self.points = [*self.points, (at.index, value)][-self.own.kept :]
        if at.index >= self.own.warmup:
            self.window, self.in_a_row = self.window + self.own.growth, 0


def apply(model: Any, own: Settings, hidden: bool) -> Any:
    """Spectrum on the last hidden state where `hidden`, else on the denoised latent."""
    return (at_hidden if hidden else at_prediction)(model, "spectrum", lambda: Spectrum(own))
