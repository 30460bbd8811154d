"""Boogu: OmniGen2 with blocks between that have text and image apart, where the image also looks at itself alone."""

from dataclasses import replace

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from . import omnigen


def gather_inputs(block, args, kwargs, gather: Gather):
    if not hasattr(block, "img_instruct_attn"):
        return omnigen.gather_inputs(block, args, kwargs, gather)
    image, text, of_both, of_image, *rest = args
    image, text = gather.tokens(image, alone=True), gather.text(text)  # references stand before the picture
    return [image, text, gather.positions(of_both, 1), gather.positions(of_image, 1, alone=True), *rest], kwargs


def sites(block):
    if hasattr(block, "img_instruct_attn"):
        yield attention(block.img_instruct_attn)
        yield attention(block.img_self_attn, input_arg=(0, 1))
        yield mlp(block.img_feed_forward)
    else:
        yield from omnigen.sites(block)


FAMILY = replace(
    omnigen.FAMILY,
    title="Boogu",
    network=("comfy.ldm.boogu.model.BooguTransformer2DModel",),
    blocks=lambda network: (*network.noise_refiner, *network.double_stream_layers, *network.single_stream_layers),
    gather_inputs=gather_inputs,
    sites=sites,
)
