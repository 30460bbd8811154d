"""Gathering a subset of tokens from what a transformer's blocks are given, and scattering it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .order import Around
from .token_subset import TokenSubset

ALL_FIRST = Around()
# Other tokens that run with a subset all the same, unused: models reshape by counts that must not be 0.
PLACEHOLDER_TOKENS = 1


class Gather(Protocol):
    """What a family calls on the arguments of a block: a `TokenGather`, or merged tokens, which change positions alone."""

    entering: bool

    def text(self, x: Tensor) -> Tensor:
        """Hidden states (B, n, C) of text alone."""

    def tokens(self, x: Tensor, text: bool = False, alone: bool = False) -> Tensor:
        """Hidden states (B, n, C) of a sequence that holds the image's tokens."""

    def positions(self, x: Tensor, axis: int, alone: bool = False) -> Tensor:
        """A table with all tokens of a sequence on its axis."""

    def image(self, x: Tensor) -> Tensor:
        """A tensor (B, n, C) of the image's tokens outside of attention, where it has all of them; any other as it is."""

    def mask(self, x: Tensor) -> Tensor:
        """An attention mask (..., queries or 1, keys) of a whole sequence."""


Arguments = tuple[list[Any], dict[str, Any]]
# A block, its arguments by position and by name, and what gathers: returns the arguments to call the block with.
GatherInputs = Callable[[Any, list[Any], dict[str, Any], Gather], Arguments]


class TokenGather:
    """Takes a subset of the image tokens out of what a call's blocks are given, and puts it back at the end.

    around: where other tokens stand in the sequences. keep_text: whether text runs with the subset although its keys and values
    were recorded.

    entering: True for the first block, which is given all tokens; later ones are given what that one returned. drops_text:
    whether text is left out of this call, which a family decides by calling `text` or `tokens`.
    """

    def __init__(self, subset: TokenSubset, around: Around = ALL_FIRST, keep_text: bool = False):
        self.subset, self.around, self.keep_text = subset, around, keep_text
        self.count = subset.grid.count
        self.entering, self.drops_text = True, False
        self.rows: tuple[int, ...] = ()  # frames, rows and columns of tokens that were entered in them
        self.joint = 0  # other tokens of a sequence that was entered with the image's, which comes out with as many

    def left(self, count: int) -> int:
        """How many of so many other tokens run in this call."""
        return min(count, PLACEHOLDER_TOKENS) if self.drops_text else count

    def before(self, others: int) -> int:
        """How many of so many other tokens of a sequence of this call come before the image's."""
        return others - self.left(self.around.trailing) if self.around.others_first else 0

    def places(self, before: int, after: int) -> Tensor:
        """Indices of what runs of a sequence with so many other tokens before and after the image's."""
        return self.subset.places(before, after, PLACEHOLDER_TOKENS if self.drops_text else None)

    def text(self, x: Tensor) -> Tensor:
        """Gather from hidden states (B, n, C) of text alone, which attention will find recorded: next to none of it."""
        self.drops_text |= not self.keep_text
        return x[:, : self.left(x.shape[1])]

    def tokens(self, x: Tensor, text: bool = False, alone: bool = False) -> Tensor:
        """Gather from hidden states (B, n, C) of a sequence; `text` says that its other tokens are text, to be left out but for
        what models reshape by, `alone` that not even that much of them is to run."""
        if not self.entering:
            return x
        if alone:
            return self.positions(x, 1, alone)
        if x.ndim > 3:  # tokens in their rows and columns, which a subset has none of
            self.rows = tuple(x.shape[1:-1])
            return self.positions(x.flatten(1, -2), 1)[(slice(None), *[None] * (len(self.rows) - 1))]
        self.drops_text |= text and not self.keep_text and x.shape[1] > self.count
        self.joint = x.shape[1] - self.count
        return self.positions(x, 1)

    def positions(self, x: Tensor, axis: int, alone: bool = False) -> Tensor:
        """Gather from a table that has all tokens of a sequence on its `axis` in every block."""
        others = x.shape[axis] - self.count
        before = self.around.before(others)
        if alone:
            return x.narrow(axis, before, self.count).index_select(axis, self.subset.active)
        return x.index_select(axis, self.places(before, others - before))

    def image(self, x: Tensor) -> Tensor:
        """Gather from a tensor (B, image, C) that has all image tokens and no others; any other stays as it is."""
        return x.index_select(1, self.subset.active) if x.shape[1] == self.count else x

    def mask(self, x: Tensor) -> Tensor:
        """An attention mask stays whole: attention will find the keys of all tokens."""
        return x

    def scatter(self, x: Tensor) -> Tensor:
        """Hidden states (B, n, C) of a whole sequence, with the gathered image tokens in their places among zeros."""
        if self.rows:
            rows, self.rows = self.rows, ()
            return self.scatter(x.flatten(1, -2)).unflatten(1, rows)
        others = x.shape[1] - len(self.subset.active)
        before = self.before(others)
        first, active, last = x.split([before, len(self.subset.active), others - before], dim=1)
        image = x.new_zeros(len(x), self.count, x.shape[2]).index_copy_(1, self.subset.active, active)
        if not others:
            return image
        if self.drops_text and self.joint:  # what was left out of the sequence has its places again
            ahead = self.around.before(self.joint)
            first = x.new_zeros(len(x), ahead, x.shape[2])
            last = x.new_zeros(len(x), self.joint - ahead, x.shape[2])
        return torch.cat([first, image, last], dim=1)
