"""Weights on the keys of joint attention: the prompt's, by stage, and those of merged tokens, by what they stand for.

That SDTM reweights the prompt is all its abstract says of it; the rule here is ours. Merging leaves fewer image tokens for
attention to go to, so that the prompt counts more than it did; a weight w on keys adds log w to their logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..partial.tokens import AttentionTap, Function, Layout
from .matching import Merge


def prompt_weight(a_p: float, progress: float) -> float:
    """Log weight of the prompt's tokens: a_p at the start of the schedule, -a_p at its end, along a cosine."""
    return a_p * math.cos(math.pi * progress)


class WeighingTap(AttentionTap):
    """Adds log weights to the keys of the image's attention, by a mask, which every backend of attention takes.

    prompt: log weight of other tokens than the image's. merge: what is merged in blocks other than `spared`, None where
    nothing is; proportional: whether merged tokens count as many as they stand for.
    """

    def __init__(
        self, count: int, merge: Merge | None, spared: frozenset[int] = frozenset(), prompt: float = 0.0,
        proportional: bool = False, text_first: bool = True, trailing: int = 0, previous: Function | None = None,
    ):  # fmt: skip
        super().__init__(count, text_first, trailing, previous)
        self.whole, self.merge, self.spared, self.prompt, self.proportional = count, merge, spared, prompt, proportional
        self.biases: dict[tuple[int, bool, Layout], Tensor] = {}

    @contextmanager
    def within(self, block: int) -> Iterator[None]:
        merge = None if block in self.spared else self.merge
        self.merged = merge is not None
        self.image_tokens = merge.merged_count if merge is not None else self.whole
        with super().within(block):
            yield

    def _bias(self, counts: bool, layout: Layout, q: Tensor) -> Tensor:
        """Log weights of all keys (1, tokens)."""
        image = self.merge.sizes.to(q.dtype).log() if counts and self.merge is not None else q.new_zeros(self.image_tokens)
        return torch.cat([q.new_full((layout.before,), self.prompt), image, q.new_full((layout.after,), self.prompt)])[None]

    def attend(self, place, function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        layout, counts = self.layout(q, k), self.merged and self.proportional
        if layout is None or not (counts or self.prompt and layout.before + layout.after):
            return function(q, k, v, heads, *args, **kwargs)
        key = self.image_tokens, counts, layout
        if key not in self.biases:
            self.biases[key] = self._bias(counts, layout, q)
        bias = self.biases[key]
        mask, args = (args[0], args[1:]) if args else (kwargs.pop("mask", None), args)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask + bias
        if args:
            kwargs["attn_precision"] = args[0]
        return function(q, k, v, heads, mask=bias, **kwargs)
