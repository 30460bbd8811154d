"""Where an edit changes a picture: how the prediction differs from the reference that the model was given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .heatmap import normalised

NEAR = 3  # cells of the square over which differences are averaged, so that single cells do not count, and then spread


def difference(denoised: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Where a denoised latent (B, C, [F,] H, W) differs from a reference (1 or B, C, [1 or F,] H, W): a map (B, 1, H, W) in
    0..1, and how far it stands out, float (B,): its coefficient of variation over the frame, as for the words of a prompt.

    A model for editing copies what the prompt leaves as it is, so that the difference is large in the edit alone. Where the
    whole picture is composed anew it is even, and says nothing. In a video the greatest difference of any frame counts.
    """
    away = (denoised.float() - reference.to(denoised).float()).abs().mean(dim=1)
    if away.ndim == 4:
        away = away.amax(dim=1)
    away = F.avg_pool2d(away[:, None], NEAR, stride=1, padding=NEAR // 2, count_include_pad=False)
    away = F.max_pool2d(away, NEAR, stride=1, padding=NEAR // 2)
    spread, mean = away.std(dim=(1, 2, 3), unbiased=False), away.mean(dim=(1, 2, 3))
    return normalised(away), spread / mean.clamp(min=torch.finfo(mean.dtype).tiny)
