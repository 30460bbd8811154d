"""Lumina 2 and Z-Image: image tokens are refined alone, then run in one sequence [text, image, padding]; rotary positions."""

from ...engine.merging.sites import attention, mlp
from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from .base import Call, Family


def gather_inputs(block, args, kwargs, gather: Gather):
    x, mask, positions, *rest = args
    return [gather.tokens(x, text=True), mask, gather.positions(positions, 1), *rest], kwargs


def sites(block):
    yield attention(block.attention)
    yield mlp(block.feed_forward)


def orders(network, call: Call) -> list[Order]:
    """Z-Image fills every part up to a multiple of tokens. With references each has a text of its own before the prompt's, and
    what texts are left over come after it; image embeddings, where the network has them, stand between all text and all
    references, and the picture is last."""
    multiple: int = network.pad_tokens_multiple or 1

    def filled(part, *counts: int) -> list:
        return [own for count in counts for own in ((part, count), ("other", -count % multiple))]

    def tokens(latent) -> int:
        return (latent.shape[-2] // network.patch_size) * (latent.shape[-1] // network.patch_size)

    references = call.references(network)
    texts = list(call.given.get("ref_contexts") or ()) if references else []
    lengths: list[int] = [text.shape[1] for text in texts[: len(references)]]
    lengths += [multiple] * (len(references) - len(lengths))  # a reference without a text has as much padding
    text = [*filled("other", *lengths), *filled("text", call.text)]
    text += filled("other", *(extra.shape[1] for extra in texts[len(references) :]))
    embedded = []
    if references and getattr(network, "siglip_embedder", None) is not None:
        given = list(call.given.get("siglip_feats") or ())[: len(references)]
        counts: list[int] = [image.shape[1] * image.shape[2] for image in given]
        counts += [multiple] * (len(references) + 1 - len(counts))  # one for the picture too
        embedded = filled("other", *counts)
    images = [*filled("reference", *(tokens(latent) for latent in references)), *filled("picture", call.grid.count)]
    return [Order(tuple(images)), Order((*text, *embedded, *images))]


FAMILY = Family(
    title="Lumina 2, Z-Image",
    network=("comfy.ldm.lumina.model.NextDiT",),
    blocks=lambda network: (*network.noise_refiner, *network.layers),
    gather_inputs=gather_inputs,
    sites=sites,
    orders=orders,
    final_layer=lambda network: network.final_layer,
    full_sequence_after=lambda network: network.noise_refiner[-1:],
)
