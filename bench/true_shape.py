"""ComfyUI's own networks at the size they are published in, with random weights."""

from __future__ import annotations

from typing import Any

import torch

STREAMS = ("positive", "negative")
SIDE = {"SD15": 64, "SDXL": 128}  # of the latent: 512 and 1024 pixels


def build(family: str, device: torch.device, dtype: torch.dtype) -> Any:
    """ComfyUI's own UNet of a family at true shape, weights random."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    configs = {
        "SD15": {"context_dim": 768, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "channel_mult": [1, 2, 4, 4],
                 "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
                 "num_res_blocks": [2, 2, 2, 2], "num_heads": 8, "num_head_channels": -1, "adm_in_channels": None,
                 "use_linear_in_transformer": False},
        "SDXL": {"context_dim": 2048, "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4],
                 "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
                 "num_res_blocks": [2, 2, 2], "num_head_channels": 64, "adm_in_channels": 2816, "num_classes": "sequential",
                 "use_linear_in_transformer": True},
    }  # fmt: skip
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False,
        use_temporal_attention=False, use_temporal_resblock=False, dtype=dtype, device=device,
        operations=comfy.ops.disable_weight_init, **configs[family],
    )  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0)
    return unet.eval()


def square(area: float, side: int, align: int) -> tuple[int, int, int, int]:
    """The aligned square nearest to an area, away from the frame's corner where it fits."""
    edge = max(align, round(area**0.5 * side / align) * align)
    start = (side - edge) // 2 // align * align
    return start, start + edge, start, start + edge


def build_sd3(blocks: int, device: torch.device, dtype: torch.dtype) -> Any:
    """SD3 medium at true width with `blocks` of its 24 blocks, all alike, weights random."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    width = 64 * 24
    network = OpenAISignatureMMDITWrapper(
        in_channels=16, depth=24, num_blocks=blocks, adm_in_channels=2048, pos_embed_scaling_factor=None, dtype=dtype,
        device=device, operations=comfy.ops.disable_weight_init,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": width}},
    ).eval()  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(0, max(1, parameter[0].numel()) ** -0.5, generator=generator)
    return network
