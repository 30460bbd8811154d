"""ComfyUI's own networks at the size they are published in, with random weights."""

from __future__ import annotations

from typing import Any

import torch

STREAMS = ("positive", "negative")
SIDE = {"SD15": 64, "SDXL": 128}  # of the latent: 512 and 1024 pixels
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
SD15 = UNET | {
    "context_dim": 768, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "channel_mult": [1, 2, 4, 4],
    "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "num_res_blocks": [2, 2, 2, 2], "num_heads": 8, "num_head_channels": -1, "adm_in_channels": None,
    "use_linear_in_transformer": False,
}  # fmt: skip
SDXL = UNET | {
    "context_dim": 2048, "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_res_blocks": [2, 2, 2], "num_head_channels": 64,
    "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "depth": 24, "adm_in_channels": 2048, "pos_embed_scaling_factor": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * 24}},
}  # fmt: skip
FLUX = {
    "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16,
    "qkv_bias": True, "txt_ids_dims": [], "in_channels": 16, "hidden_size": 3072, "context_in_dim": 4096, "patch_size": 2,
    "vec_in_dim": 768, "depth": 19, "depth_single_blocks": 38, "guidance_embed": True, "yak_mlp": False, "txt_norm": False,
}  # fmt: skip


@torch.no_grad()
def randomise(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Fill all parameters, in their own type, with numbers drawn in float32 on the generator's device: matrices by their
    inputs' number, scales around 1, and biases around 0."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if parameter.ndim >= 2:
            noise *= parameter[0].numel() ** -0.5
        else:
            noise = 0.1 * noise + name.endswith(("weight", "scale"))
        parameter.copy_(noise)


def build(family: str, device: torch.device, dtype: torch.dtype) -> Any:
    """ComfyUI's own UNet of a family at true shape, weights random."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {"SD15": SD15, "SDXL": SDXL}[family]
    unet = UNetModel(**config, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    randomise(unet, torch.Generator(device).manual_seed(0))
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

    network = OpenAISignatureMMDITWrapper(
        **SD3, num_blocks=blocks, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init
    ).eval()
    randomise(network, torch.Generator(device).manual_seed(0))
    return network
