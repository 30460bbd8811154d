"""Lumina 2 and Z-Image: image tokens are refined alone, then run in one sequence [text, image, padding]; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    x, mask, positions, *rest = args
    return [pick.tokens(x, text=True), mask, pick.positions(positions, 1), *rest], kwargs


def stations(block):
    yield attention(block.attention)
    yield mlp(block.feed_forward)


def trailing(network, count: int) -> int:
    return -count % network.pad_tokens_multiple if network.pad_tokens_multiple else 0


FAMILY = Family(
    title="Lumina 2, Z-Image",
    network=("comfy.ldm.lumina.model.NextDiT",),
    blocks=lambda network: (*network.noise_refiner, *network.layers),
    enter=enter,
    stations=stations,
    leave=lambda network: network.final_layer,
    trailing=trailing,
    stops=lambda network: network.noise_refiner[-1:],
)
