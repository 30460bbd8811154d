"""AuraFlow: blocks with text and image apart, then blocks on [text, image]; positions are added at the input."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family


def gather_inputs(block, args, kwargs, gather: Gather):
    if len(args) > 2:  # text, image, vector
        args[:2] = gather.text(args[0]), gather.tokens(args[1])
    else:  # both, vector
        args[0] = gather.tokens(args[0], text=True)
    return args, kwargs


def sites(block):
    if hasattr(block, "mlpX"):
        yield attention(block.attn, input_arg=1, output_index=1)
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
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_linear,
)
