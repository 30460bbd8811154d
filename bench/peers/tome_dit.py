"""Token merging on a DiT: Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", 2023, as SDTM's paper compares with
it: matched in every block, merged in attention and MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engine.merging.sites import ATTENTION, MLP
from ...engine.partial.token_subset import TokenGrid
from .merged import Bipartite, Merger, most_alike, window_members, with_merger


class ToMe(Merger):
    def __init__(self, ratio: float):
        self.ratio = ratio

    def begin(self, step: int, cache: dict, grid: TokenGrid) -> None:
        self.grid = grid
        self.random = cache.setdefault("random", torch.Generator().manual_seed(0))

    def kinds(self) -> tuple[str, ...]:
        return ATTENTION, MLP

    def match(self, x: Tensor) -> Bipartite:
        members = window_members(self.grid, x.device)
        chosen = torch.randint(4, (len(members), 1), generator=self.random).to(x.device)
        destinations = members.gather(1, chosen)[:, 0].expand(len(x), -1)
        return most_alike(x, destinations, min(x.shape[1] - len(members), int(x.shape[1] * self.ratio)))


def apply(model: Any, ratio: float) -> Any:
    """`ratio` of the tokens merge into one random destination of each 2x2 window, at most three quarters."""
    return with_merger(model, "tome_dit", ToMe(ratio))
