"""How far forecasts would take the sampler off its path in every gap that a plan may have, from sketches of dense runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extrapolation import PredictionType, damping
from ..time_axis import TimeAxis
from ..tuning import MAX_EXTRAPOLATION, MAX_PARABOLA, TRUSTED_SHARE

TINY = 1e-30


@dataclass(frozen=True)
class Gaps:
    """Every gap from a dense step `a` to a next one `b`, with `p` the dense step before it.

    Both arrays are indexed [a, a - p - 1, b - a - 1], and hold mean squares of the sampler's state, a mean over the runs; one
    step more than there are stands for the result. drift: how far the state that `b` is asked about is off. kept: how far it
    is off once the corrector has done what it can.
    """

    drift: np.ndarray
    kept: np.ndarray


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
    corrected: bool,
) -> Gaps:  # fmt: skip
    """All gaps of at most `longest` steps.

    values: sketches (runs, n, features) of what the sampler is given in each step. moves: the sampler's impulse response
    (n + 1, n). corrected: whether the corrector works.
    """
    n, reach = len(sigmas), np.arange(1, longest + 1)
    a = np.arange(n)
    before, after = a[:, None] - reach, a[:, None] + reach
    exists = before >= 0
    older, inside = np.clip(before, 0, n - 1), np.clip(after, 0, n - 1)
    time = np.array([axis.half_log_snr(sigma) for sigma in sigmas], dtype=np.float32)
    heights = np.array(sigmas, dtype=np.float32)
    points = np.moveaxis(values, 1, 0).astype(np.float32)  # (n, runs, features)
    pull = _pull(moves, a, after, n)  # [a, b, k]
    along = (time[inside] - time[:, None])[:, None, :]  # [a, 1, k]
    spacing = np.where(exists, time[:, None] - time[older], 1.0)[:, :, None]  # [a, p, 1]
    share = _shares(sigmas, older, exists, prediction, axis)
    slope = share[:, :, None] * np.clip(along / spacing, 0, MAX_EXTRAPOLATION)  # [a, p, k]
    lost = (points[:, None] - points[inside]).reshape(n, longest, -1)
    held = (pull @ lost).reshape(n, longest, *points.shape[1:])  # how far the state is off by forecasts that do not slope
    rise = points[:, None] - points[older]  # [a, p, runs, features]
    cross = _products(rise, held)  # [a, p, b, runs]
    s = (slope @ pull.swapaxes(1, 2))[..., None]
    held2, rise2 = (held**2).sum(-1)[:, None], (rise**2).sum(-1)[:, :, None]
    drift = held2 + 2 * s * cross + s**2 * rise2
    kept = drift
    if corrected:
        end = points[inside] - points[:, None]  # [a, b, runs, features]
        first, last, sound = _parabola(pull, along, spacing, after, n)
        size = (points[inside] ** 2).sum(-1) * (heights[inside][..., None] ** 2 if prediction == "eps" else 1)
        trust = np.where(sound, 1 / (1 + drift / (size[:, None] + TINY) / TRUSTED_SHARE**2), np.float32(0))
        first, last = trust * first - (1 - trust) * s, trust * last
        kept = (
            held2 + first**2 * rise2 + last**2 * (end**2).sum(-1)[:, None] - 2 * first * cross
            + 2 * last * (held * end).sum(-1)[:, None] - 2 * first * last * _products(rise, end)
        )  # fmt: skip
    possible = (exists[:, :, None] & (after <= n)[:, None, :])[..., None]
    drift, kept = (np.where(possible, np.maximum(own, 0), np.inf).mean(-1) for own in (drift, kept))
    return Gaps(drift, kept)


def _products(rise: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products [a, p, b, runs] of [a, p, runs, features] and [a, b, runs, features]."""
    return np.moveaxis(np.moveaxis(rise, 2, 1) @ np.moveaxis(other, 2, 1).swapaxes(-1, -2), 1, -1)


def _pull(moves: np.ndarray, a: np.ndarray, after: np.ndarray, n: int) -> np.ndarray:
    """moves[b][k] as [a, b, k], for the k within the gap from a to b alone."""
    rows, columns = np.minimum(after, n), np.minimum(after, n - 1)
    steps = np.arange(after.shape[1])
    within = (steps[None, :] < steps[:, None])[None] & (after < n)[:, None, :] & (after <= n)[:, :, None]
    return np.where(within, moves[rows[:, :, None], columns[:, None, :]], 0).astype(np.float32)


def _shares(
    sigmas: Sequence[float], older: np.ndarray, exists: np.ndarray, prediction: PredictionType, axis: TimeAxis
) -> np.ndarray:
    """The damping of a forecast from two steps, [a, p]."""
    share = np.zeros(older.shape, dtype=np.float32)
    for a, g in np.argwhere(exists):
        share[a, g] = damping(prediction, sigmas[a], sigmas[older[a, g]], axis)
    return share


def _parabola(
    pull: np.ndarray, along: np.ndarray, spacing: np.ndarray, after: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What of the parabola through p, a and b is p's and what b's, summed over the gap, and where it is sound; [a, p, b, 1]."""
    at, end, back = along[:, :, None, :], along.swapaxes(1, 2)[:, None], -spacing[..., None]  # [a, p, b, k], a being at 0
    with np.errstate(divide="ignore", invalid="ignore"):
        first = at * (at - end) / (back * (back - end))
        last = (at - back) * at / ((end - back) * end)
    sound = ((after < n)[:, None] & (end[..., 0] <= MAX_PARABOLA * spacing))[..., None]
    first, last = (np.einsum("abk,apbk->apb", pull, np.nan_to_num(own, posinf=0, neginf=0))[..., None] for own in (first, last))
    return first, last, sound
