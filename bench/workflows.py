"""Writes the workflows of the template browser: `python run.py workflows`. Graphs are stated here, and the frontend's JSON,
with slots and widgets in the order the nodes of the real ComfyUI declare them, is made of that, with a thumbnail beside it."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .host import boot
from .start import PACK
from .workflow import WIDGET_TYPES

FOLDER = PACK / "workflows"
WIDTH, GAP, SLOT, WIDGET, TEXT = 340, 70, 22, 26, 90  # of nodes, in the graph's pixels
Link = tuple[int, int, str]  # node, slot, type


def node_info(kind: str) -> dict:
    """A node's inputs and outputs as ComfyUI tells the frontend. Raises KeyError for a node that is not installed."""
    import nodes

    made = nodes.NODE_CLASS_MAPPINGS[kind]
    if hasattr(made, "GET_NODE_INFO_V1"):
        return made.GET_NODE_INFO_V1()
    outputs = list(made.RETURN_TYPES)
    return {"input": made.INPUT_TYPES(), "output": outputs, "output_name": list(getattr(made, "RETURN_NAMES", outputs))}


@dataclass
class Graph:
    """A workflow in the making: nodes in columns, from left to right."""

    name: str
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    heights: dict[int, int] = field(default_factory=dict)

    def add(self, node: str, column: int, title: str = "", **given: Any) -> list[Link]:
        """Add a node; inputs are outputs of others, or widget values, and those left out keep their default.

        Returns its outputs. Raises ValueError for an input the node has not, and for one it needs and was not given.
        """
        info, number = node_info(node), len(self.nodes) + 1
        inputs, widgets, texts = [], [], 0
        for group in ("required", "optional"):
            for name, spec in info["input"].get(group, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options.get("forceInput"):
                    widgets.append(given.pop(name, _default(spec, options)))
                    texts += bool(options.get("multiline"))
                    if options.get("control_after_generate"):
                        widgets.append("fixed")
                else:
                    link = given.pop(name, None)
                    if link is None and group == "required":
                        raise ValueError(f"{node} needs {name}")
                    inputs.append({"name": name, "type": spec[0], "link": self._link(link, number, len(inputs))})
        if given:
            raise ValueError(f"{node} has no input {', '.join(given)}")
        outputs = [{"name": n, "type": t, "links": []} for n, t in zip(info["output_name"], info["output"], strict=True)]
        height = 40 + SLOT * max(len(inputs), len(outputs)) + WIDGET * len(widgets) + TEXT * texts
        self._place(node, column, height, title, inputs=inputs, outputs=outputs, widgets_values=widgets)
        return [(number, slot, output["type"]) for slot, output in enumerate(outputs)]

    def note(self, column: int, text: str) -> None:
        """A note in Markdown."""
        lines = sum(1 + len(line) // 46 for line in text.splitlines())
        self._place("MarkdownNote", column, 60 + 20 * lines, "", inputs=[], outputs=[], widgets_values=[text])

    def _link(self, link: Link | None, target: int, slot: int) -> int | None:
        if link is None:
            return None
        number = len(self.links) + 1
        self.links.append([number, link[0], link[1], target, slot, link[2]])
        self.nodes[link[0] - 1]["outputs"][link[1]]["links"].append(number)
        return number

    def _place(self, kind: str, column: int, height: int, title: str, **rest: Any) -> None:
        top = self.heights.get(column, 40)
        self.heights[column] = top + height + GAP
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [40 + column * (WIDTH + GAP), top], "size": [WIDTH, height],
            "flags": {}, "order": len(self.nodes), "mode": 0, **rest, "properties": {"Node name for S&R": kind},
        }  # fmt: skip
        self.nodes.append(node | ({"title": title} if title else {}))

    def as_json(self) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(self.nodes),
            "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [], "config": {}, "extra": {},
            "version": 0.4,
        }  # fmt: skip


