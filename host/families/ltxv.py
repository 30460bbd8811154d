"""LTX-Video: self-attention of all frames' tokens, cross-attention to text; rotary positions, timesteps by token."""

from torch import Tensor

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family, text_looked_at


def gather_inputs(block, args, kwargs, gather: Gather):
    """A start image's tokens have another timestep, so that each token's goes with it."""
    kwargs["pe"] = gathered(kwargs["pe"], gather)
    kwargs["timestep"] = gather.image(kwargs["timestep"])
    return [gather.tokens(args[0])], kwargs


def gathered(tables, gather: Gather):
    """Positions: a table (B, n, ...) and what kind it is of; up to 0.8 at least cosines and sines (B, [heads,] n, C)."""
    return tuple(gather.positions(t, 2 if t.ndim == 4 else 1) if isinstance(t, Tensor) else t for t in tables)


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
