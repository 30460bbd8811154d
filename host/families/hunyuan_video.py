"""HunyuanVideo and HunyuanImage: Flux's blocks on the tokens of all frames."""

from dataclasses import replace

from ...engine.partial.order import Order, Part
from . import flux
from .base import Call, tokens_of


def orders(network, call: Call) -> list[Order]:
    """Embeddings of an image, glyphs of ByT5 on one side of the text or the other, a reference before the picture."""
    image, glyphs, reference = (call.given.get(name) for name in ("clip_fea", "txt_byt5", "ref_latent"))
    parts: list[tuple[Part, int]] = [("text", call.text)]
    if glyphs is not None and network.byt5_in is not None:
        parts.insert(0 if network.cond_type_embedding is not None else 1, ("other", glyphs.shape[1]))
    if image is not None:
        parts.insert(0, ("other", image.shape[1]))
    if reference is not None:
        parts.append(("reference", tokens_of(reference, network.patch_size[-1])))
    return [Order((*parts, ("picture", call.grid.count)))]


FAMILY = replace(
    flux.FAMILY,
    title="HunyuanVideo",
    network=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
    orders=orders,
    references="refused",
    patch=lambda network: network.patch_size[-1],
    # up to 0.8 at least ComfyUI had the image before the text
    supports=lambda network: not any(getattr(block, "flipped_img_txt", False) for block in flux.blocks(network)),
)
