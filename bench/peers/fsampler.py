"""FSampler (arXiv 2511.09180), as its pack's simple node has it since 2026-01: the denoised latent of a skipped step is
extrapolated in sigma, by Lagrange's polynomial through the last computed ones.

The node also divides by a running ratio of norms, which is left out: since it has the value just computed among its points, it
compares that with itself, and the ratio is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .whole import Step, at_prediction

FIRST, LAST = 2, 3  # steps at either end that are always computed
MODES = {"h2": 2, "h3": 3, "adaptive": None}  # how many computed steps come before each skipped one
TOLERANCE, ANCHOR, IN_A_ROW = 0.10, 4, 4  # of the adaptive mode


def lagrange(points: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """The value at `at` of the polynomial through points (place, value) of differing places."""
    total = torch.zeros_like(points[0][1])
    for i, (place, value) in enumerate(points):
        weight = 1.0
        for j, (other, _) in enumerate(points):
            weight *= (at - other) / (place - other) if j != i else 1.0
        total += weight * value
    return total


class FSampler:
    """One run. calls: how many computed steps come before each skipped one, and points of the polynomial; None for the adaptive
    mode, which skips where polynomials through two and three points lead to states that differ by at most a tenth."""

    def __init__(self, calls: int | None):
        self.calls, self.points, self.in_a_row = calls, [], 0

    def skips(self, at: Step) -> bool:
        if at.index < FIRST or at.index >= at.count - LAST or len(self.points) < (self.calls or 3):
            return False
        if self.calls:
            first = max(FIRST, self.calls)
            return (at.index - first) % (self.calls + 1) == self.calls
        if self.in_a_row >= IN_A_ROW or (at.index - FIRST) % ANCHOR == 0:
            return False
        return self._difference(at) <= TOLERANCE

    def _difference(self, at: Step) -> float:
        """Of the states that Euler's step leads to by either polynomial, relative root mean square."""
        share = at.sigmas[at.index + 1] / at.sigma
        low, high = (share * at.x + (1 - share) * lagrange(self.points[-n:], at.sigma) for n in (2, 3))
        return float((high - low).square().mean().sqrt() / high.square().mean().sqrt())

    def forecast(self, at: Step) -> Tensor:
        return lagrange(self.points[-(self.calls or 3) :], at.sigma)

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        self.in_a_row = 0 if computed else self.in_a_row + 1
        if computed:
            self.points = [*self.points, (at.sigma, value)][-4:]


def apply(model: Any, mode: str) -> Any:
    """One of the node's `MODES`."""
    return at_prediction(model, "fsampler", lambda: FSampler(MODES[mode]))
