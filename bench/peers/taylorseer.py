"""TaylorSeer-Lite: Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", ICCV 2025 (arXiv
2503.06923), which forecasts what leaves the last block; with the scaled Hermite polynomials of HiCache (arXiv 2508.16984), and
with dynamic mode decomposition (Schmid 2010), Cache-DiT's calibrator of 2026.

The released code takes no difference before the third step, so that its second order comes a computed step later than here; the
pack for ComfyUI forecasts what leaves the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .whole import Step, at_hidden

FIRST = 3  # steps that are always computed
SCALE = 0.5  # of Hermite's polynomials
SNAPSHOTS, FEWEST, SINGULAR = 6, 4, 1e-4  # of the decomposition: points kept, points needed, least singular value


def taylor_basis(ahead: int, order: int) -> float:
    """k^i / i!, k steps ahead."""
    return ahead**order / math.factorial(order)


def hermite_basis(ahead: int, order: int) -> float:
    """sigma^i H_i(sigma k) / i! with physicists' polynomials: half of Taylor's slope at order one."""
    at = SCALE * ahead
    polynomial = (1.0, 2 * at, 4 * at**2 - 2)[order]
    return SCALE**order * polynomial / math.factorial(order)


class TaylorSeer:
    """One run. interval: every how many steps one is computed. order: of the differences, over steps. basis: what each is
    multiplied by."""

    def __init__(self, interval: int, order: int, basis: Callable[[int, int], float] = taylor_basis):
        self.interval, self.order, self.basis = interval, order, basis
        self.differences: list[Tensor] = []
        self.last = 0

    def skips(self, at: Step) -> bool:
        return at.index >= FIRST and (at.index - FIRST + 1) % self.interval != 0

    def forecast(self, at: Step) -> Tensor:
        terms = [d * self.basis(at.index - self.last, i) for i, d in enumerate(self.differences)]
        return torch.stack(terms).sum(0)

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        if not computed:
            return
        new = [value]
        for older in self.differences[: self.order]:
            new.append((new[-1] - older) / (at.index - self.last))
        self.differences, self.last = new, at.index


class Modes(TaylorSeer):
    """The same schedule; forecasts by the linear map that leads from each value of an evenly spaced tail to the next, and by
    Taylor's first order where there is no such tail or its powers are not finite."""

    def __init__(self, interval: int):
        super().__init__(interval, 1)
        self.points: list[tuple[int, Tensor]] = []

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        super().observe(at, value, computed)
        if computed:
            self.points = [*self.points, (at.index, value)][-SNAPSHOTS:]

    def forecast(self, at: Step) -> Tensor:
        tail = self._even_tail()
        if len(tail) >= FEWEST:
            ahead = (at.index - self.last) / self.interval
            each = torch.stack([value.flatten(1) for _, value in tail], 1)  # pictures of a batch have modes of their own
            found = torch.stack([advanced(snapshots, ahead) for snapshots in each])
            if torch.isfinite(found).all():
                return found.reshape_as(tail[-1][1])
        return super().forecast(at)

    def _even_tail(self) -> list[tuple[int, Tensor]]:
        """The latest points whose distance is the interval."""
        tail = self.points[-1:]
        for point in reversed(self.points[:-1]):
            if tail[0][0] - point[0] != self.interval:
                break
            tail = [point, *tail]
        return tail


def advanced(snapshots: Tensor, ahead: float) -> Tensor:
    """The value (cells,) that many of their distances after the last of evenly spaced snapshots (n, cells), by dynamic mode
    decomposition: Phi lambda^ahead b, with the modes Phi and eigenvalues lambda of the best linear map between them."""
    before, after = snapshots[:-1].T.double(), snapshots[1:].T.double()
    u, s, vh = torch.linalg.svd(before, full_matrices=False)
    keep = s > SINGULAR * s[0]
    u, s, v = u[:, keep], s[keep], vh[keep].T
    onto = after @ v / s
    values, vectors = torch.linalg.eig(u.T @ onto)
    modes = onto.to(vectors.dtype) @ vectors
    amounts = torch.linalg.lstsq(modes, snapshots[-1].to(modes.dtype)[:, None]).solution[:, 0]
    return (modes @ (values**ahead * amounts)).real.to(snapshots.dtype)


KINDS: dict[str, Callable[[int], TaylorSeer]] = {
    "order 1": lambda interval: TaylorSeer(interval, 1),
    "order 2": lambda interval: TaylorSeer(interval, 2),
    "Hermite": lambda interval: TaylorSeer(interval, 1, hermite_basis),
    "DMD": Modes,
}


def apply(model: Any, kind: str, interval: int) -> Any:
    """One of `KINDS`, computed every `interval` steps after the first three."""
    return at_hidden(model, "taylorseer", lambda: KINDS[kind](interval))
