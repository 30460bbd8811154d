"""Some image tokens of a frame: which they are, and the cache of the keys and values of all others.

In a transformer tokens meet in attention alone. So when some of them run through every block, and attention finds the others'
keys and values where a dense evaluation left them, each gets exactly what the dense evaluation gave it; further along the
schedule those keys and values are extrapolated from the last two recordings. Where text runs through the blocks beside the
image, its keys and values are recorded and extrapolated too, so that a subset costs what its tokens cost.

`attention_override` gives attention what it lacks, `token_gather` takes the subset out of what the blocks are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..time_axis import DIFFUSION, TimeAxis
from ..trace import Box
from .cache import ONE_IMAGE, ActivationCache, ImageRows, Key, Keys

TEXT = "text"  # part of the place of what is recorded of the tokens that are not the image's
REFERENCES = "references"  # the same of references, where they are left out of a subset's call
BUCKETS = 64  # counts of active tokens are multiples of 1 / BUCKETS of all, so that compiled and tuned kernels are met again


@dataclass(frozen=True)
class TokenGrid:
    """The image tokens of a latent frame (H, W): one for each patch of `patch` x `patch` cells, row after row, `frames`
    times."""

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
        """Bool (count,), true for the tokens that the boxes, in latent cells, touch, and for the nearest others that fill up
        the last bucket."""
        rows, columns = (torch.arange(n, dtype=torch.float) for n in self.size)
        away = torch.full(self.size, torch.inf)

        def beyond(at: Tensor, start: int, end: int) -> Tensor:
            first, last = start // self.patch, (end - 1) // self.patch
            return torch.maximum(first - at, at - last).clamp(min=0)

        for y0, y1, x0, x1 in boxes:
            away = torch.minimum(away, torch.maximum(beyond(rows, y0, y1)[:, None], beyond(columns, x0, x1)))
        wanted, bucket = int((away == 0).sum()), -(-away.numel() // BUCKETS)
        mask = torch.zeros(away.numel(), dtype=torch.bool)
        mask[away.flatten().argsort(stable=True)[: -(-wanted // bucket) * bucket]] = True
        return mask.repeat(self.frames)


class TokenSubset(ActivationCache):
    """The tokens inside the boxes of one image, which are computed, and the last two recordings of the others.

    active, rest: their indices, ascending.
    """

    def __init__(
        self, boxes: Sequence[Box], grid: TokenGrid, rows: ImageRows = ONE_IMAGE, axis: TimeAxis = DIFFUSION
    ):  # fmt: skip
        super().__init__(rows, axis)
        self.boxes, self.grid = tuple(boxes), grid
        inside = grid.inside(boxes)
        self.active, self.rest = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        self._places: dict[tuple[int, int, int | None], Tensor] = {}
        self._over: dict[int, TokenSubset] = {}

    def over(self, frames: int) -> TokenSubset:
        """The same boxes over another number of frames, with the same recordings: for the streams of a window of a video, which
        are no others' and so have recordings of their own."""
        if frames == self.grid.frames:
            return self
        if frames not in self._over:
            own = TokenSubset(self.boxes, replace(self.grid, frames=frames), self.rows, self.axis)
            own.memory, own.damping, own.entries = self.memory, self.damping, self.entries
            self._over[frames] = own
        return self._over[frames]

    def put_references(self, place: tuple[int, int], keys: Keys, part: Tensor) -> None:
        """Record the keys and values (rows, ..., n, 2 C), side by side, of the references of these streams at a place."""
        self.put((*place, REFERENCES), keys, part, tokens=True)

    def references(self, place: tuple[int, int], keys: Keys, sigma: float) -> Tensor | None:
        """Those keys and values, extrapolated to sigma; None where none were recorded."""
        held = self.entries[-1].holds(keys, (*place, REFERENCES))
        return self.get((*place, REFERENCES), keys, sigma) if held else None

    def to(self, device: torch.device) -> TokenSubset:
        """Move the indices to a device; recordings stay where they were made."""
        if self.active.device != device:
            self.active, self.rest, self._places = self.active.to(device), self.rest.to(device), {}
        return self

    def places(self, before: int, after: int, kept: int | None = None) -> Tensor:
        """Indices of the active tokens in a sequence with so many other tokens before and after the image's, together with
        those others, or with the first `kept` on either side."""
        if (before, after, kept) not in self._places:
            device, end = self.active.device, before + self.grid.count
            first, last = (n if kept is None else min(n, kept) for n in (before, after))
            ends = torch.arange(first, device=device), torch.arange(end, end + last, device=device)
            self._places[before, after, kept] = torch.cat([ends[0], before + self.active, ends[1]])
        return self._places[before, after, kept]

    def joins(self, keys: Sequence[Key]) -> bool:
        """Whether what was recorded of these streams' text and references fits into one call: of several calls it may differ in
        length."""
        lengths: dict[str, set[int]] = {}
        for place, calls in self.entries[-1].parts.items():
            if isinstance(place, tuple) and place[-1] in (TEXT, REFERENCES) and tuple(keys) not in calls:
                own = {part.bytes // len(call) for call, part in calls.items() if set(call) & set(keys)}
                lengths.setdefault(place[-1], own)
        return all(len(own) == 1 for own in lengths.values())


def subsets_of(grid: TokenGrid, axis: TimeAxis = DIFFUSION) -> Callable[[Sequence[tuple[Box, ...]]], list[TokenSubset]]:
    """One subset for each image of a batch that has boxes."""

    def surround(boxes: Sequence[tuple[Box, ...]]) -> list[TokenSubset]:
        return [TokenSubset(own, grid, ImageRows(image, len(boxes)), axis) for image, own in enumerate(boxes) if own]

    return surround
