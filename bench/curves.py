"""Curves of speed against fidelity, compared where both methods were measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Points:
    """One method's strengths on the same prompts: ratios (strengths, prompts) and fidelities (strengths, prompts)."""

    name: str
    settings: tuple[str, ...]
    ratio: np.ndarray
    fidelity: np.ndarray

    def curve(self, prompts: np.ndarray | None = None, worst: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ratio and fidelity of every strength over the prompts (indices, repeated ones count again), by rising ratio."""
        pick = slice(None) if prompts is None else prompts
        ratio = 1 / (1 / self.ratio[:, pick]).mean(1)  # total cost of dense over total cost
        fidelity = self.fidelity[:, pick].min(1) if worst else self.fidelity[:, pick].mean(1)
        order = np.argsort(ratio)
        return ratio[order], fidelity[order]


def hull(ratio: np.ndarray, fidelity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strengths nobody would pass over: each faster than every more faithful one. Rising ratio, falling fidelity."""
    keep, best = [], -np.inf
    for i in np.argsort(-ratio):
        if fidelity[i] > best:
            keep.append(i)
            best = fidelity[i]
    keep = keep[::-1]
    return ratio[keep], fidelity[keep]


def ratio_at(fidelity: float, ratio: np.ndarray, measured: np.ndarray) -> float:
    """The ratio a curve reaches at a fidelity, between its measured points in log ratio; nan outside them."""
    ratio, measured = hull(ratio, measured)
    if not len(ratio) or fidelity < measured[-1] or fidelity > measured[0]:
        return float("nan")
    return float(np.exp(np.interp(fidelity, measured[::-1], np.log(ratio[::-1]))))


@dataclass(frozen=True)
class Advantage:
    """How many times faster ours is than a peer's strength at that strength's fidelity, with a 95% interval."""

    peer: str
    setting: str
    peer_ratio: float
    fidelity: float
    times: float
    low: float
    high: float


def advantages(ours: Points, peer: Points, between: tuple[float, float] = (1.3, 2.5), seed: int = 0) -> list[Advantage]:
    """Ours against every strength of a peer whose ratio lies in a range, by paired bootstrap over prompts.

    Where the peer's fidelity is beyond the best of ours the advantage is nan; where it is below the worst of ours, our
    fastest strength counts, which understates it.
    """
    prompts = peer.ratio.shape[1]
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, prompts, (RESAMPLES, prompts))
    found = []
    for i, setting in enumerate(peer.settings):

        def times(pick: np.ndarray | None, i: int = i) -> float:
            take = slice(None) if pick is None else pick
            fidelity, speed = peer.fidelity[i, take].mean(), 1 / (1 / peer.ratio[i, take]).mean()
            ratio, measured = hull(*ours.curve(pick))
            return ratio_at(max(fidelity, measured[-1]), ratio, measured) / speed

        speed = float(1 / (1 / peer.ratio[i]).mean())
        if not between[0] <= speed <= between[1]:
            continue
        sampled = np.array([times(draw) for draw in draws])
        sampled = sampled[np.isfinite(sampled)]
        low, high = np.percentile(sampled, (2.5, 97.5)) if len(sampled) else (np.nan, np.nan)
        found.append(Advantage(peer.name, setting, speed, float(peer.fidelity[i].mean()), times(None), low, high))
    return found
