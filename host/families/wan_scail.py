"""Wan SCAIL and SCAIL 2: Wan's blocks on [references, video, poses]."""

from dataclasses import replace

from ...engine.partial.order import Order, Part
from . import wan
from .base import Call, tokens_of


def orders(network, call: Call) -> list[Order]:
    """Image embeddings are looked at apart from the text."""
    patch, given = network.patch_size[-1], call.given
    parts: list[tuple[Part, int]] = [("picture", call.grid.count)]
    if given.get("reference_latent") is not None:
        parts.insert(0, ("reference", tokens_of(given["reference_latent"], patch)))
    if given.get("time_dim_concat") is not None:
        parts.append(("reference", tokens_of(given["time_dim_concat"], patch)))
    if given.get("pose_latents") is not None:
        parts.append(("other", tokens_of(given["pose_latents"], patch)))
    image = given.get("clip_fea")
    return [Order(tuple(parts), looks_at=0 if image is not None and image.shape[-2] == call.text else call.text)]


FAMILY = replace(
    wan.FAMILY,
    title="Wan SCAIL",
    network=("comfy.ldm.wan.model.SCAILWanModel", "comfy.ldm.wan.model.SCAIL2WanModel"),
    orders=orders,
)
