"""Writes the workflows of the template browser, and their thumbnails: `python run.py workflows`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from .comfy import boot
from .graph import Graph, Link, thumbnail
from .start import PACK

FOLDER = PACK / "workflows"
# Workflows of the bundled model show what it draws: row and columns of the demo's contact sheet.
CUTS = {"highlight_demo": (1, (1, 4)), "highlight_comparison": (2, (0, 1))}
CELL, TITLE = 128, 9  # of the sheet, in pixels


def cut(row: int, columns: tuple[int, ...]) -> Image.Image:
    """Pictures of the demo's contact sheet, beside each other."""
    with Image.open(PACK / "docs" / "demo.jpg") as sheet:
        top = TITLE + row * (CELL + TITLE)
        cells = [sheet.crop((column * CELL, top, (column + 1) * CELL, top + CELL)) for column in columns]
    image = Image.new("RGB", (len(cells) * CELL, CELL))
    for i, cell in enumerate(cells):
        image.paste(cell, (i * CELL, 0))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)


PROMPT = "a red fox sitting in front of a wooden cabin, autumn leaves, soft morning light, photograph"
NEGATIVE = "blurry, low quality"
WHERE = "Put the files into these folders of ComfyUI, then reload the page with R:\n"
WATCH = (
    "\n**Highlight Mask Preview** shows what each evaluation did. Turn `enabled` off in **Highlight Diffusion** and queue "
    "again with the same seed to compare."
)


def _files(**folders: str) -> str:
    return WHERE + "\n".join(f"- `models/{folder}`: {names}" for folder, names in folders.items()) + "\n"


def _prompts(g: Graph, clip: Link, column: int, negative: str = NEGATIVE) -> tuple[Link, Link]:
    (positive,) = g.add("CLIPTextEncode", column, "Prompt", clip=clip, text=PROMPT)
    (other,) = g.add("CLIPTextEncode", column, "Negative prompt", clip=clip, text=negative)
    return positive, other


def _sample(g: Graph, column: int, model, trace, positive, negative, latent, vae, name: str, **sampling: Any) -> None:
    """Sampler, decoder, the picture and the preview."""
    settings: dict[str, Any] = {
        "seed": 1,
        "steps": 25,
        "cfg": 6.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        **sampling,
    }
    (samples,) = g.add(
        "KSampler", column, model=model, positive=positive, negative=negative, latent_image=latent, **{**settings, **sampling}
    )  # fmt: skip
    (image,) = g.add("VAEDecode", column + 1, samples=samples, vae=vae)
    g.add("SaveImage", column + 1, images=image, filename_prefix=name)
    g.add("HighlightMaskPreview", column + 1, trace=trace, images=image)


def _edges(g: Graph, column: int) -> Link:
    image = g.add("LoadImage", column, "Picture whose edges are followed", image="example.png")[0]
    return g.add("Canny", column, image=image, low_threshold=0.2, high_threshold=0.5)[0]


def comparison() -> Graph:
    """Dense and accelerated beside each other, one seed, with the bundled model."""
    g = Graph("highlight_comparison")
    model, clip, vae, _ = g.add("HighlightDemoModel", 0, kind="unet")
    prompt = "a large green triangle at the top right and a small red square at the left on a dotted blue background"
    (positive,) = g.add("CLIPTextEncode", 1, "Prompt", clip=clip, text=prompt)
    (negative,) = g.add("CLIPTextEncode", 1, "Negative prompt", clip=clip, text="")
    (latent,) = g.add("EmptyLatentImage", 1, width=512, height=512, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 2, model=model)
    shared = {
        "positive": positive, "negative": negative, "latent_image": latent, "seed": 3, "steps": 20, "cfg": 3.0,
        "sampler_name": "euler", "scheduler": "normal",
    }  # fmt: skip
    images = []
    for title, source in (("Dense", model), ("Accelerated", fast)):
        (samples,) = g.add("KSampler", 3, title, model=source, **shared)
        images.append(g.add("VAEDecode", 4, title, samples=samples, vae=vae)[0])
    (both,) = g.add("ImageStitch", 4, image1=images[0], image2=images[1], direction="right")
    g.add("SaveImage", 5, "Dense, accelerated", images=both, filename_prefix=g.name)
    g.add("HighlightMaskPreview", 5, trace=trace, images=images[1])
    g.note(
        0, "Left the picture as it is without **Highlight Diffusion**, right the accelerated one, of the same seed. Nothing to "
        "download: the model is bundled.\n\nWith your own checkpoint, replace the loader, the prompts and the latent's size.",
    )  # fmt: skip
    return g


