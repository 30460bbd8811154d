"""What a family of transformers has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...engine.merging.sites import Stations
from ...engine.partial.tokens import Enter


@dataclass(frozen=True)
class Family:
    """One family.

    title: for people. network: the class of its diffusion models, with its module.
    blocks: the modules that tokens run through, in order. enter: takes the subset out of a block's arguments. leave: the
    module that wants all tokens again, as its first argument; stops: blocks after which a model wants them in between.
    stations: where in a block attention and MLP are, for merging image tokens around them.
    text_first: False where the image's tokens come before all others. trailing: how many tokens follow the image's where
    text comes first. functions: modules whose `optimized_attention` is not told the transformer_options, so that it has
    to be replaced by name for the length of a call. knows: whether a network of the class is built as it has to be.
    """

    title: str
    network: tuple[str, ...]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    enter: Enter
    stations: Stations
    leave: Callable[[nn.Module], nn.Module]
    patch: Callable[[nn.Module], int] = lambda network: network.patch_size
    text_first: bool = True
    trailing: Callable[[nn.Module, int], int] = lambda network, count: 0
    stops: Callable[[nn.Module], Sequence[nn.Module]] = lambda network: ()
    functions: tuple[str, ...] = ()
    knows: Callable[[nn.Module], bool] = lambda network: True

    def names(self, network: nn.Module) -> bool:
        return f"{type(network).__module__}.{type(network).__name__}" in self.network

    def matches(self, network: nn.Module) -> bool:
        return self.names(network) and self.knows(network)


def chosen(blocks: Sequence[Any], count: int) -> list[int]:
    """Indices of at most `count` blocks, spread evenly over the middle half, where text tells most about places."""
    first, last = len(blocks) // 4, max(len(blocks) // 4, 3 * len(blocks) // 4)
    places = list(range(first, last + 1))
    return places if len(places) <= count else [places[i * (len(places) - 1) // (count - 1)] for i in range(count)]
