"""SDTM as its authors released it: Fang et al., CVPR 2025 (arXiv 2505.11707), by a description of their code of September
2025, which has no licence; nothing of it is copied.

What it does, its oddities included: one matching a block, on the modulated tokens that enter attention. Until 20/50 of the
schedule 2x2 windows of the highest mean cosine, each token with itself among the pairs, become one token in attention and
MLP. Then the tokens most alike to one destination of each window merge into it in the MLP alone, all over the frame, and
attention is whole. What was not independent for long is preferred. Every third step is whole and stores the outputs, of
which merged tokens and all destinations get nine tenths in the steps after. Outputs are stored before their gate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...engine.merging.sites import ATTENTION, MLP
from ...engine.partial.token_subset import TokenGrid
from .merged import Bipartite, Merger, most_alike, window_members, with_merger

SWITCH, A_S, MCW, PROTECT = 20 / 50, 0.05, 0.1, 3


class Released(Merger):
    def __init__(self, steps: int, r: float, delta: float, protect: int):
        self.steps, self.r, self.delta, self.protect = steps, r, delta, protect

    def begin(self, step: int, cache: dict, grid: TokenGrid) -> None:
        self.step, self.cache, self.grid = step, cache, grid
        self.whole = bool(self.protect) and step % self.protect == 0
        self.structure = step <= SWITCH * self.steps
        progress = step / max(self.steps - 1, 1)
        self.ratio = self.r - self.delta + 2 * self.delta * math.cos(math.pi / 2 * progress)

    def kinds(self) -> tuple[str, ...]:
        return (ATTENTION, MLP) if self.structure else (MLP,)

    def match(self, x: Tensor) -> Bipartite | None:
        if self.whole:
            return None
        idle = self.cache.setdefault("idle", torch.zeros(x.shape[:2], device=x.device))
        idle += 1  # one count for all blocks
        number, members = int(x.shape[1] * self.ratio), window_members(self.grid, x.device)
        match = self._windows(x, members, idle, number) if self.structure else self._tokens(x, members, idle, number)
        idle.masked_fill_(~match.touched()[..., 0], 0)
        return match

    def _windows(self, x: Tensor, members: Tensor, idle: Tensor, number: int) -> Bipartite:
        unit = torch.nn.functional.normalize(x.float(), dim=-1)[:, members]
        alike = (unit @ unit.transpose(-1, -2)).mean((-1, -2))
        score = alike + A_S * (idle / idle.mean(1, keepdim=True))[:, members].mean(-1)
        windows = members[score.topk(min(len(members), number // 48 * 16), dim=1).indices]
        into = torch.arange(windows.shape[1], device=x.device).repeat_interleave(3).expand(len(x), -1)
        return Bipartite(x.shape[1], windows[:, :, 1:].flatten(1), into, windows[:, :, 0])

    def _tokens(self, x: Tensor, members: Tensor, idle: Tensor, number: int) -> Bipartite:
        longest = idle[:, members].argmax(-1)
        destinations = members.expand(len(x), -1, -1).gather(2, longest[..., None])[..., 0]
        return most_alike(x, destinations, min(x.shape[1] - len(members), number) // 16 * 16)

    def leave(self, place: tuple[int, int], y: Tensor, match: Bipartite | None) -> Tensor:
        if self.whole:
            self.cache[place] = y
        elif match is not None and place in self.cache:
            return torch.where(match.touched(), MCW * y + (1 - MCW) * self.cache[place], y)
        return y


def apply(model: Any, steps: int, r: float = 0.3, delta: float = 0.2, protect: int = PROTECT) -> Any:
    """A share of r + delta of the tokens at the start, falling to r - delta, at most three quarters; the released
    command line's defaults. protect 0 stores nothing and merges in every step, as the released function's defaults."""
    return with_merger(model, "sdtm_official", Released(steps, r, delta, protect))
