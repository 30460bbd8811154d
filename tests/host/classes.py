"""A tiny real model of every class of `comfy.supported_models` that samples, by its name there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import comfy.supported_models as supported
import torch
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

from . import tiny
from .tiny import Tiny, build, unet_config

HEADS = {"num_heads": -1, "num_head_channels": 16}
FEW_HEADS = {"num_heads": 2, "num_head_channels": -1}
SMALL = {"mult": (1, 2, 2), "depth": (1, 1, 0)}

# What no sampler is run on: their nodes call the network themselves.
NO_SAMPLERS = {
    "RT_DETR_v4": "finds objects", "SAM3": "finds objects", "SAM31": "finds objects", "DepthAnything3": "estimates depth",
}  # fmt: skip

# Why nothing but time is saved on a class, for its row in docs/models.md; LTX-2 is merged all the same.
AUDIO, SHAPES = "no picture: its tokens have no rows and columns", "a shape: its tokens have no rows and columns"
WINDOWS = "its frames are mixed between the blocks of the UNet"
LEVELS = "blocks of its own, neither a UNet's nor a transformer's"
JOINED = "attention and MLP are not modules of their own, around which tokens could be merged"
BATCH = "its tokens have the batch behind their rows and columns"
PIXELS = "a second network after its blocks looks across the whole picture"
FORECAST_ALONE = {
    "LTXAV": "the sound looks at the whole video in every block",
    "HiDreamO1": "keeps keys and values of its prompt itself, so that its sequences change from call to call",
    "SVD_img2vid": WINDOWS, "SV3D_u": WINDOWS, "SV3D_p": WINDOWS, "Stable_Cascade_B": LEVELS, "Stable_Cascade_C": LEVELS,
    "CogVideoX_T2V": JOINED, "CogVideoX_I2V": JOINED, "CogVideoX_Inpaint": JOINED,
    "CosmosT2V": BATCH, "CosmosI2V": BATCH, "PixelDiTT2I": PIXELS, "PiD": PIXELS,
    "WAN21_CausalAR_T2V": "keeps keys and values of earlier frames",
    "WAN22_S2V": "sound is added between the blocks, frame by frame",
    "WAN22_Animate": "faces are added between the blocks, frame by frame",
    "WAN22_WanDancer": "music is added between the blocks, frame by frame",
    "SeedVR2": "its attention is in windows of the video", "StableAudio": AUDIO, "StableAudio3": AUDIO,
    "ACEStep": AUDIO, "ACEStep15": AUDIO, "Hunyuan3Dv2": SHAPES, "Hunyuan3Dv2mini": SHAPES, "Hunyuan3Dv2_1": SHAPES,
    "TripoSplat": SHAPES,
}  # fmt: skip


def known(name: str) -> type:
    return getattr(supported, name)


def unet(name: str, heads: dict, weights: dict | None = None, update: dict | None = None, **config) -> Callable[[], Tiny]:
    """A UNet of that class; a Tiny's own settings by name among those of the UNet."""
    own = {key: config.pop(key) for key in ("pooled", "channels", "context", "size", "extra") if key in config}

    def make() -> Tiny:
        made = known(name)(unet_config(**{**SMALL, **config}))
        made.unet_config.update(heads, **(update or {}))
        return Tiny(build(made, weights), **own)

    return make


def net(name: str, config: dict, weights: Callable[[], dict] | None = None, **own) -> Callable[[], Tiny]:
    """Any other network of that class."""

    def make() -> Tiny:
        made = known(name)(dict(config))
        made.unet_config.update(config)  # which has settings of its own for some
        return Tiny(build(made, weights() if weights else None), **own)

    return make


def video_unet(name: str, adm: int) -> Callable[[], Tiny]:
    time = {
        "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
        "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1],
    }  # fmt: skip
    return unet(name, HEADS, update=time, mult=(1, 2), depth=(1, 1), adm=adm, in_channels=8, linear=True)


def masked(g: torch.Generator, tokens: int) -> dict:
    return {"attention_mask": torch.ones(1, tokens, dtype=torch.long)}


