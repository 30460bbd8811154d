"""MagCache (arXiv 2506.09045): how the norm of what all blocks add falls from step to step, measured once, says how long it
may be reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .common import rest_or_run, with_block_patches

RETAINED = 0.2  # share of the steps that are computed at the beginning


def recorded(model: Any, ratios: list[float]) -> Any:
    """A clone whose next run appends the ratio of norms of each step to the one before it, one for the first."""

    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict):
        cache["entered"] = img.clone() if index == 0 else cache["entered"]
        txt, img = run(txt, img)
        if index == last:
            norm = (img - cache["entered"]).norm(dim=-1)
            ratios.append(float((norm / cache["norm"]).mean()) if "norm" in cache else 1.0)
            cache["norm"] = norm
        return txt, img

    return with_block_patches(model, "magcache_table", call)


def apply(model: Any, ratios: Sequence[float], threshold: float, in_a_row: int) -> Any:
    """What all blocks added in the last computed step is reused while the deviations of the ratios' product from one add up to
    less than `threshold`, at most `in_a_row` times. ratios: by step, as `recorded` has them."""

    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict):
        if index == 0:
            product, error, count = cache.get("sums", (1.0, 0.0, 0))
            product *= ratios[min(run.step, len(ratios) - 1)]
            error, count = error + abs(1 - product), count + 1
            free = run.step >= int(RETAINED * len(ratios)) and "rest" in cache
            cache["reuse"] = free and error < threshold and count <= in_a_row
            cache["sums"] = (product, error, count) if cache["reuse"] else (1.0, 0.0, 0)
        return rest_or_run(index, last, img, txt, run, cache)

    return with_block_patches(model, "magcache", call)
