"""Kandinsky 5: self-attention of all frames' tokens, cross-attention to text; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.token_gather import Gather
from .base import Family, text_looked_at


def gather_inputs(block, args, kwargs, gather: Gather):
    args[0] = gather.tokens(args[0])
    kwargs["freqs"] = gather.positions(kwargs["freqs"], 1)
    return args, kwargs


def sites(block):
    yield attention(block.self_attention)
    yield attention(block.cross_attention)
    yield mlp(block.feed_forward)


FAMILY = Family(
    title="Kandinsky 5",
    network=("comfy.ldm.kandinsky5.model.Kandinsky5",),
    blocks=lambda network: network.visual_transformer_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=text_looked_at,
    final_layer=lambda network: network.out_layer,
    patch=lambda network: network.patch_size[-1],
    full_sequence_after=lambda network: network.visual_transformer_blocks[-1:],
)
