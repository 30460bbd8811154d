"""LTX-Video: self-attention of all frames' tokens, cross-attention to text; rotary positions, timesteps by token."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family, text_looked_at


def gather_inputs(block, args, kwargs, gather: Gather):
    """A start image's tokens have another timestep, so that each token's goes with it."""
    table, *kind = kwargs["pe"]
    kwargs["pe"] = (gather.positions(table, 1), *kind)
    kwargs["timestep"] = gather.image(kwargs["timestep"])
    return [gather.tokens(args[0])], kwargs


def sites(block):
    yield attention(block.attn1)
    yield attention(block.attn2)
    yield mlp(block.ff)


def orders(network, call: Call) -> list[Order]:
    """Guiding frames leave tokens out, so that what is left is not known."""
    return [] if call.given.get("keyframe_idxs") is not None else text_looked_at(network, call)


FAMILY = Family(
    title="LTX-Video",
    network=("comfy.ldm.lightricks.model.LTXVModel",),
    blocks=lambda network: network.transformer_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.norm_out,
    patch=lambda network: 1,
)
