"""Qwen-Image: text and image apart in every block, rotary positions of [text, image]."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.tokens import Pick
from .base import Family


def enter(block, args, kwargs, pick: Pick):
    kwargs["hidden_states"] = pick.tokens(kwargs["hidden_states"])
    if kwargs.get("encoder_hidden_states_mask") is None:  # which the block makes fit to its own text
        kwargs["encoder_hidden_states"] = pick.text(kwargs["encoder_hidden_states"])
    kwargs["image_rotary_emb"] = pick.positions(kwargs["image_rotary_emb"], 2)
    return args, kwargs


def stations(block):
    yield attention(block.attn, takes="hidden_states", gives=0)
    yield mlp(block.img_mlp)


FAMILY = Family(
    title="Qwen-Image",
    network=("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",),
    blocks=lambda network: network.transformer_blocks,
    enter=enter,
    stations=stations,
    leave=lambda network: network.norm_out,
)
