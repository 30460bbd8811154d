"""Highlights as masks for other nodes: of the prompt, and of each word by itself."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import HighlightConfig
from ..region.refinement import word_highlighted
from ..trace import RunRecord

MaskSize = Literal["picture", "picture, soft edges", "latent"]
MASK_SIZES: tuple[MaskSize, ...] = get_args(MaskSize)


def prompt_masks(run: RunRecord, picture: tuple[int, int], size: MaskSize = "picture") -> Tensor:
    """The final highlight of each picture, float (B, H, W); empty (1, H, W) where none was found."""
    highlight = torch.zeros(1, *run.frame) if run.highlight is None else run.highlight.float()
    return _sized(highlight, picture, size)


def word_masks(run: RunRecord, image: int, picture: tuple[int, int], size: MaskSize = "picture") -> Tensor:
    """What each of the run's words looks at in one picture, float (words, H, W) in the order of `run.words`; an empty mask
    (1, H, W) where no words have heatmaps of their own."""
    heard = next((e.words for e in reversed(run.evaluations) if e.words is not None), None)
    if heard is None:
        return _sized(torch.zeros(1, *run.frame), picture, size)
    heats = heard[min(image, len(heard) - 1)]
    return _sized(torch.stack([word_highlighted(heat, HighlightConfig.threshold) for heat in heats]).float(), picture, size)


def _sized(masks: Tensor, picture: tuple[int, int], size: MaskSize) -> Tensor:
    """Masks (n, h, w) on the latent's grid, in a picture's size (H, W) unless that of the latent is wanted."""
    if size == "latent":
        return masks
    return F.interpolate(masks[:, None], picture, mode="nearest" if size == "picture" else "bilinear")[:, 0]
