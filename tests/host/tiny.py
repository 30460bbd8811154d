"""Tiny UNets of the real architectures with random weights, and how to sample them with the real host."""

from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models as supported
import torch

ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


@dataclass(frozen=True)
class Tiny:
    """A model and the widths its conditioning needs."""

    patcher: comfy.model_patcher.ModelPatcher
    context: int = 64
    pooled: int | None = None


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter: ComfyUI's modules come with uninitialised memory."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if not torch.is_floating_point(p):
                continue
            noise = torch.randn(p.shape, generator=g)
            if name.endswith("weight") and p.ndim == 1:
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(noise / max(p[0].numel(), 1) ** 0.5 if p.ndim >= 2 else 0.1 * noise)


def build(config) -> comfy.model_patcher.ModelPatcher:
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    randomise(model.diffusion_model)
    offload = comfy.model_management.unet_offload_device()
    return ModelPatcher(model, load_device=comfy.model_management.get_torch_device(), offload_device=offload)


def unet_config(mult=(1, 2), depth=(1, 1), middle=1, adm=None, linear=False, in_channels=4) -> dict:
    return {
        "image_size": 32, "in_channels": in_channels, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [1] * len(mult), "channel_mult": list(mult), "transformer_depth": list(depth),
        "transformer_depth_output": [d for d in depth for _ in range(2)], "transformer_depth_middle": middle,
        "use_linear_in_transformer": linear, "context_dim": 64, "adm_in_channels": adm, "use_spatial_transformer": True,
        "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
        **({"num_classes": "sequential"} if adm else {}),
    }  # fmt: skip


def sd15(**kwargs) -> Tiny:
    config = supported.SD15(unet_config(mult=(1, 2, 2), depth=(1, 1, 0), **kwargs))
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    return Tiny(build(config))


def sd21() -> Tiny:
    """SD2.1-v: linear projections, v-prediction."""

    class V(supported.SD20):
        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType.V_PREDICTION

    config = V(unet_config(mult=(1, 2, 2), depth=(1, 1, 0), linear=True))
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return Tiny(build(config))


def sdxl() -> Tiny:
    config = supported.SDXL(unet_config(mult=(1, 2, 4), depth=(0, 1, 2), middle=2, adm=2816, linear=True))
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return Tiny(build(config), pooled=1280)


def inpaint() -> Tiny:
    """SD1.5 for inpainting: mask and masked image are concatenated to the latent."""
    config = supported.SD15(unet_config(mult=(1, 2, 2), depth=(1, 1, 0), in_channels=9))
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    return Tiny(build(config))


def refiner() -> Tiny:
    """SDXL's refiner: four levels, attention at the middle two."""
    config = supported.SDXLRefiner(unet_config(mult=(1, 2, 4, 4), depth=(0, 1, 1, 0), adm=2560, linear=True))
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return Tiny(build(config), pooled=1280)


def flux() -> Tiny:
    """A transformer, to be refused."""
    config = supported.Flux(
        dict(
            image_model="flux", axes_dim=[4, 6, 6], num_heads=4, mlp_ratio=2.0, theta=10000, out_channels=16, qkv_bias=True,
            txt_ids_dims=[], in_channels=16, hidden_size=64, context_in_dim=64, patch_size=2, vec_in_dim=32, depth=1,
            depth_single_blocks=1, guidance_embed=True, yak_mlp=False, txt_norm=False,
        )
    )  # fmt: skip
    return Tiny(build(config))


def cond(tiny: Tiny, seed: int, tokens: int = 77) -> list:
    """Conditioning as CLIPTextEncode returns it, with a few tokens that stand out."""
    g = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, tiny.pooled, generator=g)} if tiny.pooled else {}
    return [[torch.randn(1, tokens, tiny.context, generator=g), extra]]


def sample(
    tiny: Tiny, patcher=None, *, steps: int = 10, cfg: float = 4.0, seed: int = 1, size=(16, 16), batch: int = 1,
    sampler: str = "euler", scheduler: str = "normal", positive=None, negative=None, prompt: int = 1, **kwargs,
) -> torch.Tensor:  # fmt: skip
    """Sample a latent with ComfyUI's own samplers; `patcher` defaults to the model as it is."""
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive = cond(tiny, prompt) if positive is None else positive
    negative = cond(tiny, 2) if negative is None else negative
    patcher = patcher if patcher is not None else tiny.patcher
    return comfy.sample.sample(
        patcher, noise, steps, cfg, sampler, scheduler, positive, negative, latent, disable_pbar=True, seed=seed, **kwargs
    )