# -- transformers ------------------------------------------------------------------------------------------------------

HUNYUAN_3D = dict(
    image_model="hunyuan3d2", in_channels=64, context_in_dim=64, hidden_size=64, num_heads=4, depth=1, depth_single_blocks=1,
    qkv_bias=True, mlp_ratio=2.0,
)  # fmt: skip
KREA = dict(
    image_model="krea2", features=64, heads=4, kvheads=2, layers=3, patch=2, channels=16, txtdim=16, txtlayers=4, txtheads=2,
    txtkvheads=2,
)  # fmt: skip
ERNIE = dict(
    image_model="ernie", hidden_size=64, num_attention_heads=4, num_layers=3, ffn_hidden_size=128, in_channels=128,
    out_channels=128, text_in_dim=32, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
COSMOS2 = dict(
    image_model="cosmos_predict2", max_img_h=32, max_img_w=32, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=64, num_blocks=3, num_heads=2, crossattn_emb_channels=64, pos_emb_cls="rope3d",
    pos_emb_learnable=True, use_adaln_lora=True, adaln_lora_dim=16, extra_per_block_abs_pos_emb=False,
    rope_enable_fps_modulation=False,
)  # fmt: skip
OMNIGEN = dict(
    image_model="omnigen2", hidden_size=64, num_layers=2, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2,
    multiple_of=32, axes_dim_rope=[4, 6, 6], axes_lens=[300, 64, 64], text_feat_dim=64, timestep_scale=1000.0, in_channels=16,
)  # fmt: skip
BOOGU = dict(
    image_model="boogu", hidden_size=64, num_layers=2, num_double_stream_layers=1, num_refiner_layers=1, num_attention_heads=4,
    num_kv_heads=2, multiple_of=32, axes_dim_rope=[4, 6, 6], axes_lens=[300, 64, 64], instruction_feat_dim=64,
)  # fmt: skip
IDEOGRAM = dict(
    image_model="ideogram4", in_channels=128, num_layers=3, num_attention_heads=4, attention_head_dim=16, intermediate_size=128,
    adaln_dim=32, llm_features_dim=64, mrope_section=(4, 2, 2),
)  # fmt: skip
KANDINSKY = dict(
    image_model="kandinsky5", in_text_dim=64, in_text_dim2=32, time_dim=64, model_dim=64, ff_dim=128, visual_embed_dim=132,
    num_text_blocks=1, num_visual_blocks=3, axes_dims=(4, 6, 6),
)  # fmt: skip
LENS = dict(
    image_model="lens", in_channels=128, out_channels=32, num_layers=3, attention_head_dim=16, num_attention_heads=4,
    enc_hidden_dim=32, axes_dims_rope=(4, 6, 6), multi_layer_encoder_feature=True, selected_layer_index=(0, 1),
)  # fmt: skip
MAGE = dict(
    image_model="mage_flow", in_channels=128, num_layers=3, attention_head_dim=16, num_attention_heads=4,
    joint_attention_dim=64, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
JOY = dict(
    image_model="joyimage", in_channels=16, hidden_size=64, num_attention_heads=4, text_dim=64, num_layers=3,
    rope_dim_list=[4, 6, 6],
)  # fmt: skip
MOCHI = dict(
    image_model="mochi_preview", depth=3, num_heads=4, hidden_size_x=64, hidden_size_y=32, mlp_ratio_x=192.0, mlp_ratio_y=4.0,
    learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0, timestep_scale=1000.0,
    use_t5=True, t5_feat_dim=64, t5_token_length=77,
)  # fmt: skip
LTXV = dict(
    image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=16, num_attention_heads=4,
    caption_channels=64, num_layers=3,
)  # fmt: skip
LTXAV = LTXV | dict(
    image_model="ltxav", audio_in_channels=128, audio_cross_attention_dim=32, audio_attention_head_dim=8,
    audio_num_attention_heads=4, connector_attention_head_dim=16, connector_num_attention_heads=4, connector_num_layers=1,
)  # fmt: skip
RADIANCE = dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=4, context_in_dim=64, hidden_size=64,
    mlp_ratio=2.0, num_heads=4, depth=2, depth_single_blocks=2, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, in_dim=64,
    out_dim=64, hidden_dim=64, n_layers=2, txt_ids_dims=[], vec_in_dim=None, nerf_hidden_size=16, nerf_mlp_ratio=2,
    nerf_depth=1,
    nerf_max_freqs=4, nerf_tile_size=512, nerf_final_head_type="linear", nerf_embedder_dtype=torch.float32, use_x0=False,
)  # fmt: skip
if "use_sequential_txt_ids" in ChromaRadianceParams.__dataclass_fields__:  # not in the oldest ComfyUI
    RADIANCE["use_sequential_txt_ids"] = False
Z_PIXEL = dict(
    image_model="zimage_pixel", patch_size=4, in_channels=3, cap_feat_dim=64, n_layers=3, qk_norm=True, dim=256, n_heads=16,
    n_kv_heads=16, axes_dims=[4, 6, 6], axes_lens=[300, 512, 512], rope_theta=256.0, ffn_dim_multiplier=1.0, multiple_of=32,
    z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32, decoder_hidden_size=32, decoder_num_res_blocks=1,
    decoder_max_freqs=4, decoder_in_channels=48,
)  # fmt: skip
HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=32, axes_dim=[4, 6, 6],
    meanflow=False, context_in_dim=64, hidden_size=64, mlp_ratio=4.0, num_heads=4, depth=2, depth_single_blocks=2, theta=256,
    qkv_bias=True, byt5=False, guidance_embed=True, use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip
HUNYUAN15 = HUNYUAN | dict(
    in_channels=65, out_channels=32, patch_size=[1, 1, 1], vec_in_dim=None, guidance_embed=False, use_cond_type_embedding=True,
    vision_in_dim=32, meanflow_sum=True, byt5=False, depth_single_blocks=0,
)  # fmt: skip
COG = dict(
    image_model="cogvideox", num_attention_heads=2, attention_head_dim=64, in_channels=16, out_channels=16, time_embed_dim=32,
    text_embed_dim=64, num_layers=2, sample_width=16, sample_height=16, sample_frames=9, max_text_seq_length=77,
    use_rotary_positional_embeddings=True,
)  # fmt: skip
COSMOS1 = dict(
    image_model="cosmos", max_img_h=32, max_img_w=32, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=64, num_blocks=2, num_heads=2, crossattn_emb_channels=64, block_config="FA-CA-MLP",
    pos_emb_cls="rope3d", block_x_format="THWBD", affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16,
    extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
)  # fmt: skip
PIXELDIT = dict(
    image_model="pixeldit_t2i", num_groups=4, hidden_size=64, pixel_hidden_size=16, pixel_attn_hidden_size=64,
    pixel_num_groups=4, patch_depth=2, pixel_depth=1, patch_size=4, txt_embed_dim=64, txt_max_length=77,
)  # fmt: skip
WAN_SIZES = {"channels": 16, "frames": 3}


def wan(name: str, **changed) -> Callable[[], Tiny]:
    channels = changed.pop("channels", 16)
    own = {key: changed.pop(key) for key in ("extra", "size") if key in changed}
    return lambda: replace(tiny.wan(known(name), channels, **changed), **own)


def with_small(module: str, part: str, sizes: dict, make: Callable[[], Tiny]) -> Callable[[], Tiny]:
    """A network one part of which is of a size that its config does not set."""

    def made() -> Tiny:
        there = importlib.import_module(module)
        original = getattr(there, part)
        with mock.patch.object(there, part, lambda *args, **kwargs: original(*args, **{**kwargs, **sizes})):
            return make()

    return made


def stable_audio(name: str) -> Callable[[], Tiny]:
    config = dict(
        audio_model="dit1.0", io_channels=64, embed_dim=64, cond_token_dim=768, project_cond_tokens=True, depth=2, num_heads=2
    )
    kind = "learned"
    if name == "StableAudio3":
        kind = "expo"
        config |= dict(
            io_channels=256, global_cond_shared_embed=True, global_cond_type="adaLN", local_add_cond_dim=257,
            timestep_features_type=kind, global_cond_dim=768,
        )  # fmt: skip

    def weights() -> dict:
        from comfy.ldm.audio.embedders import NumberConditioner

        made = NumberConditioner(768) if kind == "learned" else NumberConditioner(768, fourier_features_type=kind)
        tiny.randomise(made, seed=7)
        names = ("seconds_start", "seconds_total")
        return {f"conditioner.conditioners.{own}.{key}": value for own in names for key, value in made.state_dict().items()}

    return net(name, config, weights, context=768, shapes=((config["io_channels"], 24),))


def _camera(g: torch.Generator, tokens: int) -> dict:
    return {"camera_conditions": torch.randn(1, 24, 3, 128, 192, generator=g)}


def _sound(g: torch.Generator, tokens: int) -> dict:
    return {"audio_embed": torch.randn(1, 3, 8, 5, 8, generator=g)}


def _poses(g: torch.Generator, tokens: int) -> dict:
    return {"pose_video_latent": torch.randn(1, 16, 3, 8, 8, generator=g)}


def _lyrics(g: torch.Generator, tokens: int) -> dict:
    return {"conditioning_lyrics": torch.zeros(1, 8, dtype=torch.long)}


def _lyric_embeds(g: torch.Generator, tokens: int) -> dict:
    return {"conditioning_lyrics": torch.randn(1, 8, 64, generator=g)}


def _low_resolution(g: torch.Generator, tokens: int) -> dict:
    return {"lq_latent": torch.randn(1, 16, 4, 4, generator=g), "degrade_sigma": torch.zeros(1)}


def _token_ids(g: torch.Generator, tokens: int) -> dict:
    from comfy.ldm.hidream_o1.model import TMS_TOKEN_ID

    ids = torch.randint(0, 1000, (1, tokens), generator=g)
    ids[:, -1] = TMS_TOKEN_ID
    return {"text_input_ids": ids}


def _to_restore(g: torch.Generator, tokens: int) -> dict:
    return {"condition": torch.randn(1, 17, 3, 8, 8, generator=g)}


CC = {"cc_projection.weight": torch.eye(64), "cc_projection.bias": torch.zeros(64)}
LIKE_FLUX = dict(tiny.FLUX)

MAKERS: dict[str, Callable[[], Tiny]] = {
    # UNets
    "SD15": tiny.sd15, "SD20": tiny.sd21, "SDXL": tiny.sdxl, "SDXLRefiner": tiny.refiner, "KOALA_700M": tiny.koala,
    "SD15_instructpix2pix": unet("SD15_instructpix2pix", FEW_HEADS, in_channels=8),
    "SDXL_instructpix2pix": unet(
        "SDXL_instructpix2pix", HEADS, mult=(1, 2, 4), depth=(0, 1, 2), middle=2, adm=2816, linear=True, in_channels=8,
        pooled=1280,
    ),
    "SSD1B": unet("SSD1B", HEADS, mult=(1, 2, 4), depth=(0, 1, 2), middle=2, adm=2816, linear=True, pooled=1280),
    "Segmind_Vega": unet("Segmind_Vega", HEADS, mult=(1, 2, 4), depth=(0, 1, 1), middle=1, adm=2816, linear=True, pooled=1280),
    "KOALA_1B": unet("KOALA_1B", HEADS, mult=(1, 2, 4), depth=(0, 1, 2), middle=2, adm=2816, linear=True, pooled=1280),
    "SD21UnclipL": unet("SD21UnclipL", HEADS, adm=1536, linear=True),
    "SD21UnclipH": unet("SD21UnclipH", HEADS, adm=2048, linear=True),
    "LotusD": unet("LotusD", HEADS, adm=4, linear=True),
    "Stable_Zero123": unet("Stable_Zero123", FEW_HEADS, weights=CC, in_channels=8),
    "SD_X4Upscaler": unet(
        "SD_X4Upscaler", FEW_HEADS, in_channels=7, linear=True,
        update={"disable_self_attentions": [True, True, False], "num_classes": 1000},
    ),
    "SVD_img2vid": video_unet("SVD_img2vid", 768), "SV3D_u": video_unet("SV3D_u", 256), "SV3D_p": video_unet("SV3D_p", 1280),
    "Stable_Cascade_C": net(
        "Stable_Cascade_C",
        dict(
            stable_cascade_stage="c", c_cond=64, c_hidden=[64, 64], nhead=[4, 4], blocks=[[1, 1], [1, 1]], c_clip_text=64,
            c_clip_text_pooled=64,
        ),
        pooled=64, channels=16,
    ),
    "Stable_Cascade_B": net(
        "Stable_Cascade_B",
        dict(
            stable_cascade_stage="b", c_cond=64, c_hidden=[32, 32, 64, 64], nhead=[-1, -1, 4, 4], blocks=[[1] * 4, [1] * 4],
            block_repeat=[[1] * 4, [1] * 4], c_clip=64,
        ),
        pooled=64, size=(16, 24),
    ),
    # transformers of images
    "SD3": tiny.sd3, "AuraFlow": tiny.aura_flow, "PixArtSigma": tiny.pixart, "HunyuanDiT": tiny.hunyuan_dit, "Flux": tiny.flux,
    "Flux2": tiny.flux2, "Chroma": tiny.chroma, "QwenImage": tiny.qwen_image, "Lumina2": tiny.lumina2, "ZImage": tiny.z_image,
    "HiDream": tiny.hidream,
    "PixArtAlpha": net(
        "PixArtAlpha",
        dict(
            image_model="pixart_alpha", num_heads=4, patch_size=2, hidden_size=96, in_channels=4, depth=2, input_size=32,
            pe_interpolation=1, micro_condition=True, caption_channels=64, model_max_length=300,
        ),
        size=(48, 40),
    ),
    "HunyuanDiT1": net(
        "HunyuanDiT1",
        dict(
            image_model="hydit1", depth=4, hidden_size=64, num_heads=4, text_states_dim=64, text_states_dim_t5=64,
            size_cond=True, use_style_cond=True,
        ),
        extra=tiny._two_encoders,
    ),
    "FluxInpaint": net("FluxInpaint", LIKE_FLUX | {"in_channels": 96}, pooled=32, channels=16),
    "FluxSchnell": net("FluxSchnell", LIKE_FLUX | {"guidance_embed": False}, pooled=32, channels=16),
    "LongCatImage": net(
        "LongCatImage", LIKE_FLUX | {"guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, pooled=32,
        channels=16,
    ),
    "Krea2": net("Krea2", KREA, channels=16, frames=1),
    "ErnieImage": net("ErnieImage", ERNIE, context=32, channels=128),
    "Anima": with_small(
        "comfy.ldm.anima.model", "LLMAdapter",
        {"source_dim": 32, "target_dim": 32, "model_dim": 32, "num_layers": 1, "num_heads": 2},
        net("Anima", COSMOS2 | {"image_model": "anima"}, channels=16, frames=1),
    ),
    "CosmosT2IPredict2": net("CosmosT2IPredict2", COSMOS2, channels=16, frames=2),
    "CosmosI2VPredict2": net("CosmosI2VPredict2", COSMOS2 | {"in_channels": 17}, channels=16, frames=2),
    "Omnigen2": net("Omnigen2", OMNIGEN, channels=16, extra=masked),
    "Boogu": net("Boogu", BOOGU, channels=16, extra=masked),
    "Ideogram4": net("Ideogram4", IDEOGRAM, channels=128),
    "Lens": net("Lens", LENS, channels=128),
    "MageFlow": net("MageFlow", MAGE, channels=128),
    "JoyImage": net("JoyImage", JOY, channels=16, frames=1),
    "ChromaRadiance": net("ChromaRadiance", RADIANCE, pooled=32, channels=3, size=(32, 32)),  # pooled up to 0.8 at least
    "ZImagePixelSpace": net("ZImagePixelSpace", Z_PIXEL, channels=3, size=(32, 32)),
    "Kandinsky5Image": net("Kandinsky5Image", KANDINSKY | {"visual_embed_dim": 64}, pooled=32, channels=16),
    "HunyuanImage21": net(
        "HunyuanImage21",
        HUNYUAN | dict(in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[8, 8], vec_in_dim=None,
                       guidance_embed=False),
        channels=64,
    ),
    "PixelDiTT2I": net("PixelDiTT2I", PIXELDIT, channels=3, size=(16, 16)),
    "PiD": net(
        "PiD", PIXELDIT | dict(image_model="pid", lq_hidden_dim=16, lq_num_res_blocks=1, lq_interval=1), channels=3,
        size=(16, 16), extra=_low_resolution,
    ),
    "HiDreamO1": net(
        "HiDreamO1",
        dict(
            image_model="hidream_o1",
            text_config_overrides=dict(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                head_dim=16, rope_dims=[4, 2, 2],
            ),
            vision_config_overrides=dict(
                hidden_size=16, num_heads=2, intermediate_size=32, depth=1, deepstack_visual_indexes=(0,),
                num_position_embeddings=16,
            ),
        ),
        channels=3, size=(96, 64), extra=_token_ids,
    ),
    # of videos
    "WAN21_T2V": tiny.wan, "HunyuanVideo": tiny.hunyuan_video,
    "WAN21_I2V": wan("WAN21_I2V", in_dim=36), "WAN21_FunControl2V": wan("WAN21_FunControl2V", in_dim=48),
    "WAN22_T2V": wan("WAN22_T2V", channels=48), "WAN21_FlowRVS": wan("WAN21_FlowRVS"),
    "WAN21_Vace": wan("WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96),
    "WAN21_Camera": wan("WAN21_Camera", model_type="camera", in_dim=32, extra=_camera, size=(16, 24)),
    "WAN22_Camera": wan("WAN22_Camera", model_type="camera_2.2", in_dim=36),
    "WAN21_HuMo": with_small(
        "comfy.ldm.wan.model", "AudioProjModel", {"channels": 8, "intermediate_dim": 32},
        wan("WAN21_HuMo", model_type="humo", extra=_sound),
    ),
    "WAN21_SCAIL": wan("WAN21_SCAIL", model_type="scail", in_dim=20, extra=_poses),
    "WAN21_SCAIL2": wan("WAN21_SCAIL2", model_type="scail2", in_dim=20, extra=_poses),
    "WAN21_CausalAR_T2V": wan("WAN21_CausalAR_T2V"),
    "WAN22_S2V": wan("WAN22_S2V", model_type="s2v", audio_dim=32, num_audio_token=2, audio_inject_layers=[0]),
    "WAN22_Animate": wan("WAN22_Animate", model_type="animate", in_dim=36, motion_encoder_dim=32),
    "WAN22_WanDancer": wan(
        "WAN22_WanDancer", model_type="wandancer", in_dim=36, audio_inject_layers=[0], music_dim=32, music_feature_dim=8,
        music_latent_dim=32,
    ),
    "GenmoMochi": net("GenmoMochi", MOCHI, channels=12, frames=2, extra=masked),
    "LTXV": net("LTXV", LTXV, channels=128, frames=2, extra=masked),
    "LTXAV": net("LTXAV", LTXAV, context=128, shapes=((128, 2, 8, 8), (8, 6, 16))),
    "HunyuanVideoI2V": net("HunyuanVideoI2V", HUNYUAN | {"in_channels": 33}, pooled=32, channels=16, frames=3),
    "HunyuanVideoSkyreelsI2V": net("HunyuanVideoSkyreelsI2V", HUNYUAN | {"in_channels": 32}, pooled=32, channels=16, frames=3),
    "HunyuanVideo15": net("HunyuanVideo15", HUNYUAN15, pooled=32, channels=32, frames=2),
    "HunyuanVideo15_SR_Distilled": net(
        "HunyuanVideo15_SR_Distilled", HUNYUAN15 | {"in_channels": 98}, pooled=32, channels=32, frames=2
    ),
    "HunyuanImage21Refiner": net(
        "HunyuanImage21Refiner",
        HUNYUAN | dict(in_channels=128, out_channels=64, patch_size=[1, 1, 1], vec_in_dim=None, guidance_embed=False),
        channels=64, frames=2,
    ),
    "CosmosT2V": net("CosmosT2V", COSMOS1, channels=16, frames=2),
    "CosmosI2V": net("CosmosI2V", COSMOS1 | {"in_channels": 17}, channels=16, frames=2),
    "Kandinsky5": net("Kandinsky5", KANDINSKY, pooled=32, channels=16, frames=2),
    "CogVideoX_T2V": net("CogVideoX_T2V", COG, channels=16, frames=2),
    "CogVideoX_I2V": net("CogVideoX_I2V", COG | {"in_channels": 32}, channels=16, frames=2),
    "CogVideoX_Inpaint": net("CogVideoX_Inpaint", COG | {"in_channels": 48}, channels=16, frames=2),
    "SeedVR2": net(
        "SeedVR2",
        dict(
            image_model="seedvr2", norm_eps=1e-5, num_layers=2, mlp_type="swiglu", vid_dim=64, txt_in_dim=64, heads=2,
            head_dim=32, mm_layers=1, rope_dim=32, vid_out_norm=True,
        ),
        channels=16, frames=3, size=(8, 8), extra=_to_restore,
    ),
    # of sound and of shapes
    "StableAudio": stable_audio("StableAudio"), "StableAudio3": stable_audio("StableAudio3"),
    "ACEStep": with_small("comfy.ldm.ace.model", "LyricEncoder", {"linear_units": 32, "num_blocks": 1}, net(
        "ACEStep",
        dict(
            audio_model="ace", attention_head_dim=16, in_channels=8, inner_dim=64, max_height=16, max_position=128,
            max_width=128, mlp_ratio=2.0, num_attention_heads=4, num_layers=2, out_channels=8, patch_size=[16, 1],
            text_embedding_dim=64, ssl_encoder_depths=[8, 8], ssl_latent_dims=[32, 32], ssl_names=["mert", "m-hubert"],
            lyric_encoder_vocab_size=32,
            lyric_hidden_size=1024,
        ),
        shapes=((8, 16, 24),), extra=_lyrics,
    )),
    "ACEStep15": net(
        "ACEStep15",
        dict(
            audio_model="ace1.5", hidden_size=64, text_hidden_dim=64, num_dit_layers=2, num_lyric_layers=1, num_timbre_layers=1,
            num_tokenizer_layers=1, num_heads=2, num_kv_heads=1, head_dim=32, intermediate_size=64, fsq_dim=64,
            encoder_hidden_size=64, encoder_intermediate_size=64, encoder_num_heads=2,
        ),
        shapes=((64, 24),), extra=_lyric_embeds,
    ),
    "Hunyuan3Dv2": net("Hunyuan3Dv2", {**HUNYUAN_3D, "guidance_embed": False}, shapes=((64, 32),)),
    "Hunyuan3Dv2mini": net("Hunyuan3Dv2mini", {**HUNYUAN_3D, "guidance_embed": True}, shapes=((64, 32),)),
    "Hunyuan3Dv2_1": net(
        "Hunyuan3Dv2_1",
        dict(
            image_model="hunyuan3d2_1", in_channels=64, context_dim=64, hidden_size=64, num_heads=4, depth=2, qkv_bias=False,
            guidance_cond_proj_dim=None, num_moe_layers=1, num_experts=2, moe_top_k=1,
        ),
        shapes=((64, 32),),
    ),
    "TripoSplat": net(
        "TripoSplat",
        dict(
            image_model="triposplat", q_token_length=32, in_channels=16, model_channels=64, cond_channels=64, out_channels=16,
            num_blocks=2, num_refiner_blocks=1, num_head_channels=16, cond2_channels=16,
        ),
        shapes=((32, 16), (1, 5)),
    ),
}  # fmt: skip
CLASSES = {name: make for name, make in MAKERS.items() if hasattr(supported, name)}  # the oldest ComfyUI has fewer
