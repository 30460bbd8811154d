"""SD3 and SD3.5: joint attention of text and image with weights of their own; positions are added at the input."""

from ...engine.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    context, x, *rest = args
    return [context, pick.tokens(x), *rest], kwargs


FAMILY = Family(
    title="SD3, SD3.5",
    network=("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",),
    blocks=lambda network: network.joint_blocks,
    enter=enter,
    leave=lambda network: network.final_layer,
)
