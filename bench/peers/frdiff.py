"""FRDiff: So, Lee and Park, "FRDiff: Feature Reuse for Universal Training-free Acceleration of Diffusion Models",
ECCV 2024 (arXiv 2312.03517)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ...engine.partial.patching import patched_forward
from .common import Inputs, with_unet_wrapper

SHARPNESS = 10.0  # of the change from reused scores to reused features
NEGLIGIBLE = 0.02  # a share of the reused features below this is not worth computing them


def apply(model: Any, interval: int, steps: int, bias: float = 0.5) -> Any:
    """Between key steps, `interval` apart, the residual branches of all residual and transformer blocks are those of
    the last key step; skips, resampling and the outer convolutions are computed. Score mixing adds the key step's
    whole score, which keeps low frequencies early, and fades it out around the share `bias` of the run."""

    def call(original, inputs: Inputs, step: int, cache: dict) -> Tensor:
        residuals: dict[nn.Module, Tensor] = cache.setdefault("residuals", {})
        blocks = [m for m in inputs.unet.modules() if isinstance(m, (ResBlock, SpatialTransformer))]
        if step % interval == 0 or not residuals:
            with patched_forward({block: _recording(block, residuals) for block in blocks}):
                cache["score"] = original()
            return cache["score"]
        share = 1 / (1 + math.exp(-SHARPNESS * (step / steps - bias)))
        if share < NEGLIGIBLE:
            return cache["score"]
        with patched_forward({block: _reusing(block, residuals[block]) for block in blocks}):
            reused = original()
        return reused.lerp(cache["score"], 1 - share)

    return with_unet_wrapper(model, "frdiff", call)


def _skip(block: nn.Module, x: Tensor) -> Tensor:
    return block.skip_connection(x) if isinstance(block, ResBlock) else x


def _recording(block: nn.Module, residuals: dict[nn.Module, Tensor]) -> Callable[..., Tensor]:
    forward = block.forward

    def recorded(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = forward(x, *args, **kwargs)
        residuals[block] = out - _skip(block, x)
        return out

    return recorded


def _reusing(block: nn.Module, residual: Tensor) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: _skip(block, x) + residual
