"""How a transformer does a `MergeJob` in one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from ..partial.attention_override import AttentionOverride
from ..partial.order import Around
from ..partial.transformer import Transformer, TransformerCall, patched_blocks
from .job import ImageMerge, MergeJob
from .key_bias import KeyBiasOverride
from .sites import ATTENTION, MergedTokens, MergeSites, merging, recording_residuals


@contextmanager
def recording_for(
    network: Transformer, sites: MergeSites, call: TransformerCall, task: MergeJob, around: Around
) -> Iterator[None]:
    """While this holds, exact calls record for every image what its merge will lack."""
    with ExitStack() as stack:
        for image in task.images:
            if image.merge is not None:
                tokens = MergedTokens(image.merge, around)
                stack.enter_context(
                    recording_residuals(network.blocks, sites, tokens, image.residuals, call.keys, task.parts, task.spared)
                )
        yield


def compute_merged(
    network: Transformer, sites: MergeSites, call: TransformerCall, task: MergeJob, around: Around, image_tokens: int,
    without_references: bool = False,
) -> Tensor:  # fmt: skip
    """The denoised rows of a call with merged tokens: every image by itself, since each has its own merge, but one call for a
    single one. without_references: whether the call leaves references out, so that attention is given what was recorded of
    them."""
    parts = [
        _compute_image(network, sites, call, task, image, around, image_tokens, without_references) for image in task.images
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).flatten(0, 1)


def _compute_image(
    network: Transformer, sites: MergeSites, call: TransformerCall, task: MergeJob, image: ImageMerge, around: Around,
    image_tokens: int, without_references: bool,
) -> Tensor:  # fmt: skip
    override, further = None, partial(image.residuals.references, keys=call.keys) if without_references else None
    with ExitStack() as stack:
        if task.key_bias is not None:
            seen = image.merge if ATTENTION in task.parts else None
            override = KeyBiasOverride(image_tokens, seen, task.key_bias, task.spared, around, call.previous, further)
        elif further is not None:
            override = AttentionOverride(image_tokens, around, call.previous, further)
        if override is not None:
            stack.enter_context(patched_blocks(network, override))
        if image.merge is not None:
            residuals = image.residuals if task.uses_residuals else None
            stack.enter_context(merging(
                network.blocks, sites, network.gather_inputs, MergedTokens(image.merge, around), task.parts, task.spared,
                residuals, call.keys,
            ))  # fmt: skip
        return call.of_image(image.residuals.rows)(override)
