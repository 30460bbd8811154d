"""Partial evaluation of a transformer: some image tokens of a frame, the others' keys and values from dense evaluations.

In a transformer tokens meet in attention alone. So when some of them run through every block, and attention finds the
others' keys and values where a dense evaluation left them, each gets exactly what the dense evaluation gave it; further
along the schedule those keys and values are extrapolated from the last two recordings. Where text runs through the blocks
beside the image, its keys and values are recorded and extrapolated too, so that a subset costs what its tokens cost.

It works on one function, that of attention, which hosts let others override (`RecordingTap`, `SubsetTap`), and on what
the blocks are given (`Pick`, `passing`); where in a model these belong is the executor's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..placement.time_axis import Axis, log_sigma
from ..trace import Box
from .cache import Key, Surroundings
from .order import Order, found, picked, unaccounted
from .window import swapped

Place = tuple[int, int]  # a block, and which attention of it
TEXT = "text"  # what of a place is recorded beside the image's tokens: those of others
KEPT = 1  # of other tokens that run with a subset all the same, unused: models reshape by counts that must not be nought
BUCKETS = 64  # different counts of active tokens that there may be, so that compiled and tuned kernels are met again


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


class TokenSubset(Surroundings):
    """The tokens inside the boxes of one image, which are computed, and the last two recordings of the others.

    active, rest: their indices, ascending.
    """

    def __init__(
        self, boxes: Sequence[Box], grid: TokenGrid, image: tuple[int, int] = (0, 1), axis: Axis = log_sigma
    ):  # fmt: skip
        super().__init__(image, axis)
        self.boxes, self.grid = tuple(boxes), grid
        inside = grid.inside(boxes)
        self.active, self.rest = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        self._places: dict[tuple[int, int, int | None], Tensor] = {}

    def to(self, device: torch.device) -> TokenSubset:
        """Moves the indices; recordings stay where they were made."""
        if self.active.device != device:
            self.active, self.rest, self._places = self.active.to(device), self.rest.to(device), {}
        return self

    def places(self, before: int, after: int, kept: int | None = None) -> Tensor:
        """Where the active tokens are in a sequence that has so many others before and after the image's, with those others,
        or with the first `kept` of either side."""
        if (before, after, kept) not in self._places:
            device, end = self.active.device, before + self.grid.count
            first, last = (n if kept is None else min(n, kept) for n in (before, after))
            ends = torch.arange(first, device=device), torch.arange(end, end + last, device=device)
            self._places[before, after, kept] = torch.cat([ends[0], before + self.active, ends[1]])
        return self._places[before, after, kept]

    def joins(self, keys: Sequence[Key]) -> bool:
        """Whether what was recorded of these streams' text fits into one call: of several calls it may differ in length."""
        for place, calls in self.recordings[-1].parts.items():
            if TEXT in place and tuple(keys) not in calls:
                return len({part.bytes // len(call) for call, part in calls.items() if set(call) & set(keys)}) == 1
        return True


def subsets_of(grid: TokenGrid, axis: Axis = log_sigma) -> Callable[[Sequence[tuple[Box, ...]]], list[TokenSubset]]:
    """One subset for each image of a batch that has boxes."""

    def surround(boxes: Sequence[tuple[Box, ...]]) -> list[TokenSubset]:
        return [TokenSubset(own, grid, (image, len(boxes)), axis) for image, own in enumerate(boxes) if own]

    return surround


@dataclass(frozen=True)
class Layout:
    """Where the image tokens of one attention lie: so many tokens before them, so many after."""

    before: int
    after: int


Function = Callable[..., Tensor]


class AttentionTap:
    """Stands where a host lets attention be overridden, for one call of a model.

    The executor says which block is running; within one, an attention belongs to the image where tokens look at
    themselves that hold at least the image's. Attentions outside the blocks pass by.

    image_tokens: how many run in this call. text_first, trailing: whether other tokens come before the image's but for
    so many at the end, or all after. previous: an override that was there before, called in place of the model's own.
    """

    def __init__(self, image_tokens: int, text_first: bool = True, trailing: int = 0, previous: Function | None = None):
        self.image_tokens, self.text_first, self.trailing, self.previous = image_tokens, text_first, trailing, previous
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

    def __call__(self, function: Function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
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
        return Layout(others - self.trailing, self.trailing) if self.text_first else Layout(0, others)

    def attend(self, place: Place, function: Function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        raise NotImplementedError


def _as(q: Tensor, v: Tensor) -> Tensor:
    """Values with their heads joined where those of the queries are; SD3 leaves them split."""
    return v.flatten(2) if v.ndim > q.ndim else v


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, c) -> (B, n, heads * c); tokens whose heads are joined stay as they are."""
    return x.transpose(1, 2).flatten(2) if x.ndim == 4 else x


class RecordingTap(AttentionTap):
    """Records what each subset lacks, and lets `hear` listen to (block, queries of the picture, keys of the text, heads).

    orders: what stands in the sequences of this call. By default text comes first and the image's tokens last. What does not
    add up to one of them is neither recorded nor heard.
    passed: the blocks that ran; seen: those in which the image's tokens were seen looking at each other, without which a
    block cannot be computed in part. heard: how many attentions were handed to `hear`. odd: what did not add up, or None.
    """

    def __init__(
        self, subsets: Sequence[TokenSubset], keys: Sequence[Key], image_tokens: int, orders: Sequence[Order] | None = None,
        previous: Function | None = None, hear: Callable[[int, Tensor, Tensor, int], None] | None = None,
    ):  # fmt: skip
        super().__init__(image_tokens, previous=previous)
        self.subsets, self.keys, self.orders, self.hear = subsets, tuple(keys), orders, hear
        self.seen: set[int] = set()
        self.passed: set[int] = set()
        self.heard = 0
        self.odd: str | None = None

    @contextmanager
    def within(self, block: int) -> Iterator[None]:
        self.passed.add(block)
        with super().within(block):
            yield

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        orders, queries, keys = self._orders(k), q.shape[-2], k.shape[-2]
        order = found(orders, place[1], queries, keys)
        if order is None:
            self.odd = self.odd or unaccounted(orders, queries, keys)
            return function(q, k, v, heads, *args, **kwargs)
        looks_away = order.looks_at is not None and place[1] > 0
        runs = order.spans("picture")
        if not looks_away and (not self.subsets or queries == keys and len(runs) == 1):
            self.seen.add(place[0])
            self._record(place, slice(*runs[0]), q, k, v)
        text = order.spans("text") if not looks_away else [(0, keys)] if keys == order.looks_at else []
        if self.hear is not None and text:
            self.heard += 1
            self.hear(place[0], _joined(picked(q, runs)), _joined(picked(k, text)), heads)
        return function(q, k, v, heads, *args, **kwargs)

    def _orders(self, k: Tensor) -> Sequence[Order]:
        if self.orders is not None:
            return self.orders
        return [Order((("text", max(0, k.shape[-2] - self.image_tokens)), ("picture", self.image_tokens)))]

    def _record(self, place: Place, image: slice, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values that each subset lacks."""
        for subset in self.subsets:
            k_own, v_own = subset.rows(k), subset.rows(_as(q, v))
            part = torch.cat([t[..., image, :].index_select(-2, subset.rest) for t in (k_own, v_own)], dim=-1)
            subset.keep(place, self.keys, part, tokens=True)
            if image.start or image.stop < k.shape[-2]:
                ends = [torch.cat([t[..., : image.start, :], t[..., image.stop :, :]], dim=-2) for t in (k_own, v_own)]
                subset.keep((*place, TEXT), self.keys, torch.cat(ends, dim=-1), tokens=True)


Arguments = tuple[list[Any], dict[str, Any]]
Enter = Callable[[nn.Module, list[Any], dict[str, Any], "Pick"], Arguments]


class Pick:
    """Takes a subset of the image tokens out of what a call's blocks are given, and puts it back at the end.

    entering: True for the first block, which is given all tokens; later ones are given what that one returned.
    short: whether text is left out, whose keys and values were recorded. text_first, trailing: as a family has them.
    whole_text: True to leave nothing of it out.
    """

    def __init__(self, subset: TokenSubset, text_first: bool = True, trailing: int = 0, whole_text: bool = False):
        self.whole_text = whole_text
        self.subset, self.count, self.text_first, self.trailing = subset, subset.grid.count, text_first, trailing
        self.entering, self.short = True, False
        self.joint = 0  # other tokens of a sequence that was entered with the image's, which comes out with as many

    def left(self, count: int) -> int:
        """How many of so many other tokens run."""
        return min(count, KEPT) if self.short else count

    def places(self, before: int, after: int) -> Tensor:
        """What runs of a sequence with so many other tokens before and after the image's."""
        return self.subset.places(before, after, KEPT if self.short else None)

    def text(self, x: Tensor) -> Tensor:
        """Of hidden states of text alone (B, n, C), which attention will find recorded: as good as none."""
        self.short |= not self.whole_text
        return x[:, : self.left(x.shape[1])]

    def tokens(self, x: Tensor, text: bool = False) -> Tensor:
        """Of hidden states (B, others before, image, trailing; C); with `text` the others are text to be left out."""
        if not self.entering:
            return x
        self.short |= text and not self.whole_text and x.shape[1] > self.count
        self.joint = x.shape[1] - self.count
        return self.positions(x, 1)

    def positions(self, x: Tensor, axis: int) -> Tensor:
        """Of a table that always has all tokens on its `axis`, whatever is before the image's included."""
        before = x.shape[axis] - self.count - self.trailing if self.text_first else 0
        return x.index_select(axis, self.places(before, x.shape[axis] - before - self.count))

    def image(self, x: Tensor) -> Tensor:
        """Of a tensor (B, image, C) that always has all image tokens and no others; any other stays as it is."""
        return x.index_select(1, self.subset.active) if x.shape[1] == self.count else x

    def back(self, x: Tensor) -> Tensor:
        """Hidden states with the image tokens in their places among zeros."""
        others = x.shape[1] - len(self.subset.active)
        before = others - self.left(self.trailing) if self.text_first else 0
        first, active, last = x.split([before, len(self.subset.active), others - before], dim=1)
        image = x.new_zeros(len(x), self.count, x.shape[2]).index_copy_(1, self.subset.active, active)
        if not others:
            return image
        if self.short and self.joint:  # what was left out of the sequence has its places again
            end = self.trailing if self.text_first else self.joint
            first, last = x.new_zeros(len(x), self.joint - end, x.shape[2]), x.new_zeros(len(x), end, x.shape[2])
        return torch.cat([first, image, last], dim=1)


class SubsetTap(AttentionTap):
    """Gives the tokens that are picked the keys and values of all others, each in its own place of the sequence."""

    def __init__(self, pick: Pick, keys: Sequence[Key], sigma: float, previous: Function | None = None):
        super().__init__(len(pick.subset.active), pick.text_first, pick.trailing, previous)
        self.pick, self.subset, self.keys, self.sigma = pick, pick.subset, tuple(keys), sigma

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        self.trailing = self.pick.left(self.pick.trailing)
        layout = self.layout(q, k) if place in self.subset.recordings[-1].parts else None
        if layout is None:
            return function(q, k, v, heads, *args, **kwargs)
        rest, whole = self.subset.part(place, self.keys, self.sigma).chunk(2, dim=-1), layout
        ends = [self._ends(k, layout), self._ends(_as(q, v), layout)]
        if self.pick.short and layout.before + layout.after:
            ends = self.subset.part((*place, TEXT), self.keys, self.sigma).chunk(2, dim=-1)
            count, after = ends[0].shape[-2], self.pick.trailing
            whole = Layout(count - after, after) if self.text_first else Layout(0, count)
        k, v = (self._whole(*of, layout, whole) for of in zip((k, _as(q, v)), rest, ends, strict=True))
        mask, args = (args[0], args[1:]) if args else (kwargs.pop("mask", None), args)
        if mask is not None:
            kwargs["mask"] = self._mask(mask, whole)
        if args:
            kwargs["attn_precision"] = args[0]
        return function(q, k, v, heads, **kwargs)

    def _ends(self, own: Tensor, layout: Layout) -> Tensor:
        """The other tokens of this call, those before the image's and those after."""
        return torch.cat([own[..., : layout.before, :], own[..., layout.before + self.image_tokens :, :]], dim=-2)

    def _whole(self, own: Tensor, rest: Tensor, ends: Tensor, layout: Layout, whole: Layout) -> Tensor:
        """The keys or values of all tokens, in the order a dense evaluation has them."""
        axis, count = own.ndim - 2, self.subset.grid.count
        full = own.new_empty((*own.shape[:axis], whole.before + count + whole.after, own.shape[-1]))
        full[..., : whole.before, :] = ends[..., : whole.before, :]
        full[..., whole.before + count :, :] = ends[..., whole.before :, :]
        image = full.narrow(axis, whole.before, count)
        image.index_copy_(axis, self.subset.active, own.narrow(axis, layout.before, self.image_tokens))
        image.index_copy_(axis, self.subset.rest, rest.to(own))
        return full

    def _mask(self, mask: Tensor, layout: Layout) -> Tensor:
        """An attention mask (..., queries or 1, keys) for this call's queries and all keys, which are free to look at."""
        places = self.pick.places(layout.before, layout.after)
        total = layout.before + self.subset.grid.count + layout.after
        if mask.shape[-1] != total:
            free = True if mask.dtype == torch.bool else 0
            mask = mask.new_full((*mask.shape[:-1], total), free).index_copy_(mask.ndim - 1, places, mask)
        return mask.index_select(-2, places) if mask.ndim > 1 and mask.shape[-2] == total else mask


@contextmanager
def passing(
    blocks: Iterable[nn.Module], leave: nn.Module, enter: Enter, tap: AttentionTap, pick: Pick | None = None,
    stops: Sequence[nn.Module] = (),
) -> Iterator[None]:  # fmt: skip
    """While this holds, the tap knows which of the blocks runs, and only what is picked runs through them.

    enter: takes what is picked out of a block's arguments. leave: the module that wants all tokens again, as its first
    argument; stops: blocks after which the model wants them in between.
    """
    forwards: dict[nn.Module, Callable] = {}

    def block_forward(index: int, block: nn.Module) -> Callable:
        forward = block.forward

        def passed(*args, **kwargs):
            if pick is not None:
                args, kwargs = enter(block, list(args), dict(kwargs), pick)
                pick.entering = False
            with tap.within(index):
                output = forward(*args, **kwargs)
            if pick is not None and block in stops:
                output, pick.entering = pick.back(output), True
            return output

        return passed

    for index, block in enumerate(blocks):
        forwards[block] = block_forward(index, block)
    if pick is not None:
        forwards[leave] = lambda x, *args, forward=leave.forward, **kwargs: forward(pick.back(x), *args, **kwargs)
    with swapped(forwards):
        yield
