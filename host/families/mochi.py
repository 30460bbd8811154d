"""Mochi: image and text apart in every block, attention of [image, text]; rotary positions (cosines, sines) of the image."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family


def gather_inputs(block, args, kwargs, gather: Gather):
    x, vector, text = args
    for name in ("rope_cos", "rope_sin"):
        kwargs[name] = gather.positions(kwargs[name], 0)
    return [gather.tokens(x), vector, gather.text(text)], kwargs


def sites(block):
    yield attention(block.attn, output_index=0)
    yield mlp(block.mlp_x)


def orders(network, call: Call) -> list[Order]:
    """Text that fills up the prompt is not looked at."""
    return [Order((("picture", call.grid.count), ("text", min(call.text, call.given.get("num_tokens", 256)))))]


FAMILY = Family(
    title="Mochi",
    network=("comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
)
