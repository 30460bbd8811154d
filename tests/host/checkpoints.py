"""Model files of the true layout with random weights, for workflows that stock loader nodes are to load.

Small where the loaders allow: they read a UNet's levels, a transformer's width and depth, and a decoder's width from the file,
but hold text and vision encoders, SD1.5's first width and SDXL's depths to the published sizes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy
import comfy.cldm.cldm
import comfy.clip_model
import comfy.ldm.flux.controlnet
import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.model
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.sd
import comfy.supported_models as supported
import comfy.text_encoders.t5
import comfy.utils
import torch
from safetensors.torch import save_file

META = {"device": torch.device("meta"), "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
CONFIGS = Path(comfy.__path__[0])
Weights = dict[str, torch.Tensor]


def _fill(shapes: Weights, prefix: str = "", dtype: torch.dtype = torch.float16, seed: int = 0) -> Weights:
    """Random weights for a module's shapes: norms near one, the others such that sizes stay."""
    generator = torch.Generator().manual_seed(seed)

    def filled(name: str, like: torch.Tensor) -> torch.Tensor:
        if not like.is_floating_point():
            return torch.arange(like.numel()).reshape(like.shape)
        noise = torch.empty(like.shape).normal_(generator=generator)
        if name.endswith("weight") and like.ndim == 1:
            noise = 1 + 0.1 * noise
        else:
            noise *= max(like[0].numel(), 1) ** -0.5 if like.ndim >= 2 else 0.02
        return noise.to(dtype)

    return {prefix + name: filled(name, like) for name, like in shapes.items()}


def _shapes(module: torch.nn.Module) -> Weights:
    return module.state_dict()


def _config(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


def _clip(config: str) -> Weights:
    """A CLIP text encoder's shapes, its projection included."""
    return _shapes(comfy.clip_model.CLIPTextModel(_config(config), META["dtype"], META["device"], META["operations"]))


def clip_l() -> Weights:
    return _fill(_clip("sd1_clip_config.json"))


def clip_g() -> Weights:
    return _fill(_clip("clip_config_bigg.json"))


def t5xxl() -> Weights:
    """In fp8, as most people have it: 4.9 GB."""
    model = comfy.text_encoders.t5.T5(_config("text_encoders/t5_config_xxl.json"), **META)
    return _fill(_shapes(model), dtype=torch.float8_e4m3fn)


def clip_vision_h() -> Weights:
    config = _config("clip_vision_config_h.json")
    return _fill(_shapes(comfy.clip_model.CLIPVisionModelProjection(config, META["dtype"], META["device"], META["operations"])))


KL = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
NARROW = 32 if "decoder_ddconfig" in inspect.getsource(comfy.sd) else 128  # newer loaders read the decoder's width


def _autoencoder(channels: int) -> Weights:
    """A KL autoencoder as the loaders find it in SD's and Flux's files, its decoder narrow where they allow."""
    config, parts = {**KL, "z_channels": channels}, comfy.ldm.modules.diffusionmodules.model
    encoder, decoder = parts.Encoder(**config), parts.Decoder(**{**config, "ch": NARROW})
    return _prefixed("encoder.", _shapes(encoder)) | _prefixed("decoder.", _shapes(decoder))


def vae() -> Weights:
    """SD1.5's and SDXL's."""
    like = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    convs = {"quant_conv.weight": like(8, 8, 1, 1), "quant_conv.bias": like(8), "post_quant_conv.weight": like(4, 4, 1, 1),
             "post_quant_conv.bias": like(4)}  # fmt: skip
    return _fill(_autoencoder(4) | convs, seed=4)


def vae16() -> Weights:
    """SD3's and Flux's: sixteen channels."""
    return _fill(_autoencoder(16), seed=4)


SMALL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 2],
    "channel_mult": [1, 1], "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1],
    "transformer_depth_middle": -1, "use_linear_in_transformer": False, "context_dim": 768, "use_spatial_transformer": True,
    "legacy": False, "num_heads": 8,
}  # fmt: skip
# Koala's UNet: what the loaders take for an SDXL is this, Vega, SSD or the true one.
KOALA = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5],
    "transformer_depth_middle": -2, "use_linear_in_transformer": True, "context_dim": 2048, "use_spatial_transformer": True,
    "legacy": False, "num_head_channels": 64, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip


