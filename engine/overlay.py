"""A run drawn over its picture: heatmap, highlight, computed windows and a timeline. Plain tensors, values in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .highlight import boxes_mask
from .trace import Evaluation, Run

# Okabe and Ito's colours, told apart by colour-blind readers
KIND_COLOURS = {"dense": (0.0, 0.45, 0.70), "partial": (0.90, 0.62, 0.0), "skipped": (0.62, 0.62, 0.62)}
OUTLINE = (1.0, 1.0, 1.0)
WINDOW = KIND_COLOURS["partial"]
# Nine samples of matplotlib's "inferno", a CC0 table whose lightness rises evenly
INFERNO = (
    (0.001, 0.000, 0.014), (0.121, 0.047, 0.283), (0.316, 0.072, 0.485), (0.494, 0.122, 0.508), (0.671, 0.195, 0.455),
    (0.841, 0.300, 0.331), (0.954, 0.468, 0.162), (0.988, 0.685, 0.072), (0.988, 0.998, 0.645),
)  # fmt: skip
TIMELINE = 14  # pixels
SMALLEST = 256  # pictures below this are enlarged, so that outlines stay thin


def colourise(heat: Tensor) -> Tensor:
    """Heat (h, w) in 0..1 -> RGB (h, w, 3)."""
    table = torch.tensor(INFERNO)
    position = heat.clamp(0, 1) * (len(table) - 1)
    low = position.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (position - low)[..., None])


def _outline(mask: Tensor, width: int) -> Tensor:
    """The inner edge of a bool mask (h, w)."""
    outside = F.max_pool2d((~mask)[None, None].float(), 2 * width + 1, stride=1, padding=width)[0, 0] > 0
    return mask & outside


def _resize(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(values[None, None].float(), size, mode=mode)[0, 0]


def _timeline(run: Run, now: Evaluation, width: int) -> Tensor:
    """One cell an evaluation: colour by kind, height by active area, the current one marked on top."""
    strip = torch.ones(TIMELINE, width, 3)
    edges = torch.linspace(0, width, len(run.evaluations) + 1).round().int().tolist()
    for evaluation, left, right in zip(run.evaluations, edges, edges[1:], strict=False):
        right = max(left + 1, right - 1)
        height = max(2, round((TIMELINE - 4) * evaluation.active))
        strip[TIMELINE - height :, left:right] = torch.tensor(KIND_COLOURS[evaluation.kind])
        if evaluation is now:
            strip[:3, left:right] = 0.0
    return strip


def frames(run: Run, picture: Tensor, image: int = 0, every: int = 1) -> tuple[Tensor, Tensor]:
    """Frames (n, H + 14, W, 3) over a picture (H, W, 3), and the highlight of each image, float (B, H, W).

    One frame for every `every`-th evaluation, counted back from the last.

    A frame whose evaluation captured no heatmap shows the latest one before it. The mask has the picture's size.
    """
    if min(picture.shape[:2]) < SMALLEST:
        factor = -(-SMALLEST // min(picture.shape[:2]))
        picture = picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    size = (picture.shape[0], picture.shape[1])
    line = max(1, min(size) // 256)
    mask = torch.zeros(1, *size)
    highlight = None
    if run.highlight is not None:
        mask = F.interpolate(run.highlight[:, None].float(), size, mode="nearest")[:, 0]
        highlight = mask[min(image, len(mask) - 1)] > 0.5
    shown, heat = [], None
    for evaluation in run.evaluations:
        if evaluation.heatmap is not None:
            heat = evaluation.heatmap[min(image, len(evaluation.heatmap) - 1), 0]
        if (len(run.evaluations) - 1 - evaluation.index) % every:
            continue
        frame = picture.clone()
        if heat is not None:
            smooth = _resize(heat, size, "bilinear")
            strength = 0.25 + 0.45 * smooth[..., None]
            frame = frame * (1 - strength) + colourise(smooth) * strength
            if highlight is not None:
                frame[_outline(highlight, line)] = torch.tensor(OUTLINE)
        boxes = evaluation.boxes[min(image, len(evaluation.boxes) - 1)] if evaluation.boxes else ()
        if boxes:
            windows = _resize(boxes_mask(boxes, run.shape[-2:]), size, "nearest") > 0.5
            frame[_outline(windows, 2 * line)] = torch.tensor(WINDOW)
        shown.append(torch.cat([frame, _timeline(run, evaluation, size[1])]))
    return (torch.stack(shown) if shown else picture[None]), mask


def picture_of_latent(samples: Tensor, run: Run | None) -> Tensor:
    """A rough picture (B, 8h, 8w, 3) of a latent (B, C, h, w), by the model's latent-to-RGB factors where known."""
    factors = torch.tensor(run.rgb_factors) if run is not None and run.rgb_factors else None
    latent = samples.float().cpu()
    if factors is None or len(factors) != latent.shape[1]:
        grey = latent.mean(1, keepdim=True)
        colours = ((grey - grey.amin()) / (grey.amax() - grey.amin()).clamp(min=1e-6)).expand(-1, 3, -1, -1)
    else:
        colours = (torch.einsum("bchw,cr->brhw", latent, factors) / 2 + 0.5).clamp(0, 1)
    return F.interpolate(colours, scale_factor=8, mode="nearest").permute(0, 2, 3, 1)
