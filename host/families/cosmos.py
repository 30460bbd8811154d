"""Cosmos Predict 2 and Anima: self-attention of the image, which keeps its rows and columns between blocks, cross-attention to
text; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family, text_looked_at


def gather_inputs(block, args, kwargs, gather: Gather):
    args[0] = gather.tokens(args[0])
    kwargs["rope_emb_L_1_1_D"] = gather.positions(kwargs["rope_emb_L_1_1_D"], 1)
    return args, kwargs


def sites(block):
    yield attention(block.self_attn)
    yield attention(block.cross_attn)
    yield mlp(block.mlp)


def orders(network, call: Call) -> list[Order]:
    """Where the frames have timesteps of their own, as beside a start image, nothing is computed in part."""
    return [] if call.given.get("denoise_mask") is not None else text_looked_at(network, call)


FAMILY = Family(
    title="Cosmos Predict 2, Anima",
    network=("comfy.ldm.cosmos.predict2.MiniTrainDIT", "comfy.ldm.anima.model.Anima"),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
    patch=lambda network: network.patch_spatial,
    supports=lambda network: network.patch_temporal == 1 and not network.extra_per_block_abs_pos_emb,
)
