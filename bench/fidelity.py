"""Fidelity of a picture to the unaccelerated one: PSNR and SSIM on RGB, whole or inside a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

BEST = 100.0  # dB reported for identical pictures, whose PSNR is infinite
DECILE = 10  # percent of the pictures, the worst ones
SPREAD = "mean / worst decile / worst"


def psnr(reference: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of RGB pictures (H, W, 3) in 0..1, over a bool mask (H, W) where given."""
    error = (reference.astype(np.float64) - other) ** 2
    mean = float((error[mask] if mask is not None else error).mean())
    return BEST if mean == 0 else min(BEST, -10 * float(np.log10(mean)))


def spread(near: Sequence[float] | np.ndarray) -> str:
    """The fidelity of many pictures in a table's cell, as SPREAD says."""
    return f"{np.mean(near):.1f} / {np.percentile(near, DECILE):.1f} / {min(near):.1f}"


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004, 11x11 Gaussian window) of RGB pictures (H, W, 3) in 0..1."""
    a, b = (torch.from_numpy(np.ascontiguousarray(v)).float().permute(2, 0, 1)[None] for v in (reference, other))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))
