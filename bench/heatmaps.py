"""How well heatmaps find the objects: intersection over union with the detector's masks, by layer and evaluation."""

from __future__ import annotations

import statistics
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.detector import colour_map
from ..demo.diffusion import normal_sigmas
from ..demo.load import encode_prompt, load_plain
from ..demo.plain import HEATMAP_GRIDS, PlainModel
from ..demo.text import END, START, tokenize
from ..demo.unet import UNet
from ..demo.vae import SCALE
from ..engine.config import HighlightConfig
from ..engine.partial.patching import patched_forward
from ..engine.region.heatmap import TokenWeights, combine, grid_of, normalised, token_maps
from ..engine.region.regions import refine
from .prompts import demo as demo_prompts

STEPS, CFG, FRAME, GRID = 30, 3.0, (32, 32), (16, 16)
SHOWN = (1, 2, 3, 5, 9, 15, 22, 29)  # evaluations in the table


class Listener:
    """Token maps of every cross-attention, and self-attention on the heatmap's grid, of one call's positive stream."""

    def __init__(self, unet: UNet):
        self.maps: dict[str, Tensor] = {}
        self.affinities: list[Tensor] = []
        self.forwards = {}
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                self._hear(name.split(".transformer_blocks")[0], module)
            elif name.endswith("attn1"):
                self._relate(module)

    def _hear(self, name: str, attention) -> None:
        forward = attention.forward

        def heard(x: Tensor, context: Tensor) -> Tensor:
            grid = grid_of(x.shape[1], *FRAME)
            if FRAME[0] // grid[0] in HEATMAP_GRIDS:
                q, k = attention.to_q(x).chunk(2)[0], attention.to_k(context).chunk(2)[0]
                maps = token_maps(q, k, attention.heads).unflatten(-1, grid)
                self.maps[name] = F.interpolate(maps, GRID, mode="bilinear", antialias=True)
            return forward(x, context)

        self.forwards[attention] = heard

    def _relate(self, attention) -> None:
        forward = attention.forward

        def related(x: Tensor, *args) -> Tensor:
            if grid_of(x.shape[1], *FRAME) == GRID:
                q, k = attention.to_q(x).chunk(2)[0], attention.to_k(x).chunk(2)[0]
                self.affinities.append(token_maps(q, k, attention.heads).transpose(1, 2))  # (B, cells, cells attended to)
            return forward(x, *args)

        self.forwards[attention] = related


def iou(heat: Tensor, truth: np.ndarray) -> float:
    """Intersection over union of the highlight of a heatmap (1, 1, h, w) and a mask (h, w)."""
    found = refine(heat, HighlightConfig.threshold)[0].numpy()
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def lines(prompts: int) -> list[str]:
    """Tables of intersection over union, as markdown."""
    unet, text, vae = load_plain()
    negative, sigmas = encode_prompt(text, ""), normal_sigmas(STEPS).tolist()
    asked = [p for p in demo_prompts() if p.kind in ("one object", "several objects")][:prompts]
    ways: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed, prompt in enumerate(asked):
        model = PlainModel(unet, encode_prompt(text, prompt.text), negative)
        x = torch.randn(1, 4, *FRAME, generator=torch.Generator().manual_seed(seed)) * (1 + sigmas[0] ** 2) ** 0.5
        heats: dict[int, dict[str, Tensor]] = {}
        content = TokenWeights(tuple(float(token not in (START, END)) for token in tokenize(prompt.text).tolist()))
        running = None
        with torch.inference_mode():
            for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
                listener = Listener(unet)
                with patched_forward(listener.forwards):
                    positive, other = model(x, sigma)
                decoder = {name: maps for name, maps in listener.maps.items() if name.startswith("output")}
                used = combine(sum(listener.maps.values()))
                running = used if running is None else running.lerp(used, max(0.2, 1 / (step + 1)))
                affinity = sum(listener.affinities) / len(listener.affinities)
                spread = normalised((affinity @ used.flatten(-2).transpose(1, 2)).transpose(1, 2).unflatten(-1, GRID))
                heats[step] = {name: combine(maps) for name, maps in listener.maps.items()} | {
                    "all layers, as used": used, "all layers, running mean": running, "all layers, by self-attention": spread,
                    "all layers, content tokens only": combine(sum(listener.maps.values()), content),
                    "the decoder's layers": combine(sum(decoder.values())),
                }  # fmt: skip
                denoised = other + CFG * (positive - other)
                x = x + (x - denoised) / sigma * (following - sigma)
            picture = (vae.decode(x / SCALE)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
        objects = torch.from_numpy(colour_map(picture) >= 0).float()
        truth = F.adaptive_max_pool2d(objects[None], GRID)[0].numpy() > 0
        for step, found in heats.items():
            for way, heat in found.items():
                ways[way][step].append(iou(heat, truth))
            early = heats[min(step, 1)]["all layers, as used"]
            ways["all layers, of the second evaluation"][step].append(iou(early, truth))
    heading = " | ".join(f"step {step}" for step in SHOWN)
    table = [f"Intersection over union of the highlight with the objects' cells, mean over {len(asked)} prompts.", "",
             f"| heatmap of | {heading} |", "|---|" + "---|" * len(SHOWN)]  # fmt: skip
    for way, by_step in ways.items():
        table.append(f"| {way} | " + " | ".join(f"{statistics.fmean(by_step[step]):.2f}" for step in SHOWN) + " |")
    return [*table, ""]