def _unet(config: dict) -> Weights:
    return _shapes(comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(**config, **META))


def sd15() -> Weights:
    """A checkpoint as v1-5-pruned-emaonly: UNet of two levels, true text encoder, VAE of a narrow decoder."""
    text = {f"clip_l.transformer.{name}": weight for name, weight in clip_l().items()}
    text = supported.SD15.process_clip_state_dict_for_saving(None, text)
    return _fill(_unet(SMALL_UNET), "model.diffusion_model.") | text | _prefixed("first_stage_model.", vae())


def sdxl() -> Weights:
    """A checkpoint as sd_xl_base_1.0: Koala's UNet, true text encoders, VAE of a narrow decoder."""
    text = _prefixed("clip_l.transformer.", clip_l()) | _prefixed("clip_g.transformer.", clip_g())
    text["clip_g.logit_scale"] = text["clip_l.logit_scale"] = torch.tensor(4.6)
    text = supported.SDXL.process_clip_state_dict_for_saving(None, text)
    return _fill(_unet(KOALA), "model.diffusion_model.") | text | _prefixed("first_stage_model.", vae())


def sd35_medium() -> Weights:
    """A checkpoint as sd3.5_medium: four blocks instead of 24, which makes it as much narrower, two attending twice."""
    width = 4 * 64
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": width}}
    network = comfy.ldm.modules.diffusionmodules.mmdit.MMDiT(
        input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=4, adm_in_channels=2048,
        context_embedder_config=embedder, num_patches=384 * 384, pos_embed_max_size=384, pos_embed_scaling_factor=None,
        qk_norm="rms", x_block_self_attn_layers=[0, 1], **META,
    )  # fmt: skip
    return _fill(_shapes(network), "model.diffusion_model.") | _prefixed("first_stage_model.", vae16())


FLUX = {"hidden_size": 256, "depth": 1, "depth_single_blocks": 1, "txt_ids_dims": []}


def flux_dev() -> Weights:
    """As flux1-dev: one block of either kind at a twelfth of the width."""
    network = comfy.ldm.flux.model.Flux(
        image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096, mlp_ratio=4.0,
        num_heads=2, axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, guidance_embed=True, **FLUX, **META,
    )  # fmt: skip
    return _fill(_shapes(network), dtype=torch.bfloat16)


OTHER_NAMES = ("linear_in", "linear_out", "to_qkv_mlp_proj")  # that LyCORIS and Flux.2 have for the same weights


def flux_controlnet() -> Weights:
    """As FLUX.1-dev-ControlNet-Union-Pro-2.0: in diffusers' layout, as many blocks as the small Flux."""
    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=True, num_union_modes=0, control_latent_channels=16, image_model="flux", in_channels=16, out_channels=16,
        patch_size=2, vec_in_dim=768, context_in_dim=4096, mlp_ratio=4.0, num_heads=2, axes_dim=[16, 56, 56], theta=10000,
        qkv_bias=True, guidance_embed=True, **FLUX, **META,
    )  # fmt: skip
    ours, theirs = _fill(_shapes(network), dtype=torch.bfloat16, seed=1), {}
    for name, place in comfy.utils.flux_to_diffusers(FLUX).items():
        if any(other in name for other in OTHER_NAMES) or name.startswith("single") and name.endswith("attn.to_out.weight"):
            continue
        own, part = (place[0], place[1]) if isinstance(place, tuple) else (place, None)
        if own in ours:
            theirs[name] = ours[own].narrow(*part).clone() if part else ours[own]
    theirs |= {name: weight for name, weight in ours.items() if name.startswith("controlnet_")}
    return theirs


def sd15_controlnet() -> Weights:
    """As control_v11p_sd15_*: of the blocks of the small UNet."""
    config = {k: v for k, v in SMALL_UNET.items() if k not in ("out_channels", "transformer_depth_output")}
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, **META)
    return _fill(_shapes(net), "control_model.", seed=1)


