"""Faster Diffusion: Li et al., "Faster Diffusion: Rethinking the Role of the Encoder for Diffusion Model Inference",
NeurIPS 2024 (arXiv 2312.09608)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import Inputs, with_unet_wrapper

PUBLISHED = (0, 1, 2, 3, 5, 10, 15, 25, 35)  # key steps of 50
PUBLISHED_STEPS = 50


def key_steps(steps: int, density: float) -> frozenset[int]:
    """The paper's key steps stretched to `steps`, thinned or thickened by `density`; 1 is the paper's."""
    found = {min(steps - 1, round(i * steps / PUBLISHED_STEPS)) for i in PUBLISHED}
    wanted = max(2, round(len(found) * density))
    ordered = sorted(found)
    while len(ordered) > wanted:
        ordered.pop(-2)
    while len(ordered) < min(wanted, steps):
        gaps = [b - a for a, b in zip(ordered, [*ordered[1:], steps], strict=True)]
        widest = gaps.index(max(gaps))
        ordered.insert(widest + 1, ordered[widest] + gaps[widest] // 2)
    return frozenset(ordered)


def apply(model: Any, steps: int, density: float = 1.0) -> Any:
    """Run the encoder (input and middle blocks) at key steps only; other steps decode the last encoder's features with
    their own time embedding. The paper then runs those decoders as one batch, which saves latency on a GPU and no
    multiplication; here they run one by one."""
    keys = key_steps(steps, density)

    def call(original, inputs: Inputs, step: int, cache: dict) -> Tensor:
        emb = inputs.embedding()
        if step in keys or "skips" not in cache:
            skips = inputs.encode(emb)
            cache["skips"], cache["middle"] = skips, inputs.block("middle", 0, skips[-1], emb)
        return inputs.decode(cache["middle"], cache["skips"], emb)

    return with_unet_wrapper(model, "faster_diffusion", call)
