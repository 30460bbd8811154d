"""What a family of transformers has to say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import Tensor, nn

from ...engine.merging.sites import MergeSites
from ...engine.partial.order import Order, Part
from ...engine.partial.token_gather import GatherInputs
from ...engine.partial.token_subset import TokenGrid


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

    def references(self, network: Any, name: str = "ref_latents") -> list[Tensor]:
        """The latents given by this name, none where the network takes no input of that name and so ignores them."""
        given = self.given.get(name)
        if given is None or name not in inspect.signature(network._forward).parameters:
            return []
        return list(given)


def tokens_of(latent: Tensor, patch: int) -> int:
    """How many tokens a latent (B, C, [frames,] H, W) has, where models pad it to whole patches."""
    *frames, height, width = latent.shape[2:]
    return prod(frames) * -(-height // patch) * -(-width // patch)


def text_then_picture(network: Any, call: Call) -> list[Order]:
    """One sequence of text and picture, and the references after it of models that are given any."""
    references = call.references(network)
    return [Order((*call.parts, *(("reference", tokens_of(latent, network.patch_size)) for latent in references)))]


def picture_then_text(network: Any, call: Call) -> list[Order]:
    """One sequence of picture and text."""
    return [Order((("picture", call.grid.count), ("text", call.text)))]


def text_looked_at(network: Any, call: Call) -> list[Order]:
    """One sequence of the picture alone, which looks at the text."""
    return [Order((("picture", call.grid.count),), looks_at=call.text)]


@dataclass(frozen=True)
class Family:
    """One family.

    title: for people. network: the classes of its diffusion models, with their modules.
    blocks: the modules that tokens run through, in order. gather_inputs: gathers the subset from a block's arguments.
    final_layer: the module that wants all tokens again, as its first argument. full_sequence_after: the blocks after which a
    model wants them in between. sites: where in a block attention and MLP are, for merging image tokens around them.
    orders: what stands in the sequences of tokens of a call, of which its blocks compute one or several; the last one is
    that of most blocks. Empty where it cannot be known. patch: the side of a token's patch, in latent cells.
    references: what becomes of reference pictures where a part is computed or tokens are merged. They are "left out" of the
    call, and attention is given their recorded keys and values, where their tokens end the sequence and the places of all
    others do not hang on them; they run "along" where the places do; else no part is computed beside them.
    attention_modules: modules whose `optimized_attention` is not told the transformer_options, so that it has to be replaced by
    name for the length of a call. supports: whether a network of these classes is built as it has to be, which differs between
    versions of ComfyUI. no_regions: why no part of the frame can be computed by itself, although tokens can be merged; empty
    where it can.
    """

    title: str
    network: tuple[str, ...]
    blocks: Callable[[Any], Iterable[nn.Module]]
    gather_inputs: GatherInputs
    sites: MergeSites
    final_layer: Callable[[Any], nn.Module]
    orders: Callable[[Any, Call], Sequence[Order]] = text_then_picture
    patch: Callable[[Any], int] = lambda network: network.patch_size
    full_sequence_after: Callable[[Any], Sequence[nn.Module]] = lambda network: ()
    references: Literal["left out", "along", "refused"] = "refused"
    attention_modules: tuple[str, ...] = ()
    supports: Callable[[Any], bool] = lambda network: True
    no_regions: str = ""

    def is_named(self, network: Any) -> bool:
        """Whether a network is of these classes, by name, since importing them all would take seconds."""
        return f"{type(network).__module__}.{type(network).__name__}" in self.network

    def matches(self, network: Any) -> bool:
        """Whether a network is of this family and built as it has to be."""
        return self.is_named(network) and self.supports(network)


def chosen(blocks: Sequence[Any], count: int) -> list[int]:
    """Indices of at most `count` blocks, spread evenly over the middle half, where text tells most about places."""
    first, last = len(blocks) // 4, max(len(blocks) // 4, 3 * len(blocks) // 4)
    places = list(range(first, last + 1))
    return places if len(places) <= count else [places[i * (len(places) - 1) // (count - 1)] for i in range(count)]
