"""What forecasts would cost in every gap that a plan may have, from sketches of dense runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..extrapolation import PredictionType, damping
from ..time_axis import TimeAxis
from ..tuning import MAX_EXTRAPOLATION, MAX_PARABOLA, TRUSTED_SHARE
from .propagation import propagation

TINY = 1e-30
Numbers = np.ndarray | float


@dataclass(frozen=True)
class Gaps:
    """Every gap from a dense step `a` to a next one `b`, with `p` the dense step before it.

    Both arrays are indexed [a, a - p - 1, b - a - 1], and hold mean squares, a mean over the runs, infinite where there is no
    such gap; one step more than there are stands for the result. drift: by which the state that `b` is asked about is off.
    result: by which the result is, after all that the corrector and the model do about it.
    """

    drift: np.ndarray
    result: np.ndarray


def euler_moves(sigmas: Sequence[float], prediction: PredictionType) -> np.ndarray:
    """The impulse response (n + 1, n) of Euler's method over n steps that end at zero: what a sampler without a response of
    its own is taken for."""
    ends = np.array([*sigmas, 0.0])
    n = len(sigmas)
    moves = np.zeros((n + 1, n))
    for k in range(n):
        if prediction == "eps":
            moves[k + 1 :, k] = ends[k + 1] - ends[k]
            continue
        moves[k + 1, k] = 1 - ends[k + 1] / ends[k]
        if k + 1 < n:
            moves[k + 1 :, k] = moves[k + 1, k] * ends[k + 1 :] / ends[k + 1]
    return moves


def gaps(
    values: np.ndarray, sigmas: Sequence[float], moves: np.ndarray, prediction: PredictionType, axis: TimeAxis, longest: int,
    widest: float, corrected: bool,
) -> Gaps:  # fmt: skip
    """All gaps of at most `longest` steps.

    values: sketches (runs, n, features) of what the sampler is given in each step. moves: the sampler's impulse response
    (n + 1, n). widest: as of `propagation`. corrected: whether the corrector works.
    """
    lines = _Lines.of(values, sigmas, prediction, axis, longest)
    at_end = lines.sums(moves)
    drift = lines.square(at_end, at_end.slope, 0)
    stale = _stale(drift, sigmas) if prediction == "eps" else 0.0
    drift = lines.square(at_end, at_end.slope, 0, stale)
    trust = lines.trust(drift, sigmas if prediction == "eps" else None) if corrected else np.float32(0)
    tables = propagation(sigmas, moves, prediction, axis, widest)
    unknown, known, least = map(lines.sums, (tables.unknown, tables.known, tables.at_least))
    left, newer = (1 - trust) * unknown.slope - trust * unknown.older, trust * unknown.newer
    result = lines.square(unknown, left + trust * (known.slope + known.older), newer - trust * known.newer, stale)
    one_step = lines.square(least, (1 - trust) * least.slope - trust * least.older, trust * least.newer, stale)
    return Gaps(lines.mean(drift), lines.mean(np.maximum(result, one_step)))


def _stale(drift: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """The mean square [a, p, 1, runs] by which noise that was computed at a is off, where a ended a gap from p: the denoised
    image holds where the state is off. Before p the step is taken to be dense."""
    a, gap = np.indices(drift.shape[:2])
    p = a - gap - 1
    ended = (p > 0) & (gap > 0)
    off = np.where(ended[..., None], drift[np.maximum(p, 0), 0, gap], 0)
    return (off / np.square(sigmas)[:, None, None]).astype(np.float32)[:, :, None]


@dataclass(frozen=True)
class _Sums:
    """What forecasts of a gap are off by, each times its entry of a table, and summed. It is a vector in sketches: `held`
    [a, b, runs, features] where the newest prediction is held, and so many times the rise from p to a and that from a to b,
    [a, p, b, 1]: for forecasts `slope` and 0, for the parabola through p, a and b `-older` and `newer`. whole: the sum of the
    entries, [a, 1, b, 1]."""

    held: np.ndarray
    whole: np.ndarray
    slope: np.ndarray
    older: np.ndarray
    newer: np.ndarray


@dataclass(frozen=True)
class _Lines:
    """The lines and parabolas that predictions of every gap are put on.

    after: b, [a, b]. points: sketches (n, runs, features). rise: from p to a, [a, p, runs, features]. end: from a to b, [a, b,
    runs, features]. slope: how much of the rise a forecast of step k adds, [a, p, k]. older, newer: the shares of a parabola,
    [a, p, b, k]. sound: where it is to be trusted. possible: where there is such a gap; both [a, p, b, 1].
    """

    after: np.ndarray
    points: np.ndarray
    rise: np.ndarray
    end: np.ndarray
    slope: np.ndarray
    older: np.ndarray
    newer: np.ndarray
    sound: np.ndarray
    possible: np.ndarray

    @classmethod
    def of(
        cls, values: np.ndarray, sigmas: Sequence[float], prediction: PredictionType, axis: TimeAxis, longest: int
    ) -> _Lines:
        n, reach = len(sigmas), np.arange(1, longest + 1)
        a = np.arange(n)
        before, after = a[:, None] - reach, a[:, None] + reach
        exists = before >= 0
        older, inside = np.clip(before, 0, n - 1), np.clip(after, 0, n - 1)
        time = np.array([axis.half_log_snr(sigma) for sigma in sigmas], dtype=np.float32)
        along = (time[inside] - time[:, None])[:, None, :]  # [a, 1, k]
        spacing = np.where(exists, time[:, None] - time[older], 1.0)[:, :, None]  # [a, p, 1]
        slope = _shares(sigmas, older, exists, prediction, axis)[:, :, None] * np.clip(along / spacing, 0, MAX_EXTRAPOLATION)
        points = np.moveaxis(values, 1, 0).astype(np.float32)
        at, end, back = along[:, :, None, :], along.swapaxes(1, 2)[:, None], -spacing[..., None]  # a being at 0
        with np.errstate(divide="ignore", invalid="ignore"):
            first = at * (at - end) / (back * (back - end))
            last = (at - back) * at / ((end - back) * end)
        sound = ((after < n)[:, None] & (end[..., 0] <= MAX_PARABOLA * spacing))[..., None]
        possible = (exists[:, :, None] & (after <= n)[:, None, :])[..., None]
        return cls(
            after, points, points[:, None] - points[older], points[inside] - points[:, None], slope.astype(np.float32),
            np.nan_to_num(first, posinf=0, neginf=0), np.nan_to_num(last, posinf=0, neginf=0), sound, possible,
        )  # fmt: skip

    def sums(self, table: np.ndarray) -> _Sums:
        """What the forecasts of every gap are off by, by a table (n + 1, n) of the step after the gap and that forecast."""
        n, longest = len(self.points), self.after.shape[1]
        rows, columns = np.minimum(self.after, n), np.minimum(self.after, n - 1)
        steps = np.arange(longest)
        within = (steps[None, :] < steps[:, None])[None] & (self.after < n)[:, None, :] & (self.after <= n)[:, :, None]
        pull = np.where(within, table[rows[:, :, None], columns[:, None, :]], 0).astype(np.float32)  # [a, b, k]
        held = (pull @ -self.end.reshape(n, longest, -1)).reshape(n, longest, *self.points.shape[1:])
        slope = (self.slope @ pull.swapaxes(1, 2))[..., None]
        older, newer = (np.einsum("abk,apbk->apb", pull, own)[..., None] for own in (self.older, self.newer))
        return _Sums(held, pull.sum(-1)[:, None, :, None], slope, older, newer)

    def square(self, sums: _Sums, rise: Numbers, end: Numbers, stale: Numbers = 0.0) -> np.ndarray:
        """The squares [a, p, b, runs] of a sum's `held` with so many times the rise and the end. stale: the square of what the
        prediction at a itself is off by, [a, p, 1, runs]."""
        held, (rise2, end2, both) = sums.held, self.squares
        square = (held**2).sum(-1)[:, None] + rise**2 * rise2 + 2 * rise * _products(self.rise, held)
        square += (sums.whole + rise - end) ** 2 * stale
        return square + end * (end * end2 + 2 * (held * self.end).sum(-1)[:, None] + 2 * rise * both)

    @cached_property
    def squares(self) -> tuple[np.ndarray, ...]:
        """Of the rise and of the end, and the inner product of the two, [a, p, b, runs]."""
        rise2, end2 = (self.rise**2).sum(-1)[:, :, None], (self.end**2).sum(-1)[:, None]
        return rise2, end2, _products(self.rise, self.end)

    def trust(self, drift: np.ndarray, heights: Sequence[float] | None) -> np.ndarray:
        """How much of what it knows the corrector repays, [a, p, b, runs]. heights: sigmas, where predictions are noise."""
        inside = np.minimum(self.after, len(self.points) - 1)
        size = (self.points[inside] ** 2).sum(-1)
        if heights is not None:
            size = size * np.square(np.array(heights, dtype=np.float32))[inside][..., None]
        return np.where(self.sound, 1 / (1 + drift / (size[:, None] + TINY) / TRUSTED_SHARE**2), np.float32(0))

    def mean(self, squares: np.ndarray) -> np.ndarray:
        """Their mean over the runs, [a, p, b]; infinite where there is no such gap."""
        return np.where(self.possible, np.maximum(squares, 0), np.inf).mean(-1)


def _products(rise: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products [a, p, b, runs] of [a, p, runs, features] and [a, b, runs, features]."""
    return np.moveaxis(np.moveaxis(rise, 2, 1) @ np.moveaxis(other, 2, 1).swapaxes(-1, -2), 1, -1)


def _shares(
    sigmas: Sequence[float], older: np.ndarray, exists: np.ndarray, prediction: PredictionType, axis: TimeAxis
) -> np.ndarray:
    """The damping of a forecast from two steps, [a, p]."""
    share = np.zeros(older.shape, dtype=np.float32)
    for a, g in np.argwhere(exists):
        share[a, g] = damping(prediction, sigmas[a], sigmas[older[a, g]], axis)
    return share
