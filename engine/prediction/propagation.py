"""What an error in one prediction becomes in the result of a run.

Between evaluations a sampler is linear, and its impulse response known. What the model answers to a state that is off is taken
for what would be right if pictures were normally distributed: where they spread with the variance v, the denoised image follows
the state by s v / (s^2 v + sigma^2), s being the signal's share of the state. What a forecast is wrong in is what is being
decided at its sigma, so there v is sigma^2 / s^2, but no more than the widest spread that pictures have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extrapolation import PredictionType
from ..time_axis import TimeAxis

LEAST_SIGNAL = 1e-3  # of a flow's first state, which has none


@dataclass(frozen=True)
class Propagation:
    """How far the result moves with an error of prediction k that was forecast in a gap which ends at evaluation b: tables
    (n + 1, n), [b, k], of n evaluations; b = n where the run ends with the gap.

    unknown: where the corrector knows nothing of the error. known: where it does, and brings the state back after b, which
    was still computed off the path. at_least: of an unknown one, what Euler's method would leave of the state at b; a multistep
    sampler's later steps may cancel more of it, which is not counted on.
    """

    unknown: np.ndarray
    known: np.ndarray
    at_least: np.ndarray


def propagation(
    sigmas: Sequence[float], moves: np.ndarray, prediction: PredictionType, axis: TimeAxis, widest: float
) -> Propagation:
    """The tables of one schedule.

    sigmas: (n,), descending. moves: the sampler's impulse response (n + 1, n). widest: the largest variance of pictures in any
    direction.
    """
    noise, n = np.array(sigmas), len(sigmas)
    signal = np.maximum(1 - noise, LEAST_SIGNAL) if axis.is_flow else np.ones(n)
    variance = np.minimum((noise / signal) ** 2, widest)  # [k]
    of_state = signal[:, None] ** 2 * variance + noise[:, None] ** 2  # [j, k]
    follows = signal[:, None] * variance / of_state  # the denoised image of evaluation j, a state that is off by 1
    if prediction == "eps":
        answers = (1 - signal[:, None] * follows) / noise[:, None]
        mistaken = -signal[:, None] * follows / noise[:, None]  # beside the held denoised image that the corrector reckons with
    else:
        answers = mistaken = follows
    later = np.zeros((n, n))  # [j, k]: how far the result moves with prediction j, the model answering from then on
    for j in range(n - 1, -1, -1):
        later[j] = moves[n, j] + moves[j + 1 : n, j] @ (later[j + 1 :] * answers[j + 1 :])
    unknown = moves[n] + np.cumsum((later * answers * moves[:n])[::-1], 0)[::-1]
    kept = np.append(noise[1:], 0)[:, None] / noise[:, None]  # of the state, in a step of Euler's method; the rest is the image
    left = np.cumprod((kept + (1 - kept) * follows)[::-1], 0)[::-1]
    tables = (unknown, moves[n]), (later * mistaken * moves[:n], 0 * moves[n]), (left * moves[:n], moves[n])
    return Propagation(*(np.vstack(own) for own in tables))
