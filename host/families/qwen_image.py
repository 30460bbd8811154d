"""Qwen-Image: text and image apart in every block, rotary positions of [text, image]."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family


def gather_inputs(block, args, kwargs, gather: Gather):
    kwargs["hidden_states"] = gather.tokens(kwargs["hidden_states"])
    if kwargs.get("encoder_hidden_states_mask") is None:  # which the block makes fit to its own text
        kwargs["encoder_hidden_states"] = gather.text(kwargs["encoder_hidden_states"])
    kwargs["image_rotary_emb"] = gather.positions(kwargs["image_rotary_emb"], 2)
    return args, kwargs


def sites(block):
    yield attention(block.attn, input_arg="hidden_states", output_index=0)
    yield mlp(block.img_mlp)


FAMILY = Family(
    title="Qwen-Image",
    network=("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",),
    blocks=lambda network: network.transformer_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    final_layer=lambda network: network.norm_out,
    references="left out",
)
