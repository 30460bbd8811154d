"""Lens: text and image apart in every block; rotary positions and a mask of [image, text]."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family, picture_then_text


def gather_inputs(block, args, kwargs, gather: Gather):
    """All of the text runs along, since the mask says which of it is filling, and has to have its length."""
    kwargs["hidden_states"] = gather.tokens(kwargs["hidden_states"])
    kwargs["freqs_cis"] = gather.positions(kwargs["freqs_cis"], 2)
    kwargs["attention_mask"] = gather.positions(kwargs["attention_mask"], 3)
    return args, kwargs


def sites(block):
    yield attention(block.attn, input_arg="hidden_states", output_index=0)
    yield mlp(block.img_mlp)


FAMILY = Family(
    title="Lens",
    network=("comfy.ldm.lens.model.LensTransformer2DModel",),
    blocks=lambda network: network.transformer_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=picture_then_text,
    final_layer=lambda network: network.norm_out,
    patch=lambda network: 1,  # a latent cell is a patch of the picture's own
)
