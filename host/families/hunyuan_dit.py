"""HunyuanDiT: self-attention of the image, cross-attention to text, long skips; rotary positions (cosines, sines)."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family


def gather_inputs(block, args, kwargs, gather: Gather):
    x, vector, text, positions, *skip = args
    return [gather.tokens(x), vector, text, tuple(gather.positions(table, 0) for table in positions), *skip], kwargs


def sites(block):
    yield attention(block.attn1, output_index=0)
    yield attention(block.attn2, output_index=0)
    yield mlp(block.mlp)


def orders(network, call: Call) -> list[Order]:
    """The text of both encoders is looked at."""
    text = call.text + call.given["encoder_hidden_states_t5"].shape[1]
    return [Order((("picture", call.grid.count),), looks_at=text)]


FAMILY = Family(
    title="HunyuanDiT",
    network=("comfy.ldm.hydit.models.HunYuanDiT", "comfy.ldm.hydit.models.HunYuanDiTModel"),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
    attention_modules=("comfy.ldm.hydit.attn_layers",),
)
