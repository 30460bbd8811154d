"""OmniGen2: image tokens are refined alone, then run in one sequence [text, references, image]; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order, Part
from ...engine.partial.token_gather import Gather
from .base import Call, Family, tokens_of


def gather_inputs(block, args, kwargs, gather: Gather):
    x, mask, positions, *rest = args
    return [gather.tokens(x, text=True), mask, gather.positions(positions, 1), *rest], kwargs


def sites(block):
    yield attention(block.attn, input_arg=(0, 1))
    yield mlp(block.feed_forward)


def orders(network, call: Call) -> list[Order]:
    """Text that is filled up has no positions of its own, so that the picture's would be counted wrongly."""
    if call.given.get("num_tokens") != call.text:
        return []
    given = call.given.get("ref_latents") or ()
    references: list[tuple[Part, int]] = [("reference", tokens_of(latent, network.patch_size)) for latent in given]
    picture: tuple[Part, int] = ("picture", call.grid.count)
    return [Order((picture,)), Order((*references, picture)), Order((("text", call.text), *references, picture))]


FAMILY = Family(
    title="OmniGen2",
    network=("comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",),
    blocks=lambda network: (*network.noise_refiner, *network.layers),
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.norm_out,
    references="along",
    full_sequence_after=lambda network: network.noise_refiner[-1:],
)
