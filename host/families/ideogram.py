"""Ideogram 4: one stream of [text, image], or of the image alone; rotary positions, and a mask where text is filled up."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family


def gather_inputs(block, args, kwargs, gather: Gather):
    x, mask, positions, *rest = args
    x, positions = gather.tokens(x, text=True), gather.positions(positions, 1)
    return [x, None if mask is None else gather.mask(mask), positions, *rest], kwargs


def sites(block):
    yield attention(block.attention)
    yield mlp(block.feed_forward)


FAMILY = Family(
    title="Ideogram 4",
    network=("comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel",),
    blocks=lambda network: network.layers,
    gather_inputs=gather_inputs,
    sites=sites,
    final_layer=lambda network: network.final_layer,
    patch=lambda network: 1,  # a latent cell is a patch of the picture's own
)
