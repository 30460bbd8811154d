"""AccelAes: Yin et al., "AccelAes: Accelerating Diffusion Transformers for Training-Free Aesthetic-Enhanced Image
Generation", ECCV 2026 (arXiv 2603.12575). On SD3 its speed comes from skipping whole evaluations."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP

from .common import Steps

WARMUP = 5


def apply(model: Any, every: int) -> Any:
    """After a warm-up of 5 steps only each `every`th is computed (published: 2); the others' guided velocity is
    extrapolated linearly over steps from the last two computed ones. Its guidance map, which changes pictures on
    purpose and saves nothing here, is left out."""
    steps = Steps()

    def wrapper(executor, x, timestep, model_options, seed):
        index = steps.advance(sigma := float(timestep.flatten()[0]))
        history = steps.cache.setdefault("history", [])
        if index > WARMUP and (index - WARMUP) % every and len(history) > 1:
            (i, older), (j, newer) = history
            return x - sigma * (newer + (newer - older) * ((index - j) / (j - i)))
        denoised = executor(x, timestep, model_options, seed)
        history.append((index, (x - denoised) / sigma))
        del history[:-2]
        return denoised

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "accelaes", wrapper)
    return clone
