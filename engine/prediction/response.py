"""How a sampler passes its predictions on: its impulse response, measured by running it on numbers.

Between two steps most samplers are linear in what the model predicted, with weights that depend on the schedule only. So
one run on a batch of scalars, each with a unit impulse in place of one prediction, gives all of these weights, whatever
the sampler is, and a row in which all impulses are mixed tells whether it is linear at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..extrapolation import PredictionType

Model = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
TOLERANCE = 1e-3  # relative: samplers compute in float32
NEGLIGIBLE = 1e-6  # share of the largest weight


@dataclass(frozen=True)
class ImpulseResponse:
    """How a sampler passes n predictions on.

    sigmas: of each of the n evaluations. weights: n + 1 rows of n numbers; weights[k][j] says how far the state that
    evaluation k is asked about (k = n: the result) moves with prediction j, all other predictions held. one_step: whether
    one later prediction can make up for any earlier one exactly, as under Euler; a multistep sampler needs several.
    """

    sigmas: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    one_step: bool

    def knows(self, index: int, sigma: float) -> bool:
        """Whether evaluation `index` of the run is at the sigma it was measured at."""
        return index < len(self.sigmas) and abs(self.sigmas[index] - sigma) <= 1e-3 * sigma


def impulse_response(sampler: Callable[[Model, Tensor], Tensor], prediction: PredictionType) -> ImpulseResponse | None:
    """The response of a sampler, None where it is not linear or does not end at the same evaluations twice.

    sampler: samples from a state (rows, 1, 1, 1) in float32 with a model that gives the denoised state for a state and a
    sigma; without noise of its own. prediction: what is called a prediction, and so what is held.
    """
    sigmas: list[float] = []

    def count(x: Tensor, sigma: float) -> Tensor:
        sigmas.append(sigma)
        return x if prediction == "eps" else torch.zeros_like(x)

    sampler(count, torch.zeros(1, 1, 1, 1))
    n = len(sigmas)
    mix = 1.0 + torch.arange(n) % 3
    impulses = torch.cat([torch.eye(n), mix[None]])
    states: list[Tensor] = []
    seen: list[float] = []

    def answer(x: Tensor, sigma: float) -> Tensor:
        states.append(x.flatten().double())
        own = impulses[:, min(len(seen), n - 1)].reshape(x.shape)
        seen.append(sigma)
        return x - sigma * own if prediction == "eps" else own

    result = sampler(answer, torch.zeros(n + 1, 1, 1, 1))
    table = torch.stack([*states, result.flatten().double()])
    weights, mixed = table[:, :n], table[:, n]
    expected = weights @ mix.double() if len(seen) == n else None
    if expected is None or not table.isfinite().all() or (mixed - expected).abs().max() > TOLERANCE * expected.abs().max():
        return None
    return ImpulseResponse(tuple(sigmas), tuple(tuple(row) for row in weights.tolist()), _is_one_step(weights))


def fresh_noise(sampler: Callable[[Model, Noise, Tensor], Tensor], sigmas: Sequence[float]) -> tuple[float, ...] | None:
    """How much of the noise in the state a sampler makes anew between each two of these steps: 0 where it adds none of its
    own, 1 - (sigma' / sigma)^2 where it solves the reverse stochastic differential equation exactly, 1 where it starts afresh.

    None where the sampler does not stop at every step. sampler: samples from a state (rows, 1, 1, 1) with a model that gives
    the denoised state for a state and a sigma, and with a source of noise. The denoised state is held at zero and every draw
    is a unit impulse in a row of its own, so that the states are how much they have of each draw; what is new in one of them
    is what does not correlate with the one before.
    """
    states: list[tuple[float, Tensor]] = []
    draws = 0

    def run(rows: int) -> None:
        nonlocal draws
        draws = 0
        states.clear()
        start = torch.zeros(rows, 1, 1, 1)
        start[0] = sigmas[0]

        def held(x: Tensor, sigma: float) -> Tensor:
            states.append((sigma, x.flatten().double()))
            return torch.zeros_like(x)

        def draw() -> Tensor:
            nonlocal draws
            draws += 1
            impulse = torch.zeros(rows, 1, 1, 1)
            impulse[min(draws, rows - 1)] = 1.0
            return impulse

        sampler(held, draw, start)

    run(1)
    run(draws + 1)
    last_first = states[::-1]  # a stage of a step may lie where the next one begins
    stops = [x for sigma in sigmas for x in [y for at, y in last_first if abs(at - sigma) <= 1e-3 * sigma][:1]]
    if len(stops) < len(sigmas) or any(not x.isfinite().all() or not x.any() for x in stops):
        return None
    kept = [float(torch.cosine_similarity(older, newer, dim=0)) for older, newer in pairwise(stops)]
    return tuple(min(1.0, max(0.0, 1 - share**2)) for share in kept)


def _is_one_step(weights: Tensor) -> bool:
    """Whether after every evaluation all predictions before it move the rest of the run along one line."""
    for m in range(1, weights.shape[1]):
        later = weights[m + 1 :, : m + 1]
        later = later[later.abs().amax(1) > NEGLIGIBLE * weights.abs().max()]  # without a last step that forgets the state
        if not len(later):
            continue
        if later[:, m].abs().min() <= NEGLIGIBLE * weights.abs().max():
            return False
        scaled = later / later[:, m:]
        if (scaled - scaled[0]).abs().max() > TOLERANCE * scaled.abs().max():
            return False
    return True
