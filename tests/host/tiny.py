"""Tiny UNets of the real architectures with random weights, and how to sample them with the real host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models as supported
import inputs
import torch

ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


@dataclass(frozen=True)
class Tiny:
    """A model and the widths its conditioning needs."""

    patcher: comfy.model_patcher.ModelPatcher
    context: int = 64
    pooled: int | None = None
    channels: int = 4
    frames: int | None = None  # of a video's latent, or of a picture's that has the axis all the same
    size: tuple[int, int] = (16, 16)
    extra: Callable[[torch.Generator, int], dict] | None = None  # what else the conditioning carries
    shapes: tuple[tuple[int, ...], ...] = ()  # of latents that have another one, several where several are sampled as one

    def latent(self, batch: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
        """An empty latent."""
        frames = () if self.frames is None else (self.frames,)
        shapes = self.shapes or ((self.channels, *frames, *(size or self.size)),)
        latents = [torch.zeros(batch, *shape) for shape in shapes]
        if len(latents) == 1:
            return latents[0]
        from comfy.nested_tensor import NestedTensor  # not in the oldest ComfyUI

        return NestedTensor(latents)


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


PRECISION: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "fp16": (torch.float16, None),
    "fp8 cast to bf16": (torch.float8_e4m3fn, torch.bfloat16), "bf16 cast to fp32": (torch.bfloat16, torch.float32),
}  # fmt: skip
_precision = [inputs.PRECISION]


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Models built while this holds have weights as PRECISION[name] says, cast at each use where it says to what."""
    _precision.append(name)
    try:
        yield
    finally:
        _precision.pop()


def built_in(name: str, make: Callable[[], Tiny]) -> Tiny:
    """What `make` makes, in the precision of this name."""
    with precision(name):
        return make()


def build(config, weights: dict | None = None) -> comfy.model_patcher.ModelPatcher:
    """weights: those that a class wants to see when it is made."""
    config.set_inference_dtype(*PRECISION[_precision[-1]])
    model = config.get_model(weights or {}, "", device=torch.device("cpu"))
    randomise(model.diffusion_model)
    offload = comfy.model_management.unet_offload_device()
    return ModelPatcher(model, load_device=comfy.model_management.get_torch_device(), offload_device=offload)


def unet_config(mult=(1, 2), depth=(1, 1), middle=1, adm=None, linear=False, in_channels=4, width=32) -> dict:
    return {
        "image_size": 32, "in_channels": in_channels, "out_channels": 4, "model_channels": width,
        "num_res_blocks": [1] * len(mult), "channel_mult": list(mult), "transformer_depth": list(depth),
        "transformer_depth_output": [d for d in depth for _ in range(2)], "transformer_depth_middle": middle,
        "use_linear_in_transformer": linear, "context_dim": 64, "adm_in_channels": adm, "use_spatial_transformer": True,
        "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
        **({"num_classes": "sequential"} if adm else {}),
    }  # fmt: skip


def sd15(**kwargs) -> Tiny:
    config = supported.SD15(unet_config(**{"mult": (1, 2, 2), "depth": (1, 1, 0), **kwargs}))
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


def koala() -> Tiny:
    """SDXL distilled to one block a level and no middle."""
    config = supported.KOALA_700M(unet_config(mult=(1, 2, 4), depth=(0, 1, 2), middle=-2, adm=2816, linear=True))
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


def sd3(dual: bool = False, blocks: int = 3) -> Tiny:
    """SD3; with `dual` SD3.5 medium, whose first block attends to the image a second time. Loaders expect two `blocks`."""
    width = 64 * 2
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": width}}
    config = supported.SD3(
        dict(
            in_channels=16, patch_size=2, out_channels=16, depth=2, num_blocks=blocks, input_size=None, adm_in_channels=64,
            context_embedder_config=embedder, num_patches=32 * 32, pos_embed_max_size=32, pos_embed_scaling_factor=None,
            qk_norm="rms" if dual else None, x_block_self_attn_layers=[0] if dual else [],
        )
    )  # fmt: skip
    return Tiny(build(config), pooled=64, channels=16)


