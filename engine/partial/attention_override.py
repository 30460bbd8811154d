"""What takes the place of attention for one call of a transformer: recording what subsets lack, and giving it to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from .cache import ImageRows, Key, Keys
from .order import Around, Order, found, picked, unaccounted
from .token_gather import ALL_FIRST, TokenGather
from .token_subset import TEXT, TokenSubset

Place = tuple[int, int]  # a block, and which attention of it
Function = Callable[..., Tensor]
Capture = Callable[[int, Tensor, Tensor, int], None]
FURTHER_ARGUMENTS = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")  # of attention in ComfyUI, after heads


def split_mask(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
    """The mask among the arguments of an attention after its heads, and all others by name. Raises TypeError where there are
    more of them by position than ComfyUI has."""
    if len(args) > len(FURTHER_ARGUMENTS):
        raise TypeError(f"attention was called with {len(args)} arguments after heads; {FURTHER_ARGUMENTS} are known")
    named = dict(zip(FURTHER_ARGUMENTS, args, strict=False)) | kwargs
    return named.pop("mask", None), named


@dataclass(frozen=True)
class Layout:
    """How many other tokens one attention has before and after the image's."""

    before: int
    after: int


# Gives the keys and values (rows, ..., n, 2 C), side by side, of tokens that one attention looks at and that do not run in this
# call; None where there are none.
Further = Callable[[Place], Tensor | None]


class AttentionOverride:
    """Takes the place of attention for one call of a model, where a host lets it be overridden.

    The executor says which block is running; within one, an attention is the image's where tokens look at themselves that hold
    at least the image's. Attentions outside the blocks pass by.

    image_tokens: how many run in this call. around: where other tokens stand. previous: an override that was there before,
    which is called in place of the model's own attention. further: what is looked at besides, behind all other tokens.
    """

    def __init__(
        self, image_tokens: int, around: Around = ALL_FIRST, previous: Function | None = None, further: Further | None = None
    ):  # fmt: skip
        self.image_tokens, self.around, self.previous, self.further = image_tokens, around, previous, further
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
        if self.further is not None and (part := self.further(place)) is not None:
            function = partial(_looking_further, function, part)
        return self.attend(place, function, q, k, v, heads, *args, **kwargs)

    def layout(self, q: Tensor, k: Tensor) -> Layout | None:
        """Where the image's tokens are in an attention, None where it is not the image's."""
        others = q.shape[-2] - self.image_tokens
        if others < 0 or q.shape[-2] != k.shape[-2]:
            return None
        before = self.around.before(others)
        return Layout(before, others - before)

    def attend(self, place: Place, function: Function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        """Attend in place of `function`; place: the block, and which of its attentions this is."""
        return function(q, k, v, heads, *args, **kwargs)


def _looking_further(
    function: Function, part: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
) -> Tensor:  # fmt: skip
    """Attention with further keys and values behind its own, which a mask leaves free to be looked at."""
    further = part.chunk(2, dim=-1)
    k, v = (torch.cat([own, more.to(own)], dim=-2) for own, more in zip((k, _as(q, v)), further, strict=True))
    mask, kwargs = split_mask(args, kwargs)
    if mask is not None:
        free = True if mask.dtype == torch.bool else 0
        kwargs["mask"] = torch.cat([mask, mask.new_full((*mask.shape[:-1], further[0].shape[-2]), free)], dim=-1)
    return function(q, k, v, heads, **kwargs)


def _as(q: Tensor, v: Tensor) -> Tensor:
    """Values with their heads joined where those of the queries are; SD3 leaves them split."""
    return v.flatten(2) if v.ndim > q.ndim else v


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, c) -> (B, n, heads * c); tokens whose heads are joined stay as they are."""
    return rearrange(x, "b h n c -> b n (h c)") if x.ndim == 4 else x


class ReferenceKeeper(Protocol):
    """What takes the keys and values of references, for calls that leave them out."""

    rows: ImageRows

    def put_references(self, place: Place, keys: Keys, part: Tensor) -> None:
        """Keep the keys and values (rows, ..., n, 2 C), side by side, that these streams' references have at a place."""


