"""The bundled demo model as ComfyUI's own MODEL, CLIP, VAE and CLIP_VISION, and where its adapters are found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.supported_models_base import ClipTarget

from ..demo.control import WEIGHTS as CONTROL
from ..demo.diffusion import FLOW_SHIFT
from ..demo.image_prompt import ADAPTER, IMAGE_SIZE, PATCH, VISION
from ..demo.image_prompt import CONFIG as VISION_CONFIG
from ..demo.load import SECOND_TEXT, SECOND_UNET, TURBO, WEIGHTS, read_weights
from ..demo.mmdit import MMDiTConfig
from ..demo.text import TextConfig, full_embedding
from ..demo.unet import SECOND, UNetConfig
from ..demo.vae import rgb_factors

KINDS = ("unet", "mmdit", *TURBO)  # of demo models
ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)  # the former is newer


class DemoLatents(comfy.latent_formats.SD15):
    """The demo VAE's latents, scaled as SD1.5's are, with their own colours for previews."""

    def __init__(self):
        super().__init__()
        self.latent_rgb_factors, self.latent_rgb_factors_bias = rgb_factors()
        self.taesd_decoder_name = None


class DemoUNet(comfy.supported_models.SD15):
    """SD1.5's layout at small widths, trained for v-prediction."""

    latent_format = DemoLatents

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION


def _unet_config(config: UNetConfig) -> dict:
    """A demo UNet's widths in ComfyUI's words."""
    depth = [int(has) for has in config.attention for _ in range(config.num_res_blocks)]
    depth_out = [int(has) for has in config.attention for _ in range(config.num_res_blocks + 1)]
    return {
        "image_size": 32, "in_channels": config.in_channels, "out_channels": config.in_channels,
        "model_channels": config.model_channels, "num_res_blocks": [config.num_res_blocks] * len(config.channel_mult),
        "channel_mult": list(config.channel_mult), "transformer_depth": depth, "transformer_depth_output": depth_out,
        "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": config.context_dim,
        "adm_in_channels": None, "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }  # fmt: skip


class DemoMMDiT(comfy.supported_models.SD3):
    """SD3's layout at small widths, on the latents of SD1.5."""

    latent_format = DemoLatents
    sampling_settings = {"shift": FLOW_SHIFT}


def _mmdit_config() -> dict:
    config = MMDiTConfig()
    embedder = {"in_features": config.context_dim, "out_features": config.width}
    return {
        "in_channels": config.in_channels, "out_channels": config.in_channels, "patch_size": config.patch_size,
        "depth": config.heads, "num_blocks": config.blocks, "input_size": None, "qk_norm": "rms",
        "context_embedder_config": {"target": "torch.nn.Linear", "params": embedder}, "pos_embed_scaling_factor": None,
    }  # fmt: skip


def load_unet(layout: UNetConfig = UNetConfig(), files: tuple[str, ...] = ("unet",)) -> comfy.model_patcher.ModelPatcher:  # noqa: B008
    config = DemoUNet(_unet_config(layout))
    config.unet_config.update(num_heads=-1, num_head_channels=layout.head_channels)
    return _load(config, {name: weight for file in files for name, weight in read_weights(file).items()})


def load_mmdit() -> comfy.model_patcher.ModelPatcher:
    return _load(DemoMMDiT(_mmdit_config()), read_weights("mmdit"))


def _load(config, weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    parameters = sum(w.numel() for w in weights.values())
    dtype = comfy.model_management.unet_dtype(model_params=parameters, supported_dtypes=config.supported_inference_dtypes)
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast)
    model = config.get_model(weights, "", device=offload)
    model.load_model_weights(dict(weights), "")
    return ModelPatcher(model, load_device=device, offload_device=offload)


def load_clip(file: str = "text") -> comfy.sd.CLIP:
    config = TextConfig()
    sizes = {name: getattr(config, name) for name in TextConfig.__dataclass_fields__}
    clip = comfy.sd.CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        model_options={"clip_l_model_config": {**sizes, "projection_dim": config.hidden_size}},
    )
    weights = read_weights(file)
    renamed = {"clip_l.transformer.text_projection.weight": torch.eye(config.hidden_size)}
    for name, weight in weights.items():
        if name == "token_embedding.weight":
            weight = full_embedding(weight)
        part = "embeddings." if "embedding" in name else "encoder." if name.startswith("layers.") else ""
        renamed[f"clip_l.transformer.text_model.{part}{name}"] = weight
    missing, unexpected = clip.cond_stage_model.load_state_dict(renamed, strict=False)
    wrong = [name for name in missing if "transformer" in name] + list(unexpected)
    if wrong:
        raise RuntimeError(f"the demo's text weights do not fit this ComfyUI's CLIP: {', '.join(wrong)}")
    return clip


def load_vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=read_weights("vae"))


def clip_vision(config: dict[str, Any]) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP vision model of a Hugging Face config, from a file, since ComfyUI 0.8 reads it from nowhere else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        return comfy.clip_vision.ClipVisionModel(str(path))


def load_vision() -> comfy.clip_vision.ClipVisionModel:
    sizes = {name: getattr(VISION_CONFIG, name) for name in TextConfig.__dataclass_fields__}
    vision = clip_vision({
        **sizes, "model_type": "clip_vision_model", "num_channels": 3, "image_size": IMAGE_SIZE, "patch_size": PATCH,
        "projection_dim": VISION_CONFIG.hidden_size, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    })  # fmt: skip
    missing, unexpected = vision.load_sd(read_weights(VISION))
    if wrong := [*missing, *unexpected]:
        raise RuntimeError(f"the demo's vision weights do not fit this ComfyUI's CLIP vision: {', '.join(wrong)}")
    return vision


def load_demo(kind: str = "unet") -> tuple:
    """MODEL, CLIP and VAE of one of the `KINDS`, or of "second", which no release has. Raises FileNotFoundError when the pack's
    weights are missing, and ValueError for another kind."""
    if kind == "second":
        return load_unet(SECOND, SECOND_UNET), load_clip(SECOND_TEXT), load_vae()
    if kind not in KINDS:
        raise ValueError(f'the kind is "{kind}"; there are {", ".join(KINDS)}')
    model = load_unet() if kind == "unet" else load_mmdit()
    if lora := TURBO.get(kind):
        model, _ = comfy.sd.load_lora_for_models(model, None, read_weights(lora), 1.0, 0.0)
    return model, load_clip(), load_vae()


def show_adapters() -> None:
    """Let ComfyUI's own loaders of ControlNets and LoRAs, and IPAdapter_plus' loader, find the demo's."""
    known = folder_paths.folder_names_and_paths
    if "ipadapter" not in known:  # the pack adds its own folder only where it is the first
        folder_paths.add_model_folder_path("ipadapter", str(Path(folder_paths.models_dir) / "ipadapter"))
    for kind, weights in (("controlnet", CONTROL), ("ipadapter", ADAPTER), ("loras", next(iter(TURBO.values())))):
        folder = str((WEIGHTS / weights).parent)
        if folder not in folder_paths.get_folder_paths(kind):
            folder_paths.add_model_folder_path(kind, folder)