FLUX = dict(
    image_model="flux", axes_dim=[4, 6, 6], num_heads=4, mlp_ratio=2.0, theta=10000, out_channels=16, qkv_bias=True,
    txt_ids_dims=[], in_channels=16, hidden_size=64, context_in_dim=64, patch_size=2, vec_in_dim=32, depth=2,
    depth_single_blocks=2, guidance_embed=True, yak_mlp=False, txt_norm=False,
)  # fmt: skip


def flux() -> Tiny:
    return Tiny(build(supported.Flux(dict(FLUX))), pooled=32, channels=16)


def flux2() -> Tiny:
    """One modulation for all blocks, patches of one cell, text filled up to 512 tokens."""
    changed = {
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [4, 4, 4, 4],
        "vec_in_dim": None, "mlp_ratio": 3.0, "theta": 2000, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
        "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
    }  # fmt: skip
    return Tiny(build(supported.Flux2(FLUX | changed)), pooled=32, channels=128)  # 0.8 asks for what it does not use


def hunyuan_video() -> Tiny:
    config = supported.HunyuanVideo(
        dict(
            image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=32,
            axes_dim=[4, 6, 6], meanflow=False, context_in_dim=64, hidden_size=64, mlp_ratio=4.0, num_heads=4, depth=2,
            depth_single_blocks=2, theta=256, qkv_bias=True, byt5=False, guidance_embed=True, use_cond_type_embedding=False,
            vision_in_dim=None, meanflow_sum=False,
        )
    )  # fmt: skip
    return Tiny(build(config), pooled=32, channels=16, frames=3)


def chroma() -> Tiny:
    config = {name: value for name, value in FLUX.items() if name not in ("yak_mlp", "txt_norm", "guidance_embed")}
    config.update(image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=64, hidden_dim=64, n_layers=2)
    return Tiny(build(supported.Chroma({**config, "vec_in_dim": None})), pooled=32, channels=16)  # 0.8 asks for it


