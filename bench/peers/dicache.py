"""DiCache (arXiv 2508.17356, ICLR 2026): the first block probes how far features have moved, and says how far what the others
add is to be extrapolated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import change, with_block_patches

RETAINED = 0.2  # share of the steps that are computed at the beginning
LEAST, MOST = 1.0, 1.5  # of the extrapolation


def apply(model: Any, threshold: float) -> Any:
    """Everything but the first block is skipped while the changes of its output add up to less than `threshold` (FLUX: .4); the
    first fifth of the steps and the last one are computed."""

    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict):
        if index == 0:
            cache["entered"] = img
            txt, img = run(txt, img)
            cache["sum"] = cache.get("sum", 0.0) + (float(change(img, cache["probe"])) if "probe" in cache else 0.0)
            cache["probe"] = img.clone()
            free = int(RETAINED * run.count) < run.step < run.count - 1
            cache["skip"] = free and bool(cache.get("full")) and cache["sum"] < threshold
            if not cache["skip"]:
                cache["sum"] = 0.0
            return txt, img
        if cache["skip"]:
            return txt, cache["entered"] + _rest(cache) if index == last else img
        txt, img = run(txt, img)
        if index == last:
            residual, probed = img - cache["entered"], cache["probe"] - cache["entered"]
            cache["full"] = [*cache.get("full", []), (residual, probed)][-2:]
        return txt, img

    return with_block_patches(model, "dicache", call)


def _rest(cache: dict) -> Tensor:
    """What all blocks add, from the two latest computed steps."""
    newer, newer_probe = cache["full"][-1]
    if len(cache["full"]) < 2:
        return newer
    older, older_probe = cache["full"][0]
    probe = cache["probe"] - cache["entered"]
    ahead = (probe - older_probe).abs().mean() / (newer_probe - older_probe).abs().mean()
    return older + ahead.clamp(LEAST, MOST) * (newer - older)