def _default(spec: Any, options: dict) -> Any:
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    return choices[0] if choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(spec[0], "")


def thumbnail(graph: dict, size: tuple[int, int] = (480, 300)) -> Image.Image:
    """A drawing of a workflow: its nodes with their titles, and its links."""
    right = max(n["pos"][0] + n["size"][0] for n in graph["nodes"]) + 40
    bottom = max(n["pos"][1] + n["size"][1] for n in graph["nodes"]) + 40
    scale, over = min(size[0] / right, size[1] / bottom), 3
    image = Image.new("RGB", (size[0] * over, size[1] * over), (34, 34, 38))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11 * over)
    at = lambda x, y: (x * scale * over, y * scale * over)  # noqa: E731
    nodes = {n["id"]: n for n in graph["nodes"]}
    for _, source, out, target, into, _ in graph["links"]:
        a, b = nodes[source], nodes[target]
        start = at(a["pos"][0] + a["size"][0], a["pos"][1] + SLOT * (out + 1))
        end = at(b["pos"][0], b["pos"][1] + SLOT * (into + 1))
        draw.line([start, end], fill=(110, 130, 160), width=over)
    for node in graph["nodes"]:
        kind = node["type"]
        fill = (190, 120, 30) if kind.startswith("Highlight") else (84, 84, 60) if "Note" in kind else (62, 66, 74)
        (x, y), (w, h) = node["pos"], node["size"]
        draw.rounded_rectangle([at(x, y), at(x + w, y + h)], 4 * over, fill=fill)
        label = node.get("title") or ("Note" if "Note" in kind else kind)
        while label and draw.textlength(label, font) > w * scale * over - 4 * over:
            label = label[:-1]
        left, top = at(x, y)
        draw.text((left + 2 * over, top + over), label, fill=(235, 235, 235), font=font)
    return image.resize(size, Image.Resampling.LANCZOS)


# -- the workflows ---------------------------------------------------------------------------------------------------

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
    settings = {"seed": 1, "steps": 25, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", **sampling}
    (samples,) = g.add(
        "KSampler", column, model=model, positive=positive, negative=negative, latent_image=latent, **settings
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
    model, clip, vae = g.add("HighlightDemoModel", 0, kind="unet")
    prompt = "a large green triangle at the top right and a small red square at the left on a dotted blue background"
    (positive,) = g.add("CLIPTextEncode", 1, "Prompt", clip=clip, text=prompt)
    (negative,) = g.add("CLIPTextEncode", 1, "Negative prompt", clip=clip, text="")
    (latent,) = g.add("EmptyLatentImage", 1, width=256, height=256, batch_size=1)
    fast, trace = g.add("HighlightDiffusion", 2, model=model)
    shared = {
        "positive": positive, "negative": negative, "latent_image": latent, "seed": 3, "steps": 30, "cfg": 3.0,
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
    settings = {"weight": 0.7, "weight_type": "linear", "combine_embeds": "concat", "embeds_scaling": "V only"}
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
    comparison, sd15_controlnet, sdxl_ip_adapter, sd15_controlnet_ip_adapter, sd35_sdtm, flux,
]  # fmt: skip


def load_nodes() -> None:
    """All nodes the workflows use: ComfyUI's, this pack's, and IPAdapter_plus' from HIGHLIGHT_PACKS or ~/comfy/packs."""
    import nodes

    boot()
    packs = Path(os.environ.get("HIGHLIGHT_PACKS", "~/comfy/packs")).expanduser()
    for pack in (PACK, packs / "ComfyUI_IPAdapter_plus"):
        asyncio.run(nodes.load_custom_node(str(pack)))


def main() -> int:
    boot()
    load_nodes()
    for make in GRAPHS:
        graph = make().as_json()
        path = FOLDER / f"{make().name}.json"
        path.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n")
        thumbnail(graph).save(path.with_suffix(".jpg"), quality=85)
    return 0
