"""HiDream-I1: [image, text] in every block, the text's states renewed in each; rotary positions of the whole sequence."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    kwargs["image_tokens"] = pick.tokens(kwargs["image_tokens"])
    kwargs["rope"] = pick.positions(kwargs["rope"], 1)
    return args, kwargs


def stations(block):
    yield attention(block.block.attn1, gives=None if block.block.attn1.single else 0)
    yield mlp(block.block.ff_i)


FAMILY = Family(
    title="HiDream-I1",
    network=("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",),
    blocks=lambda network: (*network.double_stream_blocks, *network.single_stream_blocks),
    enter=enter,
    stations=stations,
    leave=lambda network: network.final_layer,
    text_first=False,
)
