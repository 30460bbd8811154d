"""SD3 and SD3.5: joint attention of text and image with weights of their own; positions are added at the input."""

from .base import Family, Pick


def _enter(block, args, kwargs, pick: Pick):
    context, x, *rest = args
    return [context, pick.image(x), *rest], kwargs


FAMILY = Family(
    title="SD3, SD3.5", network=("MMDiT",), blocks=lambda network: network.joint_blocks, enter=_enter,
    leave=lambda network: network.final_layer,
)  # fmt: skip
