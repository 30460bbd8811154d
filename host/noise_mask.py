"""Where a noise mask lets the latent change: everywhere else the sampler puts back what it was given, at every evaluation."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

# Of cells that change by less, whatever is wrong with their predictions counts less than a tenth.
LEAST_CHANGE = 0.1


def changing(guider: Any, sampler: Any, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The cells of a latent (B, C, [frames,] H, W) that a noise mask lets change, 1 or 0 as float (B, H, W) on the CPU; None
    where there is no mask, or none that says so.

    mask: as OUTER_SAMPLE has it, of the latent's shape. What a soft mask changes little counts as kept, except where a function
    makes the mask of every step from it: under differential diffusion each cell changes fully, from some step on. A sampler
    that is not of ComfyUI's own kind need not keep what is masked; latents without a frame, and several in one tensor, have no
    regions.
    """
    if mask is None or len(shape) < 4 or mask.shape[-2:] != shape[-2:] or not isinstance(sampler, comfy.samplers.KSAMPLER):
        return None
    least = 0.0 if "denoise_mask_function" in guider.model_options else LEAST_CHANGE
    return (mask > least).flatten(1, -3).any(1).float().cpu()
