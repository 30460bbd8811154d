"""ERNIE-Image: one stream of [image, text]; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family, picture_then_text


def gather_inputs(block, args, kwargs, gather: Gather):
    x, positions, *rest = args
    return [gather.tokens(x, text=True), gather.positions(positions, 1), *rest], kwargs


def sites(block):
    yield attention(block.self_attention)
    yield mlp(block.mlp)


FAMILY = Family(
    title="ERNIE-Image",
    network=("comfy.ldm.ernie.model.ErnieImageModel",),
    blocks=lambda network: network.layers,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=picture_then_text,
    final_layer=lambda network: network.final_norm,
    attention_modules=("comfy.ldm.ernie.model",),
)
