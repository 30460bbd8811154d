"""SD3 and SD3.5: joint attention of text and image with weights of their own; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    context, x, *rest = args
    return [pick.text(context), pick.tokens(x), *rest], kwargs


def stations(block):
    image = block.x_block
    yield attention(image.attn.qkv, image.attn.proj)
    if image.x_block_self_attn:
        yield attention(image.attn2.qkv, image.attn2.proj)
    yield mlp(image.mlp)


FAMILY = Family(
    title="SD3, SD3.5",
    network=("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",),
    blocks=lambda network: network.joint_blocks,
    enter=enter,
    stations=stations,
    leave=lambda network: network.final_layer,
)
