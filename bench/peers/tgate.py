"""T-GATE: Zhang et al., "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models", 2024
(arXiv 2404.02747)."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .common import Steps


def apply(model: Any, gate: int) -> Any:
    """From step `gate` on, cross-attention is the mean of its conditional and unconditional outputs at the step before,
    and only one branch is computed, without guidance."""
    steps = Steps()

    def calc_cond_batch(executor, model_, conds, x_in, timestep, model_options):
        if steps.advance(float(timestep[0])) < gate or len(conds) < 2:
            return executor(model_, conds, x_in, timestep, model_options)
        (out,) = executor(model_, conds[:1], x_in, timestep, model_options)
        return [out] * len(conds)

    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        site = (*extra["block"], extra["block_index"])
        if steps.index >= gate and site in steps.cache:
            return steps.cache[site].to(q.dtype)
        out = optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra)
        if steps.index == gate - 1:
            branches = out.chunk(len(extra["cond_or_uncond"]))
            steps.cache[site] = sum(branches) / len(branches)
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "tgate", calc_cond_batch)
    unet = clone.get_model_object("diffusion_model")
    for name, count in (("input", len(unet.input_blocks)), ("middle", 1), ("output", len(unet.output_blocks))):
        for number in range(count):
            clone.set_model_attn2_replace(attend, name, number)
    return clone
