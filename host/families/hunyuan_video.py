"""HunyuanVideo and HunyuanImage: Flux's blocks on the tokens of all frames."""

from dataclasses import replace

from . import flux

FAMILY = replace(
    flux.FAMILY,
    title="HunyuanVideo",
    network=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
    patch=lambda network: network.patch_size[-1],
    # up to 0.8 at least ComfyUI had the image before the text in the single blocks
    knows=lambda network: not any(getattr(block, "flipped_img_txt", False) for block in network.single_blocks),
)
