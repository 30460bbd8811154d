"""What forecasts would cost in every gap that a plan may have, from sketches of dense runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extrapolation import PredictionType, damping
from ..time_axis import TimeAxis
from ..tuning import MAX_EXTRAPOLATION, MAX_PARABOLA, TRUSTED_SHARE
from .propagation import Answers, Numbers, Propagation

TINY = 1e-30
SPREADS = (0.25, 1.0, 4.0)  # how many times as widely as the noise pictures spread where a forecast is wrong, in equal shares


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


def gaps(values: np.ndarray, moves: np.ndarray, answers: Answers, longest: int, corrected: bool) -> Gaps:
    """All gaps of at most `longest` steps.

    values: sketches (runs, n, features) of what the sampler is given in each step. moves: the sampler's impulse response
    (n + 1, n). corrected: whether the corrector works.
    """
    lines = _Lines.of(values, answers, longest)
    at_end = lines.sums(moves)
    drift = lines.square(at_end, at_end.slope, 0)
    stale = _stale(drift, answers.sigmas) if answers.prediction == "eps" else 0.0
    drift += at_end.newest(at_end.slope, 0) ** 2 * stale
    trust = lines.trust(drift) if corrected else 0.0
    results = [lines.result(answers.propagation(moves, spread), trust, stale) for spread in SPREADS]
    return Gaps(lines.mean(drift), lines.mean(np.mean(results, 0)))


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
    """What forecasts of a gap are off by, each times its entry `pull` [a, b, k] of a table, and summed: where the newest
    prediction is held, and so many times the rise from p to a and that from a to b, [a, p, b, 1], which for forecasts are
    `slope` and 0, for the parabola through p, a and b `-older` and `newer`."""

    pull: np.ndarray
    slope: np.ndarray
    older: np.ndarray
    newer: np.ndarray

    def newest(self, rise: Numbers, end: Numbers) -> np.ndarray:
        """How often the prediction at a itself is in such a sum with so many times the rise and the end, [a, p, b, 1]."""
        return self.pull.sum(-1)[:, None, :, None] + rise - end

    def corrected(self, trust: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """How many times the rise and the end are left of it where the corrector trusts the parabola so much."""
        return (1 - trust) * self.slope - trust * self.older, trust * self.newer


@dataclass(frozen=True)
class _Lines:
    """The lines and parabolas that predictions of every gap are put on, k being a step after a.

    after: b, [a, b]. size: squares of the predictions at b, as far as they move a state, [a, b, runs]. ends: inner products of
    the rises from a to two later steps, [a, k, k, runs]. across: those of the rise from p to a and that from a to k, [a, p, k,
    runs]. rise: squares of the former, [a, p, 1, runs]. slope: how much of the rise a forecast of k adds, [a, p, k]. older,
    newer: the shares of a parabola, [a, p, b, k]. sound: where it is to be trusted. possible: where there is such a gap; both
    [a, p, b, 1].
    """

    after: np.ndarray
    size: np.ndarray
    ends: np.ndarray
    across: np.ndarray
    rise: np.ndarray
    slope: np.ndarray
    older: np.ndarray
    newer: np.ndarray
    sound: np.ndarray
    possible: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, answers: Answers, longest: int) -> _Lines:
        sigmas, axis = answers.sigmas, answers.axis
        n, reach = len(sigmas), np.arange(1, longest + 1)
        a = np.arange(n)
        before, after = a[:, None] - reach, a[:, None] + reach
        exists = before >= 0
        older, inside = np.clip(before, 0, n - 1), np.clip(after, 0, n - 1)
        points = np.ascontiguousarray(np.moveaxis(values, 1, 0), dtype=np.float32)
        rise, end = ((points[:, None] - points[older]), (points[inside] - points[:, None]))  # [a, p or k, runs, features]
        heights = np.array(sigmas if answers.prediction == "eps" else np.ones(n), dtype=np.float32)
        time = np.array([axis.half_log_snr(sigma) for sigma in sigmas], dtype=np.float32)
        along = (time[inside] - time[:, None])[:, None, :]  # [a, 1, k]
        spacing = np.where(exists, time[:, None] - time[older], 1.0)[:, :, None]  # [a, p, 1]
        damped = _shares(sigmas, older, exists, answers.prediction, axis)[:, :, None]
        at, last, back = along[:, :, None, :], along.swapaxes(1, 2)[:, None], -spacing[..., None]  # a being at 0
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = at * (at - last) / (back * (back - last)), (at - back) * at / ((last - back) * last)
        return cls(
            after=after,
            size=(points[inside] ** 2).sum(-1) * (heights[inside] ** 2)[..., None],
            ends=_products(end, end),
            across=_products(rise, end),
            rise=(rise**2).sum(-1)[:, :, None],
            slope=(damped * np.clip(along / spacing, 0, MAX_EXTRAPOLATION)).astype(np.float32),
            older=np.nan_to_num(shares[0], posinf=0, neginf=0),
            newer=np.nan_to_num(shares[1], posinf=0, neginf=0),
            sound=((after < n)[:, None] & (last[..., 0] <= MAX_PARABOLA * spacing))[..., None],
            possible=(exists[:, :, None] & (after <= n)[:, None, :])[..., None],
        )

    def sums(self, table: np.ndarray) -> _Sums:
        """What the forecasts of every gap are off by, by a table (n + 1, n) of the step after the gap and that forecast."""
        n, longest = len(self.after), self.after.shape[1]
        rows, columns = np.minimum(self.after, n), np.minimum(self.after, n - 1)
        steps = np.arange(longest)
        within = (steps[None, :] < steps[:, None])[None] & (self.after < n)[:, None, :] & (self.after <= n)[:, :, None]
        pull = np.where(within, table[rows[:, :, None], columns[:, None, :]], 0).astype(np.float32)
        slope = (self.slope @ pull.swapaxes(1, 2))[..., None]
        older, newer = (np.einsum("abk,apbk->apb", pull, own)[..., None] for own in (self.older, self.newer))
        return _Sums(pull, slope, older, newer)

    def square(self, sums: _Sums, rise: Numbers, end: Numbers, stale: Numbers = 0.0) -> np.ndarray:
        """The squares [a, p, b, runs] of a sum with so many times the rise and the end. stale: the square of what the
        prediction at a itself is off by, [a, p, 1, runs]."""
        n, longest, _, runs = self.ends.shape
        held = (sums.pull @ -self.ends.reshape(n, longest, -1)).reshape(self.ends.shape)  # with the rise to k: [a, b, k, runs]
        with_rise = -(sums.pull[:, None] @ self.across)  # [a, p, b, runs]
        held2 = -(held * sums.pull[..., None]).sum(2)[:, None]
        with_end, end2 = (np.einsum("abbr->abr", own)[:, None] for own in (held, self.ends))
        square = held2 + rise * (rise * self.rise + 2 * with_rise)
        square += sums.newest(rise, end) ** 2 * stale
        return square + end * (end * end2 + 2 * with_end + 2 * rise * self.across)

    def result(self, tables: Propagation, trust: Numbers, stale: Numbers) -> np.ndarray:
        """By what squares [a, p, b, runs] the result is off."""
        unknown, known, least = map(self.sums, (tables.unknown, tables.known, tables.at_least))
        rise, end = unknown.corrected(trust)
        own = self.square(unknown, rise + trust * (known.slope + known.older), end - trust * known.newer, stale)
        return np.maximum(own, self.square(least, *least.corrected(trust), stale))

    def trust(self, drift: np.ndarray) -> np.ndarray:
        """How much of what it knows the corrector repays, [a, p, b, runs]."""
        return np.where(self.sound, 1 / (1 + drift / (self.size[:, None] + TINY) / TRUSTED_SHARE**2), np.float32(0))

    def mean(self, squares: np.ndarray) -> np.ndarray:
        """Their mean over the runs, [a, p, b]; infinite where there is no such gap."""
        return np.where(self.possible, np.maximum(squares, 0), np.inf).mean(-1)


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products [a, i, j, runs] of [a, i, runs, features] and [a, j, runs, features]."""
    return np.moveaxis(np.moveaxis(one, 2, 1) @ np.moveaxis(other, 2, 1).swapaxes(-1, -2), 1, -1)


def _shares(
    sigmas: Sequence[float], older: np.ndarray, exists: np.ndarray, prediction: PredictionType, axis: TimeAxis
) -> np.ndarray:
    """The damping of a forecast from two steps, [a, p]."""
    share = np.zeros(older.shape, dtype=np.float32)
    for a, g in np.argwhere(exists):
        share[a, g] = damping(prediction, sigmas[a], sigmas[older[a, g]], axis)
    return share
