"""Reference pictures, which models for editing are given beside the one that is sampled, as more tokens of its sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.partial.order import Around, Order
from ..engine.partial.token_gather import ALL_FIRST
from .call import REFERENCE_LATENTS, ModelCall

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


@dataclass(frozen=True)
class Sequences:
    """What stands in the sequences of tokens of one call, with its references and without.

    orders: of the keys of its attentions, references included. around: where other tokens stand around the picture's in the
    sequences that its blocks are given. without: the same of a call without references. leaves_out: whether calls that compute
    a part, or merged tokens, leave the references of this one out.
    """

    orders: Sequence[Order]
    around: Around
    without: Around
    leaves_out: bool

    @classmethod
    def of(cls, orders: Sequence[Order], may_leave_out: bool, call: ModelCall) -> Sequences:
        """Those of a call of a family with these orders."""
        without = orders[-1].without("reference").around if orders else ALL_FIRST
        around = orders[-1].around if orders and not are_cached(call.options) else without
        return cls(orders, around, without, may_leave_out and any(order.spans("reference") for order in orders))

    def left_of(self, call: ModelCall) -> tuple[ModelCall, Around]:
        """The call as a part of it is computed, and where other tokens stand in it."""
        return (call.without_references(), self.without) if self.leaves_out else (call, self.around)
