"""Flux.1, Flux.2 and Chroma: blocks with text and image apart, then blocks on [text, image]; rotary positions."""

from ...engine.merging.sites import attention, mlp, parallel
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    if "img" in kwargs:
        kwargs["img"], kwargs["txt"] = pick.tokens(kwargs["img"]), pick.text(kwargs["txt"])
    else:
        args[0] = pick.tokens(args[0])
    kwargs["pe"] = pick.positions(kwargs["pe"], 2)
    return args, kwargs


def stations(block):
    if hasattr(block, "img_attn"):
        yield attention(block.img_attn.qkv, block.img_attn.proj)
        yield mlp(block.img_mlp)
    else:
        yield parallel(block.linear1, block.linear2)


def blocks(network):
    return (*network.double_blocks, *network.single_blocks)


FAMILY = Family(
    title="Flux.1, Flux.2, Chroma",
    network=("comfy.ldm.flux.model.Flux", "comfy.ldm.chroma.model.Chroma"),
    blocks=blocks,
    enter=enter,
    stations=stations,
    leave=lambda network: network.final_layer,
)
