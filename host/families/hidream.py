"""HiDream-I1 and E1: [image, text] in every block, the text's states renewed in each; rotary positions of all tokens."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family, tokens_of


def gather_inputs(block, args, kwargs, gather: Gather):
    kwargs["image_tokens"] = gather.tokens(kwargs["image_tokens"])
    kwargs["rope"] = gather.positions(kwargs["rope"], 1)
    return args, kwargs


def sites(block):
    yield attention(block.block.attn1, output_index=None if block.block.attn1.single else 0)
    yield mlp(block.block.ff_i)


def orders(network, call: Call) -> list[Order]:
    """The text of T5, of Llama's last layer and of the block's own layer comes last. E1 has its reference to the right of the
    picture, so that each row of tokens has its own part of either; where a token would be of both, nothing is known."""
    (rows, columns), text = call.grid.size, call.text + 2 * call.given["encoder_hidden_states_llama3"].shape[-2]
    reference = call.given.get("image_cond")
    if reference is None:
        return [Order((("picture", rows * columns), ("text", text)))]
    if call.grid.frame[1] % network.patch_size:
        return []
    row = ("picture", columns), ("reference", tokens_of(reference, network.patch_size) // rows)
    return [Order((*(row * rows), ("text", text)))]


FAMILY = Family(
    title="HiDream-I1",
    network=("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",),
    blocks=lambda network: (*network.double_stream_blocks, *network.single_stream_blocks),
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
)
