"""SeaCache (arXiv 2602.18993, CVPR 2026): TeaCache whose probe is filtered to the frequencies that the noise level leaves of a
picture.

The filter goes by the distance from frequency zero; in the code that the authors' scripts import it is the product of one for
each axis.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .common import rest_or_run, with_block_patches
from .teacache import modulated_input, reuse_while_small

POWER = 2.0  # of the spectrum of pictures


@lru_cache(maxsize=64)
def gain(height: int, width: int, sigma: float) -> Tensor:
    """The filter (height, width // 2 + 1) over spatial frequencies at a flow's time: Wiener's for a picture whose power falls
    with the frequency, divided by its mean over all of them, those that a real transform leaves out too."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    power = radius.clamp(min=1 / max(height, width)) ** -POWER
    found = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
    return (found / found.mean())[:, : width // 2 + 1]


def filtered(tokens: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Tokens (B, n, C) of a grid, filtered over it."""
    grid = tokens.transpose(1, 2).unflatten(2, size)
    spectrum = torch.fft.rfft2(grid.float()) * gain(*size, sigma).to(grid.device)
    return torch.fft.irfft2(spectrum, s=size).flatten(2).transpose(1, 2)


def apply(model: Any, threshold: float) -> Any:
    """The residual of all blocks is reused while the changes of the filtered probe add up to less than `threshold`; the first
    and the last step are computed. The frame is taken to be a square."""
    modulated = modulated_input(model)

    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict):
        if index == 0:
            side, sigma = round(img.shape[1] ** 0.5), float(run.args["transformer_options"]["sigmas"][0])
            reuse_while_small(cache, filtered(modulated(img, run.vec), (side, side), min(sigma, 1 - 1e-3)), threshold)
            if run.step == run.count - 1:
                cache["reuse"] = False
        return rest_or_run(index, last, img, txt, run, cache)

    return with_block_patches(model, "seacache", call)
