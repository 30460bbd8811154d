"""Krea 2: one stream of [text, image, references]; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family, tokens_of


def gather_inputs(block, args, kwargs, gather: Gather):
    x, vector, positions, *rest = args
    return [gather.tokens(x, text=True), vector, gather.positions(positions, 2), *rest], kwargs


def sites(block):
    yield attention(block.attn)
    yield mlp(block.mlp)


def orders(network, call: Call) -> list[Order]:
    """References are left out by the model itself where it is not said how to number them."""
    numbered = call.given.get("ref_latents_method", network.default_ref_method) is not None
    references = call.references(network) if numbered else []
    return [Order((*call.parts, *(("reference", tokens_of(latent, network.patch)) for latent in references)))]


FAMILY = Family(
    title="Krea 2",
    network=("comfy.ldm.krea2.model.SingleStreamDiT",),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.last,
    references="left out",
    patch=lambda network: network.patch,
)
