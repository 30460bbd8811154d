"""Wan 2.1 text to video: self-attention of all frames' tokens, cross-attention to text; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    args[0] = pick.tokens(args[0])
    kwargs["freqs"] = pick.positions(kwargs["freqs"], 1)
    return args, kwargs


def stations(block):
    yield attention(block.self_attn)
    yield attention(block.cross_attn)
    yield mlp(block.ffn)


FAMILY = Family(
    title="Wan 2.1",
    network=("comfy.ldm.wan.model.WanModel",),
    blocks=lambda network: network.blocks,
    enter=enter,
    stations=stations,
    leave=lambda network: network.head,
    patch=lambda network: network.patch_size[-1],
)
