"""AuraFlow: blocks with text and image apart, then blocks on [text, image]; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.tokens import Pick
from .base import Call, Family


def enter(block, args, kwargs, pick: Pick):
    if len(args) > 2:  # text, image, vector
        args[:2] = pick.text(args[0]), pick.tokens(args[1])
    else:  # both, vector
        args[0] = pick.tokens(args[0], text=True)
    return args, kwargs


def stations(block):
    if hasattr(block, "mlpX"):
        yield attention(block.attn, takes=1, gives=1)
        yield mlp(block.mlpX)
    else:
        yield attention(block.attn)
        yield mlp(block.mlp)


def orders(network, call: Call) -> list[Order]:
    return [Order((("other", network.register_tokens.shape[1]), *call.parts))]


FAMILY = Family(
    title="AuraFlow",
    network=("comfy.ldm.aura.mmdit.MMDiT",),
    blocks=lambda network: (*network.double_layers, *network.single_layers),
    enter=enter,
    stations=stations,
    orders=orders,
    leave=lambda network: network.final_linear,
)
