"""The transformer families, one small file each that says only what differs.

To add one, write a `Family` in a file here and put it into `FAMILIES`, then add its tiny model to tests/host/classes.py.
"""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from . import (
    aura_flow,
    boogu,
    cosmos,
    ernie,
    flux,
    hidream,
    hunyuan_dit,
    hunyuan_video,
    ideogram,
    joy_image,
    kandinsky,
    krea,
    lens,
    ltxav,
    ltxv,
    lumina,
    mage_flow,
    mochi,
    omnigen,
    pixart,
    qwen_image,
    radiance,
    sd3,
    wan,
    wan_camera,
    wan_humo,
    wan_scail,
    wan_vace,
    z_image_pixel,
)
from .base import Family

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY
    for module in (
        sd3, flux, qwen_image, lumina, pixart, aura_flow, hidream, hunyuan_dit, wan, hunyuan_video,
        krea, ltxv, ltxav, cosmos, boogu, ideogram, ernie, wan_vace, wan_camera, wan_humo, wan_scail,
        omnigen, kandinsky, radiance, z_image_pixel, lens, joy_image, mage_flow, mochi,
    )
)  # fmt: skip


def family_of(model: ModelPatcher) -> Family | None:
    """The family of a MODEL, None where it has none here."""
    network = model.get_model_object("diffusion_model")
    return next((family for family in FAMILIES if family.matches(network)), None)