def qwen_image() -> Tiny:
    config = supported.QwenImage(
        dict(
            image_model="qwen_image", in_channels=64, num_layers=3, attention_head_dim=16, num_attention_heads=4,
            joint_attention_dim=64, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip
    return Tiny(build(config), channels=16, frames=1)


def lumina2() -> Tiny:
    return Tiny(build(supported.Lumina2(_lumina())), channels=16)


def z_image(**changed) -> Tiny:
    config = (
        _lumina(dim=256, n_heads=16, n_kv_heads=16, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32)
        | changed
    )
    return Tiny(build(supported.ZImage(config)), channels=16)


def _lumina(**changed) -> dict:
    return dict(
        image_model="lumina2", patch_size=2, in_channels=16, cap_feat_dim=64, n_layers=3, qk_norm=True, dim=64, n_heads=4,
        n_kv_heads=2, axes_dims=[4, 6, 6], axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=1.0,
        multiple_of=32,
    ) | changed  # fmt: skip


def pixart() -> Tiny:
    config = supported.PixArtSigma(
        dict(
            image_model="pixart_sigma", num_heads=4, patch_size=2, hidden_size=64, in_channels=4, depth=3, input_size=32,
            pe_interpolation=1, micro_condition=False, caption_channels=64, model_max_length=300,
        )
    )  # fmt: skip
    return Tiny(build(config), size=(48, 40))  # smaller ones have no table of positions in ComfyUI


def aura_flow() -> Tiny:
    config = supported.AuraFlow(
        dict(max_seq=32 * 32, cond_seq_dim=64, n_double_layers=1, n_layers=3, dim=64, n_heads=4, global_conddim=64)
    )
    return Tiny(build(config))


def hidream() -> Tiny:
    config = supported.HiDream(
        dict(
            image_model="hidream", attention_head_dim=16, caption_channels=[64, 64], in_channels=16, llama_layers=[0, 1, 2, 3],
            max_resolution=[128, 128], num_attention_heads=4, num_layers=2, num_routed_experts=4, num_activated_experts=2,
            num_single_layers=2, out_channels=16, patch_size=2, text_emb_dim=64, axes_dims_rope=[4, 6, 6],
        )
    )  # fmt: skip
    return Tiny(build(config), pooled=64, channels=16, extra=_llama)


def hunyuan_dit() -> Tiny:
    config = supported.HunyuanDiT(
        dict(image_model="hydit", depth=4, hidden_size=64, num_heads=4, text_states_dim=64, text_states_dim_t5=64)
    )
    return Tiny(build(config), extra=_two_encoders)


def wan(kind: type = supported.WAN21_T2V, channels: int = 16, **changed) -> Tiny:
    """Wan 2.1; with another class of ComfyUI's its image to video, or Wan 2.2 5B of 48 `channels`."""
    config = dict(
        image_model="wan2.1", model_type="t2v", dim=64, out_dim=channels, num_heads=4, ffn_dim=128, num_layers=3,
        patch_size=(1, 2, 2), freq_dim=64, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6, text_dim=64,
        in_dim=channels,
    ) | changed  # fmt: skip
    return Tiny(build(kind(config)), channels=channels, frames=3)


def _llama(g: torch.Generator, tokens: int) -> dict:
    return {"conditioning_llama3": torch.randn(1, 4, tokens, 64, generator=g)}


def _two_encoders(g: torch.Generator, tokens: int) -> dict:
    return {
        "attention_mask": torch.ones(1, tokens), "attention_mask_mt5xl": torch.ones(1, 256),
        "conditioning_mt5xl": torch.randn(1, 256, 64, generator=g),
    }  # fmt: skip


def video_unet() -> Tiny:
    """Stable Video Diffusion, whose insides are not known."""
    config = supported.SVD_img2vid(unet_config(adm=768, in_channels=8, linear=True))
    config.unet_config.update(
        num_heads=-1, num_head_channels=16, use_temporal_attention=True, use_temporal_resblock=True, extra_ff_mix_layer=True,
        merge_strategy="learned_with_images", video_kernel_size=[3, 1, 1],
    )  # fmt: skip
    return Tiny(build(config))


TRANSFORMERS = {
    "sd3": sd3, "sd35m": lambda: sd3(dual=True), "flux": flux, "flux2": flux2, "chroma": chroma, "qwen_image": qwen_image,
    "lumina2": lumina2, "z_image": z_image, "pixart": pixart, "aura_flow": aura_flow, "hidream": hidream,
    "hunyuan_dit": hunyuan_dit, "wan": wan, "hunyuan_video": hunyuan_video,
}  # fmt: skip


def cond(tiny: Tiny, seed: int, tokens: int = 77) -> list:
    """Conditioning as CLIPTextEncode returns it, with a few tokens that stand out."""
    g = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, tiny.pooled, generator=g)} if tiny.pooled else {}
    context = torch.randn(1, tokens, tiny.context, generator=g)
    return [[context, extra | (tiny.extra(g, tokens) if tiny.extra else {})]]


def sample(
    tiny: Tiny, patcher=None, *, steps: int = 10, cfg: float = 4.0, seed: int = 1, size=None, batch: int = 1,
    sampler: str = "euler", scheduler: str = "normal", positive=None, negative=None, prompt: int = 1, **kwargs,
) -> torch.Tensor:  # fmt: skip
    """Sample a latent with ComfyUI's own samplers; `patcher` defaults to the model as it is."""
    latent = tiny.latent(batch, size)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive = cond(tiny, prompt) if positive is None else positive
    negative = cond(tiny, 2) if negative is None else negative
    patcher = patcher if patcher is not None else tiny.patcher
    return comfy.sample.sample(
        patcher, noise, steps, cfg, sampler, scheduler, positive, negative, latent, disable_pbar=True, seed=seed, **kwargs
    )
