"""Partial evaluation of a transformer: some image tokens of a frame, the others' keys and values from dense evaluations.

In a transformer tokens meet in attention alone. So when some of them run through every block, and attention finds the
others' keys and values where a dense evaluation left them, each gets exactly what the dense evaluation gave it; further
along the schedule those keys and values are extrapolated from the last two recordings.

It works on one function, that of attention, which hosts let others override; how tokens get into the blocks and out of
them again is the executor's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .recording import Key, Surroundings
from .trace import Box


@dataclass(frozen=True)
class TokenGrid:
    """Image tokens of a latent frame (H, W), one a patch of `patch` x `patch` cells, row after row, `frames` times over."""

    frame: tuple[int, int]
    patch: int = 2
    frames: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; a patch that sticks out of the frame counts, since models pad to it."""
        return -(-self.frame[0] // self.patch), -(-self.frame[1] // self.patch)

    @property
    def count(self) -> int:
        rows, columns = self.size
        return self.frames * rows * columns

    def inside(self, boxes: Sequence[Box]) -> Tensor:
        """Bool (count,), true for the tokens that the boxes, in latent cells, touch."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        for y0, y1, x0, x1 in boxes:
            mask[y0 // self.patch : -(-y1 // self.patch), x0 // self.patch : -(-x1 // self.patch)] = True
        return mask.flatten().repeat(self.frames)


class TokenSubset(Surroundings):
    """The tokens inside the boxes of one image, which are computed, and the last two recordings of the others.

    active, rest: their indices, ascending.
    """

    def __init__(self, boxes: Sequence[Box], grid: TokenGrid, image: tuple[int, int] = (0, 1)):
        super().__init__(image)
        self.boxes, self.grid = tuple(boxes), grid
        inside = grid.inside(boxes)
        self.active, self.rest = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]

    def to(self, device: torch.device) -> TokenSubset:
        """Moves the indices; recordings stay where they were made."""
        self.active, self.rest = self.active.to(device), self.rest.to(device)
        return self


def subsets_of(grid: TokenGrid) -> Callable[[Sequence[tuple[Box, ...]]], list[TokenSubset]]:
    """One subset for each image of a batch that has boxes."""

    def surround(boxes: Sequence[tuple[Box, ...]]) -> list[TokenSubset]:
        return [TokenSubset(own, grid, (image, len(boxes))) for image, own in enumerate(boxes) if own]

    return surround


@dataclass(frozen=True)
class Layout:
    """Where the image tokens of one attention lie: so many tokens before them, so many after."""

    before: int
    after: int


class AttentionTap:
    """Stands where a host lets attention be overridden, for one call of a model.

    The executor says which block is running; within one, an attention belongs to the image where tokens look at
    themselves that hold at least the image's. Attentions outside the blocks pass by. `text_first` says on which side of
    the image tokens the others are. previous: an override that was there before, called in place of the model's own.
    """

    def __init__(self, image_tokens: int, text_first: bool = True, previous: Callable | None = None):
        self.image_tokens, self.text_first, self.previous = image_tokens, text_first, previous
        self.block: int | None = None
        self.count = 0

    @contextmanager
    def within(self, block: int) -> Iterator[None]:
        """While this holds, attentions are those of this block."""
        self.block, self.count = block, 0
        try:
            yield
        finally:
            self.block = None

    def __call__(self, function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        """As ComfyUI calls an override: tokens are the last but one axis of q, k and v, heads split or not."""
        if self.previous is not None:
            function = partial(self.previous, function)
        if self.block is None:
            return function(q, k, v, heads, *args, **kwargs)
        place = self.block, self.count
        self.count += 1
        return self.attend(place, function, q, k, v, heads, *args, **kwargs)

    def layout(self, q: Tensor, k: Tensor) -> Layout | None:
        """None where the attention is not the image's."""
        others = q.shape[-2] - self.image_tokens
        if others < 0 or q.shape[-2] != k.shape[-2]:
            return None
        return Layout(others, 0) if self.text_first else Layout(0, others)

    def attend(self, place: tuple[int, int], function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs):
        raise NotImplementedError


def _as(q: Tensor, v: Tensor) -> Tensor:
    """Values with their heads joined where those of the queries are; SD3 leaves them split."""
    return v.flatten(2) if v.ndim > q.ndim else v


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, c) -> (B, n, heads * c); tokens whose heads are joined stay as they are."""
    return x.transpose(1, 2).flatten(2) if x.ndim == 4 else x


class RecordingTap(AttentionTap):
    """Records what each subset lacks, and lets `hear` listen to (block, queries of the image, keys of the text, heads)."""

    def __init__(
        self, subsets: Sequence[TokenSubset], keys: Sequence[Key], image_tokens: int, text_first: bool = True,
        previous: Callable | None = None, hear: Callable[[int, Tensor, Tensor, int], None] | None = None,
    ):  # fmt: skip
        super().__init__(image_tokens, text_first, previous)
        self.subsets, self.keys, self.hear = subsets, tuple(keys), hear

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        layout = self.layout(q, k)
        if layout is not None:
            for subset in self.subsets:
                rest = subset.rest + layout.before
                subset.keep(
                    place, self.keys, torch.cat([subset.rows(t).index_select(-2, rest) for t in (k, _as(q, v))], dim=-1)
                )
            if self.hear is not None and layout.before + layout.after:
                image = slice(layout.before, layout.before + self.image_tokens)
                text = slice(0, layout.before) if layout.before else slice(self.image_tokens, None)
                self.hear(place[0], *(_joined(t) for t in (q[..., image, :], k[..., text, :])), heads)
        return function(q, k, v, heads, *args, **kwargs)


class SubsetTap(AttentionTap):
    """Gives the tokens of a subset the keys and values of the others, each in its own place of the sequence."""

    def __init__(
        self, subset: TokenSubset, keys: Sequence[Key], sigma: float, text_first: bool = True, previous: Callable | None = None
    ):
        super().__init__(len(subset.active), text_first, previous)
        self.subset, self.keys, self.sigma = subset, tuple(keys), sigma

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        layout = self.layout(q, k) if place in self.subset.recordings[-1].parts else None
        if layout is not None:
            others_k, others_v = self.subset.part(place, self.keys, self.sigma).chunk(2, dim=-1)
            k, v = self._whole(k, others_k, layout), self._whole(_as(q, v), others_v, layout)
        return function(q, k, v, heads, *args, **kwargs)

    def _whole(self, own: Tensor, others: Tensor, layout: Layout) -> Tensor:
        """The keys or values of all tokens, in the order a dense evaluation has them."""
        count, device, axis = self.subset.grid.count, own.device, own.ndim - 2
        after = layout.before + count + torch.arange(layout.after, device=device)
        places = [torch.arange(layout.before, device=device), layout.before + self.subset.active, after]
        shape = list(own.shape)
        shape[axis] = layout.before + count + layout.after
        whole = own.new_empty(shape)
        whole.index_copy_(axis, torch.cat(places), own)
        return whole.index_copy_(axis, layout.before + self.subset.rest, others.to(own))
