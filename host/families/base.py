"""What a family of transformers has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.tokens import TokenSubset

Arguments = tuple[list[Any], dict[str, Any]]


class Pick:
    """Takes a subset of the image tokens out of what a call's blocks are given, and puts it back at the end.

    entering: True for the first block, which is given all tokens; later ones are given what that one returned.
    text_first, trailing: as a family has them.
    """

    def __init__(self, subset: TokenSubset, text_first: bool = True, trailing: int = 0):
        self.subset, self.count, self.text_first, self.trailing = subset, subset.grid.count, text_first, trailing
        self.entering = True

    def tokens(self, x: Tensor) -> Tensor:
        """Of hidden states (B, others before, image, trailing; C)."""
        return self.positions(x, 1) if self.entering else x

    def positions(self, x: Tensor, axis: int) -> Tensor:
        """Of a table that always has all tokens on its `axis`, whatever is before the image's included."""
        before = x.shape[axis] - self.count - self.trailing if self.text_first else 0
        after = torch.arange(before + self.count, x.shape[axis], device=x.device)
        places = [torch.arange(before, device=x.device), before + self.subset.active, after]
        return x.index_select(axis, torch.cat(places))

    def image(self, x: Tensor) -> Tensor:
        """Of a tensor (B, image, C) that always has all image tokens and no others; any other stays as it is."""
        return x.index_select(1, self.subset.active) if x.shape[1] == self.count else x

    def back(self, x: Tensor) -> Tensor:
        """Hidden states with the image tokens in their places among zeros."""
        count = len(self.subset.active)
        before = x.shape[1] - count - self.trailing if self.text_first else 0
        first, active, last = x.split([before, count, x.shape[1] - before - count], dim=1)
        image = x.new_zeros(len(x), self.count, x.shape[2]).index_copy_(1, self.subset.active, active)
        return torch.cat([first, image, last], dim=1) if x.shape[1] > count else image


def _no_arguments(block: nn.Module, args: list[Any], kwargs: dict[str, Any], pick: Pick) -> Arguments:
    raise NotImplementedError


@dataclass(frozen=True)
class Family:
    """One family.

    title: for people. network: the class of its diffusion models, with its module.
    blocks: the modules that tokens run through, in order. enter: takes the subset out of a block's arguments. leave: the
    module that wants all tokens again, as its first argument; stops: blocks after which a model wants them in between.
    text_first: False where the image's tokens come before all others. trailing: how many tokens follow the image's where
    text comes first. functions: modules whose `optimized_attention` is not told the transformer_options, so that it has
    to be replaced by name for the length of a call.
    """

    title: str
    network: tuple[str, ...]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    leave: Callable[[nn.Module], nn.Module]
    enter: Callable[[nn.Module, list[Any], dict[str, Any], Pick], Arguments] = _no_arguments
    patch: Callable[[nn.Module], int] = lambda network: network.patch_size
    text_first: bool = True
    trailing: Callable[[nn.Module, int], int] = lambda network, count: 0
    stops: Callable[[nn.Module], Sequence[nn.Module]] = lambda network: ()
    functions: tuple[str, ...] = ()

    def matches(self, network: nn.Module) -> bool:
        return f"{type(network).__module__}.{type(network).__name__}" in self.network


def chosen(blocks: Sequence[Any], count: int) -> list[int]:
    """Indices of at most `count` blocks, spread evenly over the middle half, where text tells most about places."""
    first, last = len(blocks) // 4, max(len(blocks) // 4, 3 * len(blocks) // 4)
    places = list(range(first, last + 1))
    return places if len(places) <= count else [places[i * (len(places) - 1) // (count - 1)] for i in range(count)]
