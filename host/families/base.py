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
    """Takes the tokens of a subset out of tensors that hold all of them; tensors that do not are left as they are."""

    def __init__(self, subset: TokenSubset):
        self.subset, self.count = subset, subset.grid.count

    def image(self, x: Tensor, axis: int = 1) -> Tensor:
        """Of a tensor whose `axis` holds the image tokens alone."""
        return x.index_select(axis, self.subset.active) if x.shape[axis] == self.count else x

    def joint(self, x: Tensor, axis: int, before: int = 0, after: int = 0) -> Tensor:
        """Of one that has `before` and `after` other tokens beside the image's."""
        if x.shape[axis] != before + self.count + after:
            return x
        device = x.device
        places = [torch.arange(before, device=device), before + self.subset.active,
                  torch.arange(before + self.count, x.shape[axis], device=device)]  # fmt: skip
        return x.index_select(axis, torch.cat(places))

    def back(self, x: Tensor, axis: int = 1) -> Tensor:
        """The image tokens in their places among zeros."""
        shape = list(x.shape)
        shape[axis] = self.count
        return x.new_zeros(shape).index_copy_(axis, self.subset.active, x)


@dataclass(frozen=True)
class Family:
    """One family.

    title: for people. network: names of the classes of its diffusion models, looked for among their bases.
    blocks: the modules that tokens run through, in order. enter: takes the subset's tokens out of a block's arguments.
    leave: the module that wants all image tokens again, as its first argument. text_first: on which side of the image
    tokens the text's are in a joint attention. refused: why a graph cannot be computed in part, None where it can.
    """

    title: str
    network: tuple[str, ...]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    enter: Callable[[nn.Module, list[Any], dict[str, Any], Pick], Arguments]
    leave: Callable[[nn.Module], nn.Module]
    patch: Callable[[nn.Module], int] = lambda network: network.patch_size
    text_first: bool = True
    refused: Callable[[dict, dict], str | None] = lambda kwargs, options: None

    def matches(self, network: nn.Module) -> bool:
        return any(base.__name__ in self.network for base in type(network).__mro__)


def chosen(blocks: Sequence[Any], count: int) -> list[int]:
    """Indices of at most `count` blocks, spread evenly over the middle half, where text tells most about places."""
    first, last = len(blocks) // 4, max(len(blocks) // 4, 3 * len(blocks) // 4)
    places = list(range(first, last + 1))
    return places if len(places) <= count else [places[i * (len(places) - 1) // (count - 1)] for i in range(count)]
