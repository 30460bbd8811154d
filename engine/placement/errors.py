"""What a plan's forecasts are expected to cost: the sampler is known exactly, the model by its profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..extrapolation import PredictionType
from ..prediction.drift import euler_moves, gaps
from ..prediction.propagation import Answers
from ..prediction.response import ImpulseResponse
from ..profile import Profile
from ..tuning import LONGEST_GAP, WIDEST

BEST_DB = 100.0  # stands for no error at all


@dataclass(frozen=True)
class ErrorModel:
    """The expected error of plans over one schedule.

    sigmas: of the steps. profile: of the model. prediction: what is forecast. response: the sampler's; a sampler that has
    none, or evaluates more than once a step, is taken for Euler's. corrected: whether the corrector works.
    """

    sigmas: tuple[float, ...]
    profile: Profile
    prediction: PredictionType
    response: ImpulseResponse | None = None
    corrected: bool = True

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def exact(self) -> bool:
        """Whether the sampler's own response is used."""
        known = self.response
        return known is not None and len(known.sigmas) == self.steps and all(map(known.knows, range(self.steps), self.sigmas))

    @cached_property
    def scale(self) -> float:
        """The mean square of a picture's latent."""
        return float((self._denoised[:, -1] ** 2).sum(-1).mean())

    @cached_property
    def _denoised(self) -> np.ndarray:
        """Sketches (runs, steps, features) of the denoised images along the schedule."""
        return self.profile.at(self.sigmas, "x0")

    @cached_property
    def costs(self) -> np.ndarray:
        """The mean square that every gap adds to the error of the result, as `drift.Gaps` has them."""
        moves = np.array(self.response.weights) if self.exact and self.response else euler_moves(self.sigmas, self.prediction)
        answers = Answers(self.sigmas, self.prediction, self.profile.axis, WIDEST * self.scale)
        values = answers.on_own_path(self._denoised, self.profile.at(self.sigmas, "eps"), moves)
        return gaps(values, moves, answers, min(LONGEST_GAP, len(self.sigmas)), self.corrected).result

    def decibels(self, error: float) -> float:
        """The signal-to-noise ratio of the result for the mean square of its error."""
        return min(BEST_DB, 10 * math.log10(self.scale / max(error, 1e-30)))

    def of(self, dense: Sequence[int]) -> float | None:
        """The expected error, in decibels, of a plan with these dense steps (and forecasts between them); None where a gap
        is longer than was looked at, or comes before two steps were dense."""
        total = 0.0
        for i, (a, b) in enumerate(pairwise([*dense, len(self.sigmas)])):
            if b - a == 1:
                continue
            back = a - dense[i - 1] if i else 0
            longest = self.costs.shape[1]
            if back < 1 or max(back, b - a) > longest:
                return None
            total += float(self.costs[a, back - 1, b - a - 1])
        return self.decibels(total)
