"""Wan 2.1 and 2.2: self-attention of all frames' tokens, cross-attention to text; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order, Part
from ...engine.partial.token_gather import Gather
from .base import Call, Family, tokens_of


def gather_inputs(block, args, kwargs, gather: Gather):
    args[0] = gather.tokens(args[0])
    kwargs["freqs"] = gather.positions(kwargs["freqs"], 1)
    return args, kwargs


def sites(block):
    yield attention(block.self_attn)
    yield attention(block.cross_attn)
    yield mlp(block.ffn)


def orders(network, call: Call) -> list[Order]:
    """A reference before the picture's frames, more frames and references in context after them. Image embeddings are looked
    at apart from the text."""
    patch, given = network.patch_size[-1], call.given
    parts: list[tuple[Part, int]] = [("picture", call.grid.count)]
    if given.get("reference_latent") is not None and network.ref_conv is not None:
        height, width = given["reference_latent"].shape[-2:]
        parts.insert(0, ("reference", (height // patch) * (width // patch)))
    if given.get("time_dim_concat") is not None:
        parts.append(("reference", tokens_of(given["time_dim_concat"], patch)))
    parts += [("reference", tokens_of(latent, patch)) for latent in given.get("context_latents") or ()]
    image = given.get("clip_fea") if network.img_emb is not None else None
    return [Order(tuple(parts), looks_at=0 if image is not None and image.shape[-2] == call.text else call.text)]


FAMILY = Family(
    title="Wan 2.1, Wan 2.2",
    network=("comfy.ldm.wan.model.WanModel",),
    blocks=lambda network: network.blocks,
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.head,
    patch=lambda network: network.patch_size[-1],
)
