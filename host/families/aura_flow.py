"""AuraFlow: blocks with text and image apart, then blocks on [text, image]; positions are added at the input."""

from ...engine.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    at = 1 if len(args) > 2 else 0  # (text, image, vector) or (both, vector)
    args[at] = pick.tokens(args[at])
    return args, kwargs


FAMILY = Family(
    title="AuraFlow",
    network=("comfy.ldm.aura.mmdit.MMDiT",),
    blocks=lambda network: (*network.double_layers, *network.single_layers),
    enter=enter,
    leave=lambda network: network.final_linear,
)
