"""What an error in one prediction becomes in the result of a run, and what a sampler is given on its own path.

Between evaluations a sampler is linear, and its impulse response known. What the model answers to a state that is off is taken
for what would be right if pictures were normally distributed: where they spread with the variance v, the denoised image follows
the state by s v / (s^2 v + sigma^2), s being the signal's share of the state. What a forecast is wrong in is what is being
decided at its sigma, so there pictures spread about as widely as the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extrapolation import PredictionType
from ..time_axis import TimeAxis

Numbers = np.ndarray | float
LEAST_SIGNAL = 1e-3  # of a flow's first state, which has none


def followed(variance: Numbers, sigma: Numbers, signal: Numbers = 1.0) -> Numbers:
    """How much of what a state is off by its denoised image follows, in a direction in which pictures have that variance."""
    return signal * variance / (signal**2 * variance + sigma**2)


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


@dataclass(frozen=True)
class Answers:
    """How the model answers to states that are off, on one schedule.

    sigmas: (n,), descending. widest: the largest variance of pictures in any direction.
    """

    sigmas: Sequence[float]
    prediction: PredictionType
    axis: TimeAxis
    widest: float

    @property
    def signal(self) -> np.ndarray:
        """The signal's share (n,) of the state."""
        noise = np.array(self.sigmas)
        return np.maximum(1 - noise, LEAST_SIGNAL) if self.axis.is_flow else np.ones_like(noise)

    def following(self, spread: float) -> np.ndarray:
        """How much of what its state is off by the denoised image of evaluation j follows, in directions in which pictures
        spread so many times as widely as the noise of evaluation k: [j, k]."""
        signal, noise = self.signal, np.array(self.sigmas)
        variance = np.minimum((spread * noise / signal) ** 2, self.widest)
        return np.asarray(followed(variance, noise[:, None], signal[:, None]))

    def propagation(self, moves: np.ndarray, spread: float) -> Propagation:
        """The tables for errors in such directions. moves: the sampler's impulse response (n + 1, n)."""
        noise, n, follows = np.array(self.sigmas)[:, None], len(self.sigmas), self.following(spread)
        answers = mistaken = follows
        if self.prediction == "eps":
            image = self.signal[:, None] * follows
            answers, mistaken = (1 - image) / noise, -image / noise  # the corrector reckons with 1 / noise
        later = np.zeros((n, n))  # [j, k]: how far the result moves with prediction j, the model answering from then on
        for j in range(n - 1, -1, -1):
            later[j] = moves[n, j] + moves[j + 1 : n, j] @ (later[j + 1 :] * answers[j + 1 :])
        unknown = moves[n] + np.cumsum((later * answers * moves[:n])[::-1], 0)[::-1]
        kept = np.append(noise[1:], 0)[:, None] / noise  # of the state, in a step of Euler's method; the rest is the image
        left = np.cumprod((kept + (1 - kept) * follows)[::-1], 0)[::-1]
        tables = (unknown, moves[n]), (later * mistaken * moves[:n], 0 * moves[n]), (left * moves[:n], moves[n])
        return Propagation(*(np.vstack(own) for own in tables))

    def on_own_path(self, images: np.ndarray, noises: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """What a sampler is given in a dense run of its own, which large steps take off the path of small ones: sketches (runs,
        n, features). images, noises: of the denoised images along that path, and of (state - image) / sigma."""
        states = images + np.array(self.sigmas)[:, None] * noises
        follows, given = np.diagonal(self.following(1.0)), np.zeros_like(images)
        for k, sigma in enumerate(self.sigmas):
            start = states[:, 0] * (1.0 if self.prediction == "eps" else sigma / self.sigmas[0])
            state = start + np.tensordot(moves[k, :k], given[:, :k], (0, 1))
            image = images[:, k] + follows[k] * (state - states[:, k])
            given[:, k] = (state - image) / sigma if self.prediction == "eps" else image
        return given
