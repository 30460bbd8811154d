"""Reference pictures, which models for editing are given beside the one that is sampled, as more tokens of its sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .call import REFERENCE_LATENTS

# The inputs that models are given them by.
REFERENCES = (
    "ref_latents", "ref_latent", "reference_latent", "guiding_frame_index", "context_latents", "ref_contexts", "image_cond",
    "time_dim_concat",
)  # fmt: skip
CACHE_MODULE = "comfy_extras.nodes_flux"  # of ComfyUI's FluxKVCache, whose patches have no class or name to be imported by


def reference_latents(cond: dict[str, Any]) -> list[Tensor]:
    """The references of a cond as the model is given them, on the scale of what it samples."""
    given = cond.get("model_conds", {}).get(REFERENCE_LATENTS)
    return list(getattr(given, "cond", None) or ())


def is_reference_cache(patch: Any) -> bool:
    """Whether a patch is of ComfyUI's FluxKVCache, which computes references in a run's first evaluation alone: from then on
    their tokens are in no sequence, and attention is given the keys and values they had."""
    return getattr(patch, "__module__", "") == CACHE_MODULE


def are_cached(options: dict) -> bool:
    """Whether such a node leaves the references out of a call with these transformer_options."""
    patches = options.get("patches", {}).get("attn1_patch", ())
    return any(is_reference_cache(patch) and getattr(patch, "cache", None) for patch in patches)
