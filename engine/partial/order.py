"""What stands where in the sequences of tokens that a transformer computes, as its family knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Part = Literal["text", "picture", "reference", "other"]


@dataclass(frozen=True)
class Around:
    """Where the tokens that are not the picture's stand in a sequence.

    others_first: whether they come before the picture's, but for `trailing` of them at the end; else they all come after.
    crosses: whether the picture looks at itself in the first attention of a block alone, and at something else in the later.
    """

    others_first: bool = True
    trailing: int = 0
    crosses: bool = False

    def before(self, others: int) -> int:
        """How many of so many other tokens come before the picture's."""
        return others - self.trailing if self.others_first else 0


@dataclass(frozen=True)
class Order:
    """The tokens of one sequence, part after part: what each part is of, and how many tokens it has.

    "text" is the prompt's. "picture" is what is sampled: one run of tokens, or a run for each row where references stand
    beside it. "reference" is another picture of the same sequence, "other" all else (padding, registers, image embeddings).
    looks_at: how many tokens of text the later attentions of a block look at, which are not in the sequence
    (cross-attention); 0 where they cannot be told apart, None where there is no cross-attention.
    """

    parts: tuple[tuple[Part, int], ...]
    looks_at: int | None = None

    @property
    def length(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def before(self) -> int:
        """How many tokens come before the picture's first."""
        return self.spans("picture")[0][0]

    @property
    def after(self) -> int:
        """How many tokens come after the picture's last."""
        return self.length - self.spans("picture")[-1][1]

    @property
    def references_at_end(self) -> int:
        """How many tokens of references end the sequence. Caches of keys and values leave these out of the queries."""
        count = 0
        for part, tokens in reversed(self.parts):
            if part != "reference":
                break
            count += tokens
        return count

    @property
    def around(self) -> Around:
        """Where the tokens that are not the picture's stand, as far as they stand at its ends."""
        return Around(self.before > 0, self.after if self.before else 0, self.looks_at is not None)

    def without(self, part: Part) -> Order:
        """The same sequence, with the tokens of one part left out."""
        return replace(self, parts=tuple(own for own in self.parts if own[0] != part))

    def spans(self, *parts: Part) -> list[tuple[int, int]]:
        """(start, stop) of each run of these parts' tokens."""
        found: list[tuple[int, int]] = []
        start = 0
        for name, count in self.parts:
            if name in parts and count and found and found[-1][1] == start:
                found[-1] = found[-1][0], start + count
            elif name in parts and count:
                found.append((start, start + count))
            start += count
        return found

    def __str__(self) -> str:
        """The counts of each part, for people."""
        counts: dict[str, int] = {}
        for part, count in self.parts:
            counts[part] = counts.get(part, 0) + count
        return ", ".join(f"{part} {count}" for part, count in counts.items() if count)


def found(orders: Sequence[Order], number: int, queries: int, keys: int) -> Order | None:
    """The order of the sequence that the attention with this number in its block computes, by its counts of queries and keys.

    None where the counts add up to no sequence that is known. References at the end may be missing from the queries, when
    the keys still have them.
    """
    for order in orders:
        if order.looks_at is not None and number:
            if queries == order.length:
                return order
        elif keys == order.length and queries in (keys, keys - order.references_at_end):
            return order
    return None


def unaccounted(orders: Sequence[Order], queries: int, keys: int) -> str:
    """Why an attention is not listened to, and nothing is computed in part, where `found` finds nothing."""
    known = " or ".join(f"({order})" for order in orders) or "no order of tokens"
    return f"an attention of {queries} tokens on {keys} does not add up to what is known of this model: {known}"


def picked(x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The tokens (..., n, C) of some runs of a sequence, a view where there is one run."""
    runs = [x[..., start:stop, :] for start, stop in spans]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=-2)
