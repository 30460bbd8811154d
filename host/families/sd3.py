"""SD3 and SD3.5: joint attention of text and image with weights of their own; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family


def gather_inputs(block, args, kwargs, gather: Gather):
    context, x, *rest = args
    return [gather.text(context), gather.tokens(x), *rest], kwargs


def sites(block):
    image = block.x_block
    yield attention(image.attn.qkv, image.attn.proj)
    if image.x_block_self_attn:
        yield attention(image.attn2.qkv, image.attn2.proj)
    yield mlp(image.mlp)


def orders(network, call: Call) -> list[Order]:
    """SD3.5 medium's pictures look at themselves a second time."""
    return [Order((("picture", call.grid.count),)), Order((("other", network.register_length), *call.parts))]


FAMILY = Family(
    title="SD3, SD3.5",
    network=("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",),
    blocks=lambda network: network.joint_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
)
