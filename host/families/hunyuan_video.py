"""HunyuanVideo and HunyuanImage: Flux's blocks on the tokens of all frames."""

from dataclasses import replace

from . import flux

FAMILY = replace(
    flux.FAMILY,
    title="HunyuanVideo",
    network=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
    patch=lambda network: network.patch_size[-1],
)
