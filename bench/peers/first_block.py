"""First-Block Cache: Cheng, "ParaAttention" (2024), the method of the Comfy-WaveSpeed pack, on SD3's blocks."""

from __future__ import annotations

from typing import Any

from .common import change, rest_or_run, with_block_patches


def apply(model: Any, threshold: float) -> Any:
    """Where the first block's residual has changed by less than `threshold` (mean absolute, relative) since the last
    computed call, the other blocks' residual of that call is added instead of computing them."""

    def call(index: int, last: int, img, txt, run, cache: dict):
        if index == 0:
            out_txt, out_img = run(txt, img)
            residual = out_img - img
            cache["reuse"] = "rest" in cache and float(change(residual, cache["first"])) < threshold
            cache["entered"] = out_img.clone()
            if not cache["reuse"]:
                cache["first"] = residual
            return out_txt, out_img
        return rest_or_run(index, last, img, txt, run, cache)

    return with_block_patches(model, "first_block", call)
