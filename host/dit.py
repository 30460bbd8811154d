"""Highlight Diffusion on ComfyUI's diffusion transformers: some image tokens of the frame."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..engine.config import HighlightConfig
from ..engine.merging.key_bias import WeighingTap
from ..engine.merging.matching import Merge
from ..engine.merging.sdtm import MergingRun, SDTMConfig
from ..engine.merging.sites import ATTENTION, MergedTokens, merging, recording_details
from ..engine.partial.tokens import AttentionTap, Pick, RecordingTap, SubsetTap, TokenGrid, TokenSubset, passing, subsets_of
from ..engine.placement.time_axis import log_ratio, log_sigma
from ..engine.region.heatmap import token_maps
from ..engine.region.highlight import Given
from ..engine.trace import Run
from .control import Residuals, mapped
from .families import family_of
from .families.base import Family, chosen
from .run import NOT_RECORDED, ModelRun, check_latent

OVERRIDE = "optimized_attention_override"
LAYERS = 4  # blocks listened to


class DiTRun(ModelRun):
    """One sampling run on a transformer."""

    def __init__(
        self, config: HighlightConfig, run: Run, guider: Any, given: Given, sampler: Any, sigmas: Tensor,
        merging: SDTMConfig | None = None,
    ):  # fmt: skip
        model = guider.model_patcher
        check_latent(run.shape, model)
        self.network, self.family = model.get_model_object("diffusion_model"), family_of(model)
        patch, frames = self.family.patch(self.network), run.shape[2] if len(run.shape) == 5 else 1
        self.grid = TokenGrid(tuple(run.shape[-2:]), patch, frames)
        self.trailing = self.family.trailing(self.network, self.grid.count)
        self.blocks = list(self.family.blocks(self.network))
        self.listened = set(chosen(self.blocks, LAYERS))
        sampling = model.get_model_object("model_sampling")
        flow = isinstance(sampling, comfy.model_sampling.CONST)
        axis = log_ratio if flow else log_sigma
        super().__init__(config, run, guider, given, sampler, sigmas, patch, subsets_of(self.grid, axis), axis)
        if merging is not None:
            ends = sampling.percent_to_sigma(merging.start_percent), sampling.percent_to_sigma(merging.end_percent)
            self.engine.merging = MergingRun(merging, run.sigmas, self.grid, run.shape[0], len(self.blocks), *ends)

    def apply_model(self, executor, x: Tensor, t, c_concat, c_crossattn, control, options: dict, **kwargs) -> Tensor:
        arguments = t, c_concat, c_crossattn, control
        if self.current is None or tuple(x.shape[-2:]) != self.engine.frame or self.in_groups(x, options):
            return executor(x, *arguments, options, **kwargs)
        keys = list(zip(options["uuids"], options["cond_or_uncond"], strict=True))
        if self.computed:
            return self._subsets(executor, keys, x, arguments, options, **kwargs)
        state = self.engine.merging
        if state is not None and state.kinds:
            return self._merged(executor, keys, x, arguments, options, **kwargs)
        with ExitStack() as stack:
            if state is not None and state.recording:
                self._record_details(stack, keys)
            return self._whole(executor, keys, x, arguments, options, **kwargs)

    def _whole(self, executor, keys, x: Tensor, arguments, options: dict, **kwargs) -> Tensor:
        """A dense evaluation, tapped where something records or listens."""
        control = arguments[3]
        accumulator, rows = self.engine.accumulator, self.positive_rows(options)
        hear = self._hear(accumulator, rows, len(keys), len(x)) if accumulator is not None and rows else None
        if not self.recorded and hear is None:
            return executor(x, *arguments, options, **kwargs)
        for subset in self.recorded:
            subset.to(x.device)
        tap = RecordingTap(
            self.recorded, keys, self.grid.count, self.family.text_first, self.trailing, options.get(OVERRIDE), hear
        )
        cropped = self.cropped_control(control, lambda subset: partial(_pick_control, self._pick(subset), len(x)))
        foreign_tokens = control is not None and not self._fits(control)
        with tapped(self.family, self.network, tap):
            output = executor(x, *arguments, {**options, OVERRIDE: tap}, **kwargs)
        self.keep_control(keys, cropped)
        self._judge(tap, foreign_tokens)
        return output

    def _pick(self, subset: TokenSubset) -> Pick:
        return Pick(subset, self.family.text_first, self.trailing)

    def _fits(self, control: Residuals) -> bool:
        """Whether a control net's residuals (B, tokens, C) are those of the image's tokens."""
        tensors = [v for values in control.values() if isinstance(values, list) for v in values if isinstance(v, Tensor)]
        return all(v.ndim == 3 and v.shape[1] == self.grid.count for v in tensors)

    def _judge(self, tap: RecordingTap, foreign_tokens: bool) -> None:
        """Note what keeps this graph from being computed in part."""
        if foreign_tokens:
            self.no_parts = "a control net's tokens are not those of the picture"
        elif tap.passed - tap.seen:
            self.no_parts = "an attention of this model is not to be seen"

    def _hear(self, accumulator, rows, streams: int, batch: int) -> Callable[[int, Tensor, Tensor, int], None]:
        """Adds how much the image's tokens look at the text's, in the blocks that are listened to.

        Where another node attends with a part of the batch, as normalised attention guidance does, it is not heard.
        """

        def hear(block: int, q: Tensor, k: Tensor, heads: int) -> None:
            if block not in self.listened or len(q) != batch or len(k) != batch:
                return
            groups = q.shape[-1] // k.shape[-1]  # of queries that share a key
            if groups > 1:
                k = k.unflatten(-1, (heads // groups, -1)).repeat_interleave(groups, -2).flatten(-2)
            queries, texts = q.chunk(streams), k.chunk(streams)
            for row, prompt, weights in rows:
                maps = token_maps(queries[row], texts[row], heads)
                if self.grid.frames > 1:
                    maps = maps.unflatten(-1, (self.grid.frames, -1)).mean(-2)
                accumulator.add(maps, self.grid.size, prompt, weights)

        return hear

    def _merge_tokens(self, merge: Merge) -> MergedTokens:
        return MergedTokens(merge, self.family.text_first, self.trailing)

    def _record_details(self, stack: ExitStack, keys) -> None:
        """While the stack is open, what a coming merge will lack is recorded for every image."""
        state = self.engine.merging
        for image in state.images:
            if image.merge is not None:
                stack.enter_context(recording_details(
                    self.blocks, self.family.stations, self._merge_tokens(image.merge), image.details, keys,
                    state.kinds_of_stage, state.spared,
                ))  # fmt: skip

    def _merged(self, executor, keys, x: Tensor, arguments, options: dict, **kwargs) -> Tensor:
        """Every image by itself, since each has its own merge: one call for a single one."""
        state, parts = self.engine.merging, []
        t, c_concat, c_crossattn, control = arguments
        for image in state.images:

            def own(value, image=image):
                whole = isinstance(value, Tensor) and len(value) == len(x) and len(state.images) > 1
                return image.details.rows(value).contiguous() if whole else value

            given = options
            with ExitStack() as stack:
                if state.weighs:
                    tap = self._weighing(image.merge, options)
                    stack.enter_context(tapped(self.family, self.network, tap))
                    given = {**options, OVERRIDE: tap}
                if image.merge is not None:
                    details = image.details if state.remembers else None
                    stack.enter_context(merging(
                        self.blocks, self.family.stations, self.family.enter, self._merge_tokens(image.merge), state.kinds,
                        state.spared, details, keys,
                    ))  # fmt: skip
                parts.append(executor(
                    own(x), own(t), own(c_concat), own(c_crossattn), control and mapped(control, own), given,
                    **{name: own(value) for name, value in kwargs.items()},
                ))  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).flatten(0, 1)

    def _weighing(self, merge: Merge | None, options: dict) -> WeighingTap:
        state = self.engine.merging
        return WeighingTap(
            self.grid.count, merge if ATTENTION in state.kinds else None, state.spared, state.prompt_weight,
            state.config.proportional, self.family.text_first, self.trailing, options.get(OVERRIDE),
        )  # fmt: skip

    def _subsets(self, executor, keys, x: Tensor, arguments, options: dict, **kwargs) -> Tensor:
        if not all(subset.holds(keys) for subset in self.computed):
            self.no_parts = NOT_RECORDED
            return executor(x, *arguments, options, **kwargs)
        if not all(subset.joins(keys) for subset in self.computed):
            self.no_parts = "prompts of different lengths are computed together that were not before"
            return executor(x, *arguments, options, **kwargs)
        full = torch.zeros_like(x)
        for subset in self.computed:

            def own(value, subset=subset):
                whole = isinstance(value, Tensor) and len(value) == len(x)
                return subset.rows(value).contiguous() if whole else value  # some models view it

            pick = self._pick(subset)
            residuals = self.control_in(subset, keys, arguments[3], partial(_pick_control, pick, len(x)))
            t, c_concat, c_crossattn, _ = arguments
            tap = SubsetTap(pick, keys, self.current.sigma, options.get(OVERRIDE))
            with tapped(self.family, self.network, tap, pick):
                out = executor(
                    own(x), own(t), own(c_concat), own(c_crossattn), residuals,
                    {**options, OVERRIDE: tap}, **{name: own(value) for name, value in kwargs.items()},
                )  # fmt: skip
            subset.rows(full)[...] = out
        return full


@contextmanager
def tapped(family: Family, network: nn.Module, tap: AttentionTap, pick: Pick | None = None) -> Iterator[None]:
    """While this holds, a call of `network` passes the tap, and only what is picked runs through its blocks."""
    leave, stops = family.leave(network), list(family.stops(network))
    with ExitStack() as stack:
        stack.enter_context(passing(family.blocks(network), leave, family.enter, tap, pick, stops))
        for name in family.functions:
            stack.enter_context(_tapped_function(importlib.import_module(name), tap))
        yield


@contextmanager
def _tapped_function(module: ModuleType, tap: AttentionTap) -> Iterator[None]:
    """Attention by the name a module knows it by passes the tap, for models that do not hand their options down to it."""
    function = module.optimized_attention
    module.optimized_attention = partial(tap, function)
    try:
        yield
    finally:
        module.optimized_attention = function


def _pick_control(pick: Pick, rows: int, control: Residuals) -> Residuals:
    """A control net's residuals (B, tokens, C) for the subset, of a call with so many rows."""
    return mapped(control, lambda value: pick.image(pick.subset.rows(value) if len(value) == rows else value))
