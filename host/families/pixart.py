"""PixArt alpha and sigma: self-attention of the image, cross-attention to text; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family, text_looked_at


def enter(block, args, kwargs, pick: Pick):
    args[0] = pick.tokens(args[0])
    return args, kwargs


def stations(block):
    yield attention(block.attn)
    yield attention(block.cross_attn)
    yield mlp(block.mlp)


FAMILY = Family(
    title="PixArt",
    network=("comfy.ldm.pixart.pixartms.PixArtMS",),
    blocks=lambda network: network.blocks,
    enter=enter,
    stations=stations,
    orders=text_looked_at,
    leave=lambda network: network.final_layer,
    functions=("comfy.ldm.pixart.blocks",),
)
