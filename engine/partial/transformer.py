"""Computing parts of a transformer: one executor for every host, which says how its network is built and called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .attention_override import (
    AttentionOverride,
    Capture,
    Function,
    RecordingOverride,
    ReferenceKeeper,
    SubsetOverride,
)
from .cache import ImageRows, Keys
from .order import Around, Order
from .patching import patched_forward
from .token_gather import GatherInputs, TokenGather
from .token_subset import TokenSubset


@dataclass(frozen=True)
class Transformer:
    """How a network is built.

    blocks: the modules that tokens run through, in order. gather_inputs: gathers the subset from a block's arguments.
    final_layer: the module that wants all tokens again, as its first argument. full_sequence_after: the blocks after which
    the network wants them in between.
    """

    blocks: tuple[nn.Module, ...]
    gather_inputs: GatherInputs
    final_layer: nn.Module
    full_sequence_after: tuple[nn.Module, ...] = ()


class TransformerCall(Protocol):
    """One call of a network on a batch, whose rows are its streams, of each of which every image is a row."""

    @property
    def x(self) -> Tensor:
        """The latent (rows, C, ...)."""

    @property
    def keys(self) -> Keys:
        """The streams."""

    @property
    def previous(self) -> Function | None:
        """What takes the place of attention already."""

    def of_image(self, rows: ImageRows) -> TransformerCall:
        """Returns this call for one image of the batch."""

    def of_subset(self, gather: TokenGather) -> TransformerCall:
        """Returns this call for the image of a subset, with what else has a row for each image token gathered."""

    def __call__(self, override: AttentionOverride | None = None) -> Tensor:
        """Make the call with another function in place of attention; returns its denoised rows."""


@contextmanager
def patched_blocks(
    network: Transformer, override: AttentionOverride, gather: TokenGather | None = None
) -> Iterator[None]:  # fmt: skip
    """While this holds, the override knows which of the blocks runs, and only what is gathered runs through them."""
    forwards = {block: _block_forward(network, index, block, override, gather) for index, block in enumerate(network.blocks)}
    if gather is not None:
        final = network.final_layer.forward
        forwards[network.final_layer] = lambda x, *args, **kwargs: final(
            x if gather.entering else gather.scatter(x), *args, **kwargs
        )
    with patched_forward(forwards):
        yield


def _block_forward(
    network: Transformer, index: int, block: nn.Module, override: AttentionOverride, gather: TokenGather | None
) -> Callable:
    forward = block.forward

    def run(*args, **kwargs):
        if gather is not None:
            args, kwargs = network.gather_inputs(block, list(args), dict(kwargs), gather)
            gather.entering = False
        with override.within(index):
            output = forward(*args, **kwargs)
        if gather is not None and block in network.full_sequence_after:
            output, gather.entering = gather.scatter(output), True
        return output

    return run


def record_subsets(
    network: Transformer, call: TransformerCall, subsets: Sequence[TokenSubset], image_tokens: int,
    orders: Sequence[Order] | None = None, capture: Capture | None = None, apart: Sequence[ReferenceKeeper] | None = None,
) -> tuple[Tensor, RecordingOverride]:  # fmt: skip
    """A dense call in which each subset records what it lacks and attention is captured, as `RecordingOverride` has it; returns
    the denoised rows, and what was seen of the attentions."""
    for subset in subsets:
        subset.to(call.x.device)
    override = RecordingOverride(subsets, call.keys, image_tokens, orders, call.previous, capture, apart)
    with patched_blocks(network, override):
        return call(override), override


def compute_subsets(
    network: Transformer, call: TransformerCall, subsets: Sequence[TokenSubset], sigma: float, around: Around
) -> Tensor:
    """The subsets by themselves, in a tensor of the whole call's size that is zero elsewhere."""
    full = torch.zeros_like(call.x)
    for subset in subsets:
        gather = TokenGather(subset, around)
        override = SubsetOverride(gather, call.keys, sigma, call.previous)
        with patched_blocks(network, override, gather):
            subset.rows.of(full)[...] = call.of_subset(gather)(override)
    return full
