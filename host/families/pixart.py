"""PixArt alpha and sigma: self-attention of the image, cross-attention to text; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family, text_looked_at


def gather_inputs(block, args, kwargs, gather: Gather):
    args[0] = gather.tokens(args[0])
    return args, kwargs


def sites(block):
    yield attention(block.attn)
    yield attention(block.cross_attn)
    yield mlp(block.mlp)


FAMILY = Family(
    title="PixArt",
    network=("comfy.ldm.pixart.pixartms.PixArtMS",),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=text_looked_at,
    final_layer=lambda network: network.final_layer,
    attention_modules=("comfy.ldm.pixart.blocks",),
)