def demo_turbo(steps: int) -> Graph:
    """The bundled transformer with a LoRA that distils it, at CFG 1."""
    g = Graph(f"highlight_demo_turbo_{steps}")
    model, clip, vae, _ = g.add("HighlightDemoModel", 0, kind="mmdit")
    lora = f"highlight_demo_turbo_{steps}_steps"
    (turbo,) = g.add("LoraLoaderModelOnly", 0, model=model, lora_name=f"{lora}.safetensors", strength_model=1.0)
    prompt = "a large purple star at the top left and a small white circle at the right on a checked teal background"
    (positive,) = g.add("CLIPTextEncode", 1, "Prompt", clip=clip, text=prompt)
    (nothing,) = g.add("ConditioningZeroOut", 1, conditioning=positive)
    (latent,) = g.add("EmptyLatentImage", 1, width=512, height=512, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 2, model=turbo)
    _sample(
        g, 3, fast, trace, positive, nothing, latent, vae, g.name, seed=7, steps=steps, cfg=1.0, sampler_name="euler",
        scheduler="simple",
    )  # fmt: skip
    g.note(0, f"Nothing to download: the model and the LoRA **{lora}** are bundled." + WATCH)
    return g


def demo_image_prompt() -> Graph:
    """A picture of the bundled model as the prompt of another, beside Highlight Diffusion."""
    g = Graph("highlight_demo_image_prompt")
    model, clip, vae, vision = g.add("HighlightDemoModel", 0, kind="unet")
    (adapter,) = g.add("IPAdapterModelLoader", 0, ipadapter_file="highlight_demo_image_prompt.safetensors")
    prompt = "a large yellow star at the top left and a small blue circle at the right on a checked brown background"
    (positive,) = g.add("CLIPTextEncode", 1, "Prompt of the first picture", clip=clip, text=prompt)
    (empty,) = g.add("CLIPTextEncode", 1, "No prompt", clip=clip, text="")
    (latent,) = g.add("EmptyLatentImage", 1, width=256, height=256, batch_size=1)
    shared = {"cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    (samples,) = g.add(
        "KSampler", 2, "First picture", model=model, positive=positive, negative=empty, latent_image=latent, seed=5, steps=20,
        **shared,
    )  # fmt: skip
    (first,) = g.add("VAEDecode", 2, samples=samples, vae=vae)
    g.add("PreviewImage", 2, "The image prompt", images=first)
    settings: dict[str, Any] = {"weight": 1.0, "weight_type": "linear", "combine_embeds": "concat", "embeds_scaling": "V only"}
    (adapted,) = g.add("IPAdapterAdvanced", 3, model=model, ipadapter=adapter, image=first, clip_vision=vision, **settings)
    fast, trace = g.add("HighlightDiffusion", 3, model=adapted)
    _sample(g, 4, fast, trace, empty, empty, latent, vae, g.name, seed=6, steps=30, **shared)
    bundled = "Nothing to download: the model, its vision encoder and the adapter **highlight_demo_image_prompt** are bundled."
    g.note(0, bundled + NEEDS_IP_ADAPTER + WATCH)
    return g


