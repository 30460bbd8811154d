"""DeepCache: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024 (arXiv 2312.00858)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import Inputs, with_unet_wrapper


def apply(model: Any, interval: int, branch: int = 0) -> Any:
    """Run the whole UNet every `interval` steps (uniform 1:N); between, only the outermost `branch` + 1 blocks on
    either side, on the deep feature cached at the last full step."""

    def call(original, inputs: Inputs, step: int, cache: dict) -> Tensor:
        emb = inputs.embedding()
        first = len(inputs.unet.output_blocks) - 1 - branch
        if step % interval and "deep" in cache:
            return inputs.decode(cache["deep"], inputs.encode(emb, branch + 1), emb, first)
        skips, entering = inputs.encode(emb), {}
        out = inputs.decode(inputs.block("middle", 0, skips[-1], emb), skips, emb, keep=entering)
        cache["deep"] = entering[first]
        return out

    return with_unet_wrapper(model, "deepcache", call)
