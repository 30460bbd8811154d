"""HunyuanDiT: self-attention of the image, cross-attention to text, long skips; rotary positions (cosines, sines)."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.tokens import Pick
from .base import Call, Family


def enter(block, args, kwargs, pick: Pick):
    x, vector, text, positions, *skip = args
    return [pick.tokens(x), vector, text, tuple(pick.positions(table, 0) for table in positions), *skip], kwargs


def stations(block):
    yield attention(block.attn1, gives=0)
    yield attention(block.attn2, gives=0)
    yield mlp(block.mlp)


def orders(network, call: Call) -> list[Order]:
    """The text of both encoders is looked at."""
    text = call.text + call.given["encoder_hidden_states_t5"].shape[1]
    return [Order((("picture", call.grid.count),), looks_at=text)]


FAMILY = Family(
    title="HunyuanDiT",
    network=("comfy.ldm.hydit.models.HunYuanDiT", "comfy.ldm.hydit.models.HunYuanDiTModel"),
    blocks=lambda network: network.blocks,
    enter=enter,
    stations=stations,
    orders=orders,
    leave=lambda network: network.final_layer,
    functions=("comfy.ldm.hydit.attn_layers",),
)