class RecordingOverride(AttentionOverride):
    """Records what each subset lacks, and lets attention be captured.

    orders: what stands in the sequences of this call; by default text comes first and the image's tokens last. What does not
    add up to one of them is neither recorded nor captured. capture: called with a block, the queries of the picture, the keys
    of the text, both (rows, n, C), and the number of heads. apart: what takes the keys and values of the references besides the
    subsets, which then keep them apart from other tokens, for calls that leave them out; None where no call does.

    Afterwards, passed: the blocks that ran. seen: those in which the image's tokens were seen looking at each other, without
    which a block cannot be computed in part. captured: how many attentions were handed to `capture`. odd: what did not add
    up, or None.
    """

    def __init__(
        self, subsets: Sequence[TokenSubset], keys: Sequence[Key], image_tokens: int, orders: Sequence[Order] | None = None,
        previous: Function | None = None, capture: Capture | None = None, apart: Sequence[ReferenceKeeper] | None = None,
    ):  # fmt: skip
        super().__init__(image_tokens, previous=previous)
        self.subsets, self.keys, self.orders, self.capture, self.apart = subsets, tuple(keys), orders, capture, apart
        self.seen: set[int] = set()
        self.passed: set[int] = set()
        self.captured = 0
        self.odd: str | None = None

    @contextmanager
    def within(self, block: int) -> Iterator[None]:
        self.passed.add(block)
        with super().within(block):
            yield

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        orders, queries, keys = self._orders(k), q.shape[-2], k.shape[-2]
        if (order := found(orders, place[1], queries, keys)) is None:
            self.odd = self.odd or unaccounted(orders, queries, keys)
            return function(q, k, v, heads, *args, **kwargs)
        runs = order.spans("picture")
        is_cross = order.looks_at is not None and place[1] > 0
        if not is_cross and (not self.subsets or (queries == keys or self.apart is not None) and len(runs) == 1):
            self.seen.add(place[0])
            self._record(place, order, q, k, v)
        text = self._text(order, is_cross, keys)
        if self.capture is not None and text:
            self.captured += 1
            self.capture(place[0], _joined(picked(q, runs)), _joined(picked(k, text)), heads)
        return function(q, k, v, heads, *args, **kwargs)

    @staticmethod
    def _text(order: Order, is_cross: bool, keys: int) -> list[tuple[int, int]]:
        """Where the prompt's tokens are among the keys of an attention; nowhere where that is not known."""
        if not is_cross:
            return order.spans("text")
        return [(0, keys)] if keys == order.looks_at else []

    def _orders(self, k: Tensor) -> Sequence[Order]:
        if self.orders is not None:
            return self.orders
        return [Order((("text", max(0, k.shape[-2] - self.image_tokens)), ("picture", self.image_tokens)))]

    def _record(self, place: Place, order: Order, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values that each subset lacks, those of references apart where some calls leave these out."""
        keepers: Sequence[ReferenceKeeper] = (*self.subsets, *(self.apart or ()))
        if not keepers:
            return
        v = _as(q, v)
        if self.apart is not None and (references := order.spans("reference")):
            part = torch.cat([picked(k, references), picked(v, references)], dim=-1)
            for keeper in keepers:
                keeper.put_references(place, self.keys, keeper.rows.of(part))
            others = order.spans("text", "picture", "other")
            k, v, order = picked(k, others), picked(v, others), order.without("reference")
        image = slice(*order.spans("picture")[0])
        for subset in self.subsets:
            k_own, v_own = subset.rows.of(k), subset.rows.of(v)
            part = torch.cat([t[..., image, :].index_select(-2, subset.rest) for t in (k_own, v_own)], dim=-1)
            subset.put(place, self.keys, part, tokens=True)
            if image.start or image.stop < k.shape[-2]:
                ends = [torch.cat([t[..., : image.start, :], t[..., image.stop :, :]], dim=-2) for t in (k_own, v_own)]
                subset.put((*place, TEXT), self.keys, torch.cat(ends, dim=-1), tokens=True)


class SubsetOverride(AttentionOverride):
    """Gives the tokens that are gathered the keys and values of all others, each in its own place of the sequence.

    gather: takes the subset out of what the blocks are given. keys: the streams of this call. sigma: where what was recorded is
    extrapolated to.
    """

    def __init__(self, gather: TokenGather, keys: Sequence[Key], sigma: float, previous: Function | None = None):
        super().__init__(len(gather.subset.active), gather.around, previous, self._references)
        self.gather, self.subset, self.keys, self.sigma = gather, gather.subset, tuple(keys), sigma

    def _references(self, place: Place) -> Tensor | None:
        return self.subset.references(place, self.keys, self.sigma)

    def layout(self, q: Tensor, k: Tensor) -> Layout | None:
        """The same, with the text that is left out of this call."""
        others = q.shape[-2] - self.image_tokens
        if others < 0 or q.shape[-2] != k.shape[-2]:
            return None
        before = self.gather.before(others)
        return Layout(before, others - before)

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        layout = self.layout(q, k) if place in self.subset.entries[-1].parts else None
        if layout is None:
            return function(q, k, v, heads, *args, **kwargs)
        rest, full = self.subset.get(place, self.keys, self.sigma).chunk(2, dim=-1), layout
        ends = [self._ends(k, layout), self._ends(_as(q, v), layout)]
        if self.gather.drops_text and self.subset.entries[-1].holds(self.keys, (*place, TEXT)):
            ends = self.subset.get((*place, TEXT), self.keys, self.sigma).chunk(2, dim=-1)
            count = ends[0].shape[-2]
            before = self.around.before(count)
            full = Layout(before, count - before)
        k, v = (self._full(*of, layout, full) for of in zip((k, _as(q, v)), rest, ends, strict=True))
        mask, kwargs = split_mask(args, kwargs)
        if mask is not None:
            kwargs["mask"] = self._mask(mask, full)
        return function(q, k, v, heads, **kwargs)

    def _ends(self, own: Tensor, layout: Layout) -> Tensor:
        """The other tokens of this call, those before the image's and those after."""
        return torch.cat([own[..., : layout.before, :], own[..., layout.before + self.image_tokens :, :]], dim=-2)

    def _full(self, own: Tensor, rest: Tensor, ends: Tensor, layout: Layout, whole: Layout) -> Tensor:
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
        places = self.gather.places(layout.before, layout.after)
        total = layout.before + self.subset.grid.count + layout.after
        if mask.shape[-1] != total:
            free = True if mask.dtype == torch.bool else 0
            mask = mask.new_full((*mask.shape[:-1], total), free).index_copy_(mask.ndim - 1, places, mask)
        return mask.index_select(-2, places) if mask.ndim > 1 and mask.shape[-2] == total else mask
