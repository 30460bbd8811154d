"""What a family of transformers has to say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from ...engine.merging.sites import Stations
from ...engine.partial.order import Order, Part
from ...engine.partial.tokens import Enter, TokenGrid


@dataclass(frozen=True)
class Call:
    """What one call of a model is given.

    grid: the picture's tokens. text: how many tokens of text the context has. given: all other inputs by their names.
    """

    grid: TokenGrid
    text: int
    given: Mapping[str, Any]

    @property
    def parts(self) -> tuple[tuple[Part, int], ...]:
        """Text, then the picture."""
        return ("text", self.text), ("picture", self.grid.count)

    def references(self, network: nn.Module, name: str = "ref_latents") -> list[Tensor]:
        """The latents given by this name, none where the network takes no input of that name and so ignores them."""
        given = self.given.get(name)
        if given is None or name not in inspect.signature(network._forward).parameters:
            return []
        return list(given)


def tokens_of(latent: Tensor, patch: int) -> int:
    """How many tokens a latent (B, C, [frames,] H, W) has, where models pad it to whole patches."""
    *frames, height, width = latent.shape[2:]
    return prod(frames) * -(-height // patch) * -(-width // patch)


def text_then_picture(network: nn.Module, call: Call) -> list[Order]:
    """One sequence of text and picture, and the references after it of models that are given any."""
    references = call.references(network)
    return [Order((*call.parts, *(("reference", tokens_of(latent, network.patch_size)) for latent in references)))]


def text_looked_at(network: nn.Module, call: Call) -> list[Order]:
    """One sequence of the picture alone, which looks at the text."""
    return [Order((("picture", call.grid.count),), looks_at=call.text)]


@dataclass(frozen=True)
class Family:
    """One family.

    title: for people. network: the class of its diffusion models, with its module.
    blocks: the modules that tokens run through, in order. enter: takes the subset out of a block's arguments. leave: the
    module that wants all tokens again, as its first argument; stops: blocks after which a model wants them in between.
    stations: where in a block attention and MLP are, for merging image tokens around them.
    orders: what stands in the sequences of tokens of a call, of which its blocks compute one or several; the last one is
    that of most blocks. Empty where it cannot be known. functions: modules whose `optimized_attention` is not told the
    transformer_options, so that it has to be replaced by name for the length of a call. knows: whether a network of the
    class is built as it has to be.
    """

    title: str
    network: tuple[str, ...]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    enter: Enter
    stations: Stations
    leave: Callable[[nn.Module], nn.Module]
    orders: Callable[[nn.Module, Call], Sequence[Order]] = text_then_picture
    patch: Callable[[nn.Module], int] = lambda network: network.patch_size
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
