"""Flux.1, Flux.2 and Chroma: blocks with text and image apart, then blocks on [text, image]; rotary positions."""

from ...engine.merging.sites import attention, mlp, parallel
from ...engine.partial.token_gather import Gather
from .base import Family


def gather_inputs(block, args, kwargs, gather: Gather):
    if "img" in kwargs:
        kwargs["img"], kwargs["txt"] = gather.tokens(kwargs["img"]), gather.text(kwargs["txt"])
    else:
        args[0] = gather.tokens(args[0])
    kwargs["pe"] = gather.positions(kwargs["pe"], 2)
    if kwargs.get("attn_mask") is not None:
        kwargs["attn_mask"] = gather.mask(kwargs["attn_mask"])
    return args, kwargs


def sites(block):
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
    gather_inputs=gather_inputs,
    sites=sites,
    final_layer=lambda network: network.final_layer,
    references="left out",
)
