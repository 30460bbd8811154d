"""JoyImage: text and image apart in every block, attention of [image, text]; rotary positions of the image alone."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order, Part
from ...engine.partial.token_gather import Gather
from .base import Call, Family, tokens_of


def gather_inputs(block, args, kwargs, gather: Gather):
    kwargs["hidden_states"] = gather.tokens(kwargs["hidden_states"])
    kwargs["encoder_hidden_states"] = gather.text(kwargs["encoder_hidden_states"])
    kwargs["image_rotary_emb"] = gather.positions(kwargs["image_rotary_emb"], 1)
    return args, kwargs


def sites(block):
    yield attention(block.attn, output_index=0)
    yield mlp(block.img_mlp)


def orders(network, call: Call) -> list[Order]:
    references: list[tuple[Part, int]] = [
        ("reference", tokens_of(latent, network.patch_size[-1])) for latent in call.references(network)
    ]
    return [Order((("picture", call.grid.count), *references, ("text", call.text)))]


FAMILY = Family(
    title="JoyImage",
    network=("comfy.ldm.joyimage.model.JoyImageTransformer3DModel",),
    blocks=lambda network: network.double_blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.norm_out,
    references="left out",
    patch=lambda network: network.patch_size[-1],
)