def sd15_controlnet() -> Graph:
    g = Graph("highlight_sd15_controlnet")
    model, clip, vae = g.add("CheckpointLoaderSimple", 0, ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    edges = _edges(g, 0)
    (net,) = g.add("ControlNetLoader", 1, control_net_name="control_v11p_sd15_canny_fp16.safetensors")
    positive, negative = _prompts(g, clip, 1)
    positive, negative = g.add(
        "ControlNetApplyAdvanced", 2, positive=positive, negative=negative, control_net=net, image=edges, strength=0.9
    )
    (latent,) = g.add("EmptyLatentImage", 2, width=512, height=512, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 2, model=model)
    _sample(g, 3, fast, trace, positive, negative, latent, vae, g.name)
    g.note(0, _files(checkpoints="v1-5-pruned-emaonly-fp16", controlnet="control_v11p_sd15_canny_fp16") + WATCH)
    return g


def _ip_adapter(g: Graph, column: int, model: Link, file: str) -> Link:
    (adapter,) = g.add("IPAdapterModelLoader", column, ipadapter_file=file)
    (vision,) = g.add("CLIPVisionLoader", column, clip_name="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    image = g.add("LoadImage", column, "Picture whose content is taken up", image="example.png")[0]
    settings: dict[str, Any] = {"weight": 0.7, "weight_type": "linear", "combine_embeds": "concat", "embeds_scaling": "V only"}
    return g.add("IPAdapterAdvanced", column, model=model, ipadapter=adapter, image=image, clip_vision=vision, **settings)[0]


NEEDS_IP_ADAPTER = "\nThe pack **ComfyUI_IPAdapter_plus** must be installed.\n"


def sdxl_ip_adapter() -> Graph:
    g = Graph("highlight_sdxl_ipadapter")
    model, clip, vae = g.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    adapted = _ip_adapter(g, 1, model, "ip-adapter-plus_sdxl_vit-h.safetensors")
    positive, negative = _prompts(g, clip, 2)
    (latent,) = g.add("EmptyLatentImage", 2, width=1024, height=1024, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 2, model=adapted)
    _sample(g, 3, fast, trace, positive, negative, latent, vae, g.name)
    files = _files(
        checkpoints="sd_xl_base_1.0", ipadapter="ip-adapter-plus_sdxl_vit-h", clip_vision="CLIP-ViT-H-14-laion2B-s32B-b79K"
    )
    g.note(0, files + NEEDS_IP_ADAPTER + WATCH)
    return g


def sd15_controlnet_ip_adapter() -> Graph:
    g = Graph("highlight_sd15_controlnet_ipadapter")
    model, clip, vae = g.add("CheckpointLoaderSimple", 0, ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    edges = _edges(g, 0)
    adapted = _ip_adapter(g, 1, model, "ip-adapter-plus_sd15.safetensors")
    (net,) = g.add("ControlNetLoader", 2, control_net_name="control_v11p_sd15_canny_fp16.safetensors")
    positive, negative = _prompts(g, clip, 2)
    positive, negative = g.add(
        "ControlNetApplyAdvanced", 3, positive=positive, negative=negative, control_net=net, image=edges, strength=0.9
    )
    (latent,) = g.add("EmptyLatentImage", 3, width=512, height=512, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 3, model=adapted)
    _sample(g, 4, fast, trace, positive, negative, latent, vae, g.name)
    files = _files(
        checkpoints="v1-5-pruned-emaonly-fp16", controlnet="control_v11p_sd15_canny_fp16",
        ipadapter="ip-adapter-plus_sd15", clip_vision="CLIP-ViT-H-14-laion2B-s32B-b79K",
    )  # fmt: skip
    g.note(0, files + NEEDS_IP_ADAPTER + WATCH)
    return g


def sd35_sdtm() -> Graph:
    g = Graph("highlight_sd35_sdtm")
    model, _, vae = g.add("CheckpointLoaderSimple", 0, ckpt_name="sd3.5_medium.safetensors")
    (clip,) = g.add(
        "TripleCLIPLoader", 0, clip_name1="clip_l.safetensors", clip_name2="clip_g.safetensors",
        clip_name3="t5xxl_fp8_e4m3fn.safetensors",
    )  # fmt: skip
    positive, negative = _prompts(g, clip, 1, "")
    (latent,) = g.add("EmptySD3LatentImage", 1, width=1024, height=1024, batch_size=1)
    merged, trace = g.add("HighlightSDTM", 2, model=model)
    _sample(
        g, 3, merged, trace, positive, negative, latent, vae, g.name, steps=28, cfg=4.5, scheduler="sgm_uniform",
        sampler_name="euler",
    )  # fmt: skip
    files = _files(checkpoints="sd3.5_medium", text_encoders="clip_l, clip_g, t5xxl_fp8_e4m3fn")
    g.note(0, files + "\nTurn `enabled` off in **SDTM Token Merging** and queue again with the same seed to compare.")
    return g


def flux() -> Graph:
    g = Graph("highlight_flux_sdtm_controlnet")
    (model,) = g.add("UNETLoader", 0, unet_name="flux1-dev.safetensors", weight_dtype="default")
    (clip,) = g.add(
        "DualCLIPLoader", 0, clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp8_e4m3fn.safetensors", type="flux"
    )
    (vae,) = g.add("VAELoader", 0, vae_name="ae.safetensors")
    edges = _edges(g, 0)
    (net,) = g.add("ControlNetLoader", 1, control_net_name="FLUX.1-dev-ControlNet-Union-Pro-2.0.safetensors")
    (positive,) = g.add("CLIPTextEncode", 1, "Prompt", clip=clip, text=PROMPT)
    (guided,) = g.add("FluxGuidance", 1, conditioning=positive, guidance=3.5)
    (nothing,) = g.add("ConditioningZeroOut", 1, conditioning=positive)
    positive, negative = g.add(
        "ControlNetApplyAdvanced", 2, positive=guided, negative=nothing, control_net=net, vae=vae, image=edges, strength=0.6,
        end_percent=0.8,
    )  # fmt: skip
    (latent,) = g.add("EmptySD3LatentImage", 2, width=1024, height=1024, batch_size=1)
    merged, _ = g.add("HighlightSDTM", 2, model=model)
    fast, trace = g.add("HighlightDiffusion", 2, model=merged)
    _sample(
        g, 3, fast, trace, positive, negative, latent, vae, g.name, steps=20, cfg=1.0, sampler_name="euler", scheduler="simple"
    )
    files = _files(
        diffusion_models="flux1-dev", text_encoders="clip_l, t5xxl_fp8_e4m3fn", vae="ae",
        controlnet="FLUX.1-dev-ControlNet-Union-Pro-2.0",
    )  # fmt: skip
    g.note(0, files + WATCH)
    return g


GRAPHS: list[Callable[[], Graph]] = [
    comparison, partial(demo_turbo, 8), partial(demo_turbo, 4), demo_image_prompt, sd15_controlnet, sdxl_ip_adapter,
    sd15_controlnet_ip_adapter, sd35_sdtm, flux,
]  # fmt: skip


def load_nodes() -> None:
    """All nodes the workflows use: ComfyUI's, this pack's, and IPAdapter_plus' from HIGHLIGHT_PACKS or ~/comfy/packs."""
    boot()
    import nodes  # ComfyUI's, once it is booted

    packs = Path(os.environ.get("HIGHLIGHT_PACKS", "~/comfy/packs")).expanduser()
    for pack in (PACK, packs / "ComfyUI_IPAdapter_plus"):
        asyncio.run(nodes.load_custom_node(str(pack)))


def main() -> int:
    load_nodes()
    for name, place in CUTS.items():
        cut(*place).save(FOLDER / f"{name}.jpg", quality=85)
    for make in GRAPHS:
        graph = make()
        path = FOLDER / f"{graph.name}.json"
        path.write_text(json.dumps(graph.as_json(), indent=1, ensure_ascii=False) + "\n")
        if graph.name not in CUTS:
            thumbnail(graph.as_json()).save(path.with_suffix(".jpg"), quality=85)
    return 0
