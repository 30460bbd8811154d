"""The corrector: what the sampler was given instead of the right predictions is made up for as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..extrapolation import PredictionType, is_below, parabola_weights, spacings
from ..time_axis import DIFFUSION, TimeAxis
from ..tuning import CORRECTED_WITHIN, MAX_PARABOLA, TRUSTED_SHARE, WIDEST
from .predictor import Point
from .propagation import followed
from .response import ImpulseResponse

NO_LEVERAGE = 1e-3  # share of the largest weight under which a prediction hardly moves the next state
SMALLEST_SQUARE = 1e-12
NO_RESPONSE = ImpulseResponse((), (), one_step=True)  # knows no evaluation, so that nothing is ever owed


def _total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = terms
    return sum(others, first)


class DeferredCorrection:
    """The residuals of past forecasts, and how they are repaid.

    When a prediction is computed at the end of a gap, those forecast in it are known better: on the parabola through the
    three last computed ones. The residual of evaluation i is what the sampler should have got there minus what it got. The
    impulse response says how far that has moved the sampler off its path, and by how much to change the present answer to
    bring it back. This is a predictor-corrector in the PEC mode (as UniPC's corrector, Zhao et al. 2023, arXiv 2302.04867):
    a better order at no further evaluation.

    response: the sampler's, None to let forecasts stand. prediction, axis: as of the predictor whose forecasts these are.
    """

    def __init__(
        self, response: ImpulseResponse | None, prediction: PredictionType, axis: TimeAxis = DIFFUSION
    ):  # fmt: skip
        self.response, self.prediction, self.axis = response or NO_RESPONSE, prediction, axis
        self.forecasts: list[tuple[int, float, Tensor]] = []  # evaluation, sigma and value, since the newest computed one
        self.residuals: dict[int, Tensor] = {}  # by evaluation
        self.last_revision = 0  # the evaluation at which forecasts were last revised
        self._before_forecast: tuple[int, dict[int, Tensor]] = (-1, {})  # the residuals before the newest forecast

    def copy_from(self, other: DeferredCorrection) -> None:
        """Take over the state of another corrector; tensors are shared."""
        self.forecasts, self.residuals = list(other.forecasts), dict(other.residuals)
        self.last_revision, self._before_forecast = other.last_revision, other._before_forecast

    def answer_forecast(self, index: int, sigma: float, value: Tensor) -> Tensor:
        """Note that evaluation `index` is answered with the forecast `value`; returns the answer, residuals repaid."""
        self.forecasts.append((index, sigma, value))
        self._before_forecast = index, dict(self.residuals)
        return self._repaid(index, value)

    def answer_computed(self, index: int, sigma: float, value: Tensor, points: Sequence[Point]) -> tuple[Tensor, Tensor]:
        """Revise the forecasts before evaluation `index`, whose prediction `value` was computed at sigma; returns the answer,
        residuals repaid, and what the prediction would have been on the path, both `value` itself where nothing is owed.
        points: the computed predictions before it; the last two count."""
        if self._before_forecast[0] == index:  # the forecast of this very evaluation was not what the sampler got
            self.residuals = dict(self._before_forecast[1])
        off = self._revise(index, sigma, value, points)
        self.forecasts.clear()
        # The denoised image is what holds where the state is off: the noise in that state is more or less by as much.
        held = value if off is None or self.prediction == "x0" else value + off / sigma
        return self._repaid(index, held), self._on_path(sigma, value, off)

    def _on_path(self, sigma: float, value: Tensor, off: Tensor | None) -> Tensor:
        """What later forecasts are to stand on where the state is `off`: of normally distributed pictures that spread as widely
        as the noise, but no more than `WIDEST`, the denoised image follows the state by a share, and by as much less the noise
        does. Under samplers of one step, which have to bring back less, it is worth nothing (docs/paths.md)."""
        if off is None or self.prediction == "x0" or self.response.one_step:
            return value
        return value + (1 - followed(min(sigma**2, WIDEST), sigma)) / sigma * off

    def _revise(self, index: int, sigma: float, value: Tensor, points: Sequence[Point]) -> Tensor | None:
        """Add the residuals of this gap; returns how far the state is off its path, None where that is not known."""
        if not self.response.knows(index, sigma):
            self.residuals.clear()
            return None
        gap = [own for own in self.forecasts if own[0] < index]
        if gap and self._bracketed(gap[0][1], sigma, points):
            revised, off = self._revised(index, sigma, value, gap, points)
            trust = self._trust(off, value, sigma)
            for i, change in revised.items():
                self.residuals[i] = self.residuals[i] + trust * change if i in self.residuals else trust * change
            self.last_revision = index
        return self._displacement(index) if self.residuals else None

    def _revised(
        self, index: int, sigma: float, value: Tensor, gap: Sequence[tuple[int, float, Tensor]], points: Sequence[Point]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The residuals of a gap's forecasts, by evaluation, and how far they have moved the state."""
        older, newer = points[-2:]
        weights = {i: parabola_weights(at, older.sigma, newer.sigma, sigma, self.axis) for i, at, _ in gap}
        moves = self.response.weights[index]
        computed = [older.value, newer.value, value]
        revised = {i: sum(w * v for w, v in zip(weights[i], computed, strict=True)) - given for i, _, given in gap}
        off = _total(moves[i] * change for i, change in revised.items())
        if self.prediction == "eps":  # `value` itself is more by off / sigma, and so is what was computed from it
            share = sum(moves[i] * weights[i][2] for i, _, _ in gap) / sigma
            off = off / (1 - share) if share < 0 else off
            revised = {i: change + weights[i][2] / sigma * off for i, change in revised.items()}
        return revised, off

    def _bracketed(self, first: float, sigma: float, points: Sequence[Point]) -> bool:
        """Whether the gap from the newest point to `sigma`, forecast from `first` on, can be put on a parabola."""
        if len(points) < 2:
            return False
        older, newer = (point.sigma for point in points[-2:])
        return (
            is_below(newer, older)
            and newer >= first
            and newer > sigma
            and spacings(sigma, newer, older, self.axis) <= MAX_PARABOLA
        )

    def _trust(self, off: Tensor, value: Tensor, sigma: float) -> Tensor:
        """How much of a revision to make for each image, (B, 1, ...) in 0..1: less the further the state is off, since
        then what is computed there is not what it would be on the path."""
        dims = tuple(range(1, off.ndim))
        scale = sigma if self.prediction == "eps" else 1.0
        reference = (scale**2 * value.square().mean(dims, keepdim=True)).clamp(min=SMALLEST_SQUARE)
        share = off.square().mean(dims, keepdim=True) / reference
        return 1 / (1 + share / TRUSTED_SHARE**2)

    def _displacement(self, index: int) -> Tensor:
        """How far the residuals have the state of evaluation `index` off its path."""
        return _total(self.response.weights[index][i] * change for i, change in self.residuals.items())

    def _repaid(self, index: int, value: Tensor) -> Tensor:
        """Change an answer so that the next state is on its path again."""
        if not self.residuals:
            return value
        if index > self.last_revision + CORRECTED_WITHIN:
            self.residuals.clear()
            return value
        row = self.response.weights[index + 1]
        if abs(row[index]) <= NO_LEVERAGE * max(abs(row[i]) for i in self.residuals):
            return value  # a later prediction will move the next state
        change = self._displacement(index + 1) / row[index]
        if self.response.one_step:
            self.residuals.clear()
        else:
            self.residuals[index] = self.residuals[index] - change if index in self.residuals else -change
        return value + change
