"""MeanCache (arXiv 2601.19961, ICLR 2026), for flows under Euler: a skipped step takes the last velocity and a share of how
the mean velocity of the last steps differs from it.

Its pack for ComfyUI computes something else: it takes the denoised latent for the velocity, continues it on a line, and decides
as it goes which steps to skip.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from torch import Tensor

from .whole import Step, at_prediction

PUBLISHED_STEPS = 50
# The computed steps that its authors found for Z-Image, by how many of 50 they are.
PUBLISHED = {
    13: (0, 1, 2, 3, 5, 9, 15, 22, 29, 36, 43, 47, 49),
    17: (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 19, 27, 35, 43, 46, 48, 49),
    20: (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 30, 38, 43, 46, 48, 49),
}
# Over how many steps the mean goes in those that are skipped after each of them, up to the last; 0 where none is.
SPANS = {
    13: (0, 0, 0, 2, 1, 1, 1, 1, 1, 1, 5, 2),
    17: (0, 0, 0, 0, 2, 2, 2, 2, 2, 1, 1, 1, 1, 5, 2, 0),
    20: (0, 0, 0, 0, 2, 2, 2, 2, 2, 5, 4, 5, 5, 1, 1, 1, 5, 2, 0),
}


def scaled(budget: int, steps: int) -> set[int]:
    """The published steps of a budget over another number of steps, of which as large a share is computed, at least two."""
    count, published = max(2, round(budget * steps / PUBLISHED_STEPS)), PUBLISHED[budget]
    chosen: list[int] = []
    for i in range(count):
        place = published[round(i * (budget - 1) / (count - 1))] * (steps - 1) / (PUBLISHED_STEPS - 1)
        chosen.append(max(round(place), chosen[-1] + 1 if chosen else 0))
    return {min(step, steps - count + i) for i, step in enumerate(chosen)}


def span(budget: int, step: int, steps: int) -> int:
    """The published span at the place of a skipped step in a run of another number of steps; one, which is plain reuse, where
    none was skipped there."""
    place = step * (PUBLISHED_STEPS - 1) / (steps - 1)
    return max(1, SPANS[budget][bisect_left(PUBLISHED[budget], place) - 1])


class MeanCache:
    """One run."""

    def __init__(self, budget: int):
        self.budget = budget
        self.states: list[tuple[float, Tensor]] = []  # sigma and latent before each step
        self.velocities: list[Tensor] = []

    def skips(self, at: Step) -> bool:
        return at.index not in scaled(self.budget, at.count)

    def forecast(self, at: Step) -> Tensor:
        back = min(span(self.budget, at.index, at.count), len(self.states))
        (start, x_start), velocity = self.states[-back], self.velocities[-back]
        mean = (at.x - x_start) / (at.sigma - start)
        slope = (velocity - mean) / (at.sigma - start)
        ahead = at.sigmas[at.index + 1] - at.sigma
        return at.x - at.sigma * (self.velocities[-1] - slope * ahead)

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        assert at.x is not None, "MeanCache works on predictions"
        self.states.append((at.sigma, at.x))
        self.velocities.append((at.x - value) / at.sigma)


def apply(model: Any, budget: int) -> Any:
    """The published schedule of `budget` steps in 50, scaled to the run's number of steps."""
    return at_prediction(model, "meancache", lambda: MeanCache(budget))
