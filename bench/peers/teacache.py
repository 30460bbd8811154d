"""TeaCache: Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025 (arXiv
2411.19108), on SD3's blocks.

Its polynomials are fitted to one model each and none was published for SD3; here, as in AccelAes's comparison, the
change of the modulated input is summed up as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.diffusionmodules.mmdit import modulate
from torch import Tensor

from .common import blocks_of, change, rest_or_run, with_block_patches


def modulated_input(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """What tells how far a step has moved, of the tokens (B, n, C) and the modulation: in an SD3 what the first block's
    attention is given, in a Wan the modulation alone, as its authors have it there."""
    first = blocks_of(model)[0]
    if not hasattr(first, "x_block"):
        return lambda img, vec: vec
    block = first.x_block

    def modulated(img: Tensor, vec: Tensor) -> Tensor:
        shift, scale = block.adaLN_modulation(vec).chunk(9 if block.x_block_self_attn else 6, dim=1)[:2]
        return modulate(block.norm1(img), shift, scale)

    return modulated


def apply(model: Any, threshold: float) -> Any:
    """While the changes of the first block's modulated input add up to less than `threshold`, the residual of all
    blocks of the last computed call is added instead of computing them."""
    modulated = modulated_input(model)

    def call(index: int, last: int, img, txt, run, cache: dict):
        if index == 0:
            reuse_while_small(cache, modulated(img, run.vec), threshold)
        return rest_or_run(index, last, img, txt, run, cache)

    return with_block_patches(model, "teacache", call)


def reuse_while_small(cache: dict, probe: Tensor, threshold: float) -> None:
    """Set `cache["reuse"]`: whether the relative changes of the probe since the last computed call add up to less."""
    cache["sum"] = cache.get("sum", 0.0) + (float(change(probe, cache["probe"])) if "probe" in cache else 0.0)
    cache["probe"] = probe
    cache["reuse"] = "rest" in cache and cache["sum"] < threshold
    if not cache["reuse"]:
        cache["sum"] = 0.0
