"""Highlight Diffusion on ComfyUI's diffusion transformers: some image tokens of the frame, or merged ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType

import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..engine.job import Job
from ..engine.merging.job import ImageMerge, MergeJob
from ..engine.merging.key_bias import WeighingTap
from ..engine.merging.matching import Merge
from ..engine.merging.sites import ATTENTION, MergedTokens, merging, recording_details
from ..engine.merging.stages import MergingRun
from ..engine.partial.tokens import AttentionTap, Pick, RecordingTap, SubsetTap, TokenGrid, TokenSubset, passing, subsets_of
from ..engine.region.heatmap import HeatmapAccumulator, token_maps
from ..engine.time_axis import DIFFUSION, FLOW
from .call import ATTENTION_OVERRIDE, ModelCall
from .control import Residuals, mapped
from .families import family_of
from .families.base import Family, chosen
from .run import ModelRun, Sampling, check_latent

LAYERS = 4  # blocks listened to


class DiTRun(ModelRun):
    """One sampling run on a transformer."""

    def __init__(self, sampling: Sampling):
        model, record = sampling.model, sampling.record
        check_latent(record.shape, model)
        self.network, self.family = model.get_model_object("diffusion_model"), family_of(model)
        patch, frames = self.family.patch(self.network), record.shape[2] if len(record.shape) == 5 else 1
        self.grid = TokenGrid(tuple(record.shape[-2:]), patch, frames)
        self.trailing = self.family.trailing(self.network, self.grid.count)
        self.blocks = list(self.family.blocks(self.network))
        self.listened = set(chosen(self.blocks, LAYERS))
        axis = FLOW if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST) else DIFFUSION
        methods = []
        if (config := sampling.methods.get("merging")) is not None:
            methods.append(MergingRun(
                config, record.sigmas, self.grid, record.shape[0], len(self.blocks), sampling.sigma_range(config)
            ))  # fmt: skip
        super().__init__(sampling, patch, subsets_of(self.grid, axis), axis, methods=methods)

    def apply_model(self, job: Job, call: ModelCall) -> Tensor:
        if tuple(call.x.shape[-2:]) != self.frame or self.note_grouped_call(call):
            return call()
        if job.compute:
            return self._subsets(job, call)
        task = job.task(MergeJob)
        if task is not None and not task.record:
            return self._merged(task, call)
        with ExitStack() as stack:
            for image in task.images if task is not None else ():
                if image.merge is not None:
                    tokens = self._merge_tokens(image.merge)
                    stack.enter_context(recording_details(
                        self.blocks, self.family.stations, tokens, image.residuals, call.keys, task.parts, task.spared,
                    ))  # fmt: skip
            return self._dense(job, call)

    def _dense(self, job: Job, call: ModelCall) -> Tensor:
        """A dense call, tapped where something is recorded or captured."""
        rows = self.positive_rows(call.options)
        hear = self._hear(job.capture, rows, len(call.keys), len(call.x)) if job.capture is not None and rows else None
        if not job.record and hear is None:
            return call()
        for subset in job.record:
            subset.to(call.x.device)
        tap = RecordingTap(
            job.record, call.keys, self.grid.count, self.family.text_first, self.trailing,
            call.options.get(ATTENTION_OVERRIDE), hear,
        )  # fmt: skip
        crop = lambda subset: partial(_pick_control, self._pick(subset), len(call.x))  # noqa: E731
        cropped = self.cropped_control(job, call.control, crop)
        foreign_tokens = call.control is not None and not self._fits(call.control)
        with tapped(self.family, self.network, tap):
            output = call.overriding(tap)()
        self.keep_control(job, call.keys, cropped)
        self._judge(tap, call.t, foreign_tokens)
        return output

    def _pick(self, subset: TokenSubset) -> Pick:
        return Pick(subset, self.family.text_first, self.trailing)

    def _fits(self, control: Residuals) -> bool:
        """Whether a control net's residuals (B, tokens, C) are those of the image's tokens."""
        tensors = [v for values in control.values() if isinstance(values, list) for v in values if isinstance(v, Tensor)]
        return all(v.ndim == 3 and v.shape[1] == self.grid.count for v in tensors)

    def _judge(self, tap: RecordingTap, t: Tensor, foreign_tokens: bool) -> None:
        """Note what keeps this graph from being computed in part."""
        if foreign_tokens:
            self.no_parts = "a control net's tokens are not those of the picture"
        elif tap.passed - tap.seen:
            self.no_parts = "an attention of this model is not to be seen"
        elif t.ndim > 1 and t.shape[1] > 1:
            self.no_parts = "every token has a timestep of its own"

    def _hear(
        self, accumulator: HeatmapAccumulator, rows, streams: int, batch: int
    ) -> Callable[[int, Tensor, Tensor, int], None]:
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

    def _merged(self, task: MergeJob, call: ModelCall) -> Tensor:
        """Every image by itself, since each has its own merge: one call for a single one."""
        parts = []
        for image in task.images:
            own = self._call_of(image, task, call)
            with ExitStack() as stack:
                if task.key_bias is not None:
                    tap = self._weighing(task, image.merge, call)
                    stack.enter_context(tapped(self.family, self.network, tap))
                    own = own.overriding(tap)
                if image.merge is not None:
                    residuals = image.residuals if task.uses_residuals else None
                    stack.enter_context(merging(
                        self.blocks, self.family.stations, self.family.enter, self._merge_tokens(image.merge), task.parts,
                        task.spared, residuals, call.keys,
                    ))  # fmt: skip
                parts.append(own())
        return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).flatten(0, 1)

    def _call_of(self, image: ImageMerge, task: MergeJob, call: ModelCall) -> ModelCall:
        """The call for one image of the batch, the whole call where it is the only one."""
        if len(task.images) == 1:
            return replace(call, control=call.control and mapped(call.control, lambda value: value))
        rows = image.residuals.rows
        control = call.control and mapped(call.control, lambda value: call.rows_of(rows, value))
        return replace(call.of_image(rows), control=control)

    def _weighing(self, task: MergeJob, merge: Merge | None, call: ModelCall) -> WeighingTap:
        return WeighingTap(
            self.grid.count, merge if ATTENTION in task.parts else None, task.spared, task.key_bias.prompt,
            task.key_bias.proportional, self.family.text_first, self.trailing, call.options.get(ATTENTION_OVERRIDE),
        )  # fmt: skip

    def _subsets(self, job: Job, call: ModelCall) -> Tensor:
        """The subsets by themselves, in a tensor of the whole call's size."""
        if not all(subset.joins(call.keys) for subset in job.compute):
            self.no_parts = "prompts of different lengths are computed together that were not before"
            return call()
        full = torch.zeros_like(call.x)
        for subset in job.compute:
            pick = self._pick(subset)
            control = self.control_in(job, subset, call, partial(_pick_control, pick, len(call.x)))
            tap = SubsetTap(pick, call.keys, job.evaluation.sigma, call.options.get(ATTENTION_OVERRIDE))
            with tapped(self.family, self.network, tap, pick):
                subset.rows.of(full)[...] = replace(call.of_image(subset.rows), control=control).overriding(tap)()
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
    return mapped(control, lambda value: pick.image(pick.subset.rows.of(value) if len(value) == rows else value))
