"""Weights on the keys of joint attention: the prompt's, by stage, and those of merged tokens, by what they stand for.

That SDTM reweights the prompt is all its abstract says of it; the rule here is ours. Merging leaves fewer image tokens for
attention to go to, so that the prompt counts more than it did; a weight w on keys adds log w to their logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..partial.attention_override import AttentionOverride, Function, Further, Layout, split_mask
from ..partial.order import Around
from ..partial.token_gather import ALL_FIRST
from .matching import Merge


@dataclass(frozen=True)
class KeyBias:
    """Log weights on the keys of joint attention. prompt: of tokens other than the image's. proportional: whether a merged
    token weighs as many as it stands for (ToMe, Bolya et al. 2023)."""

    prompt: float = 0.0
    proportional: bool = False


def prompt_weight(a_p: float, progress: float) -> float:
    """Log weight of the prompt's tokens: a_p at the start of the schedule, -a_p at its end, along a cosine."""
    return a_p * math.cos(math.pi * progress)


class KeyBiasOverride(AttentionOverride):
    """Adds log weights to the keys of the image's attention, by a mask.

    image_tokens: of a whole sequence. merge: what is merged in blocks other than `spared`, None where nothing is. bias: what is
    added. around, further: as `AttentionOverride` has them; what is looked at further keeps its weight.
    """

    def __init__(
        self, image_tokens: int, merge: Merge | None, bias: KeyBias, spared: frozenset[int] = frozenset(),
        around: Around = ALL_FIRST, previous: Function | None = None, further: Further | None = None,
    ):  # fmt: skip
        super().__init__(image_tokens, around, previous, further)
        self.full_count, self.merge, self.bias, self.spared = image_tokens, merge, bias, spared
        self.running: Merge | None = None  # what the running block merges
        self.biases: dict[tuple[int, bool, Layout], Tensor] = {}

    @contextmanager
    def within(self, block: int) -> Iterator[None]:
        self.running = None if block in self.spared else self.merge
        self.image_tokens = self.full_count if self.running is None else self.running.merged_count
        with super().within(block):
            yield

    def _biases(self, counts: bool, layout: Layout, q: Tensor) -> Tensor:
        """The log weights of all keys (1, tokens)."""
        merge = self.running if counts else None
        image = q.new_zeros(self.image_tokens) if merge is None else merge.sizes.to(q.dtype).log()
        ends = (q.new_full((count,), self.bias.prompt) for count in (layout.before, layout.after))
        first, last = ends
        return torch.cat([first, image, last])[None]

    def attend(self, place, function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        own = not (self.around.crosses and place[1])
        layout, counts = self.layout(q, k) if own else None, self.running is not None and self.bias.proportional
        if layout is None or not (counts or self.bias.prompt and layout.before + layout.after):
            return function(q, k, v, heads, *args, **kwargs)
        key = self.image_tokens, counts, layout
        if key not in self.biases:
            self.biases[key] = self._biases(counts, layout, q)
        bias = self.biases[key]
        mask, kwargs = split_mask(args, kwargs)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask + bias
        return function(q, k, v, heads, mask=bias, **kwargs)