def _ip_adapter(widths: list[int], context: int, inner: int) -> Weights:
    """As the published plus adapters: a resampler of ViT-H's patches into 16 tokens, and keys and values for each
    cross-attention. widths: of the cross-attentions, in their order; inner: width of the resampler."""
    like = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    shapes = {
        "latents": like(1, 16, inner), "proj_in.weight": like(inner, 1280), "proj_in.bias": like(inner),
        "proj_out.weight": like(context, inner), "proj_out.bias": like(context), "norm_out.weight": like(context),
        "norm_out.bias": like(context),
    }  # fmt: skip
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": like(inner), f"layers.{i}.{norm}.bias": like(inner)}
        shapes |= {
            f"layers.{i}.0.to_q.weight": like(inner, inner), f"layers.{i}.0.to_kv.weight": like(2 * inner, inner),
            f"layers.{i}.0.to_out.weight": like(inner, inner), f"layers.{i}.1.1.weight": like(4 * inner, inner),
            f"layers.{i}.1.3.weight": like(inner, 4 * inner),
        }  # fmt: skip
    weights = _fill(shapes, "image_proj.", seed=2)
    keys = {f"{2 * i + 1}.to_{kv}_ip.weight": like(width, context) for i, width in enumerate(widths) for kv in "kv"}
    return weights | _fill(keys, "ip_adapter.", seed=3)


def ip_adapter_sd15() -> Weights:
    """For SD1.5's sixteen cross-attentions, each of the small UNet's width, since only its own are looked for."""
    return _ip_adapter([320] * 16, 768, 768)


def ip_adapter_sdxl() -> Weights:
    """For SDXL's seventy, which the pack counts by SDXL's blocks; each as wide as Koala is where that block falls."""
    widths = [640] * 2 + [1280] * 42 + [640] * 16 + [1280] * 10
    return _ip_adapter(widths, 2048, 1280)


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: weight for name, weight in weights.items()}


# File -> the folder of ComfyUI's models it belongs in, and what makes it.
FILES: dict[str, tuple[str, Callable[[], Weights]]] = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", sd15),
    "sd_xl_base_1.0.safetensors": ("checkpoints", sdxl),
    "control_v11p_sd15_canny_fp16.safetensors": ("controlnet", sd15_controlnet),
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": ("clip_vision", clip_vision_h),
    "sd3.5_medium.safetensors": ("checkpoints", sd35_medium),
    "flux1-dev.safetensors": ("diffusion_models", flux_dev),
    "ae.safetensors": ("vae", vae16),
    "FLUX.1-dev-ControlNet-Union-Pro-2.0.safetensors": ("controlnet", flux_controlnet),
    "ip-adapter-plus_sd15.safetensors": ("ipadapter", ip_adapter_sd15),
    "ip-adapter-plus_sdxl_vit-h.safetensors": ("ipadapter", ip_adapter_sdxl),
    "clip_l.safetensors": ("text_encoders", clip_l),
    "clip_g.safetensors": ("text_encoders", clip_g),
    "t5xxl_fp8_e4m3fn.safetensors": ("text_encoders", t5xxl),
}


BUNDLED = {  # which the pack brings itself
    "highlight_demo_outline.safetensors", "highlight_demo_image_prompt.safetensors",
    "highlight_demo_turbo_8_steps.safetensors", "highlight_demo_turbo_4_steps.safetensors",
}  # fmt: skip


def files_of(workflow: dict) -> Iterator[str]:
    """The model files a workflow names."""
    for node in workflow["nodes"]:
        for value in node.get("widgets_values") or []:
            if isinstance(value, str) and value.endswith(".safetensors"):
                yield value


def provide(workflow: dict, models: Path) -> None:
    """Write the files a workflow names where its loaders look for them. Raises KeyError for one that cannot be made."""
    for name in set(files_of(workflow)) - BUNDLED:
        folder, make = FILES[name]
        path = models / folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: weight.contiguous() for key, weight in make().items()}, path)
