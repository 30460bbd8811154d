"""Highlight Diffusion on ComfyUI's diffusion transformers: some image tokens of the frame, or merged ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from einops import reduce
from torch import Tensor

from ..engine.job import Job
from ..engine.merging.execute import compute_merged, recording_for
from ..engine.merging.job import MergeJob
from ..engine.partial.attention_override import AttentionOverride, Capture, Function, RecordingOverride, ReferenceKeeper
from ..engine.partial.cache import ImageRows, Keys
from ..engine.partial.order import Around
from ..engine.partial.token_gather import TokenGather
from ..engine.partial.token_subset import TokenGrid, subsets_of
from ..engine.partial.transformer import Transformer, compute_subsets, record_subsets
from ..engine.region.heatmap import HeatmapAccumulator, token_maps
from .attention import takes_no_masks, with_masks
from .call import ATTENTION_OVERRIDE, ModelCall
from .context_windows import FRAMES, frames_of, over_frames
from .control import Crop, Residuals, mapped
from .families import family_of
from .families.base import Call, Family, chosen
from .methods import methods_of
from .references import Sequences
from .run import NOT_RECORDED, ModelRun, Sampling, check_latent, time_axis_of

CAPTURED_BLOCKS = 4
MOVED = "context windows are at other frames than where their surroundings were recorded"
OTHER_FRAMES = "a context window has other frames than it says"
NOT_REMEMBERED = "context windows that moved are merged without what is remembered"


@dataclass(frozen=True)
class DiTCall:
    """A `TransformerCall` of one of ComfyUI's models. control_of: the control nets' residuals for a subset."""

    call: ModelCall
    family: Family
    control_of: Callable[[TokenGather], Residuals | None] = lambda gather: None

    @property
    def x(self) -> Tensor:
        return self.call.x

    @property
    def keys(self) -> Keys:
        return self.call.keys

    @property
    def previous(self) -> Function | None:
        return self.call.options.get(ATTENTION_OVERRIDE) or (with_masks if takes_no_masks() else None)

    def of_image(self, rows: ImageRows) -> DiTCall:
        if rows.images == 1:
            return self
        control = self.call.control and mapped(self.call.control, lambda value: self.call.rows_of(rows, value))
        return replace(self, call=replace(self.call.of_image(rows), control=control))

    def of_subset(self, gather: TokenGather) -> DiTCall:
        own = self.call.of_image(gather.subset.rows)
        return replace(self, call=replace(own, control=self.control_of(gather)))

    def __call__(self, override: AttentionOverride | None = None) -> Tensor:
        if override is None:
            return self.call()
        with ExitStack() as stack:
            for name in self.family.attention_modules:
                stack.enter_context(_overridden(importlib.import_module(name), override))
            return self.call.overriding(override)()


@contextmanager
def _overridden(module: Any, override: AttentionOverride) -> Iterator[None]:
    """Attention by the name a module knows it by is overridden, for models that do not hand their options down to it."""
    function = module.optimized_attention
    module.optimized_attention = partial(override, function)
    try:
        yield
    finally:
        module.optimized_attention = function


def transformer_of(family: Family, network) -> Transformer:
    """What an executor has to know of a network of a family."""
    return Transformer(
        tuple(family.blocks(network)), family.gather_inputs, family.final_layer(network),
        tuple(family.full_sequence_after(network)),
    )  # fmt: skip


class DiTRun(ModelRun):
    """One sampling run on a transformer."""

    exact = True

    def __init__(self, sampling: Sampling):
        model, record = sampling.model, sampling.record
        check_latent(record.shape, model)
        self.network, family = model.get_model_object("diffusion_model"), family_of(model)
        if family is None:
            raise ValueError(f"{type(self.network).__name__} is of no family of transformers that is known")
        self.family, self.beside_references = family, family.references != "refused"
        patch, frames = self.family.patch(self.network), record.shape[2] if len(record.shape) == 5 else 1
        self.grid = TokenGrid(record.frame, patch, frames)
        self.transformer = transformer_of(self.family, self.network)
        axis = time_axis_of(model)
        depth = len(self.transformer.blocks)
        methods = methods_of(sampling, self.grid, depth)
        super().__init__(sampling, patch, subsets_of(self.grid, axis), axis, methods=methods)
        several = "several latents are sampled as one" if self.shape != record.shape else None
        self.no_regions = self.family.no_regions or several

    def windows_because(self, model_options: dict) -> str | None:
        """A window of a video's frames is a call of fewer frames, which other kinds of windows are not."""
        simple = over_frames(model_options) and len(self.shape) == 5 and self.shape == self.record.shape
        return None if simple else super().windows_because(model_options)

    def apply_model(self, job: Job, call: ModelCall) -> Tensor:
        if tuple(self.first_of(call.x).shape[-2:]) != self.frame or self.note_grouped_call(call):
            return call()
        frames = frames_of(call.options)
        if call.x.ndim == 5 and call.x.shape[FRAMES] != (self.grid.frames if frames is None else len(frames)):
            return self._whole(job, call, OTHER_FRAMES)
        if frames is None:
            return self._done(job, call, self.grid)
        job = _within(job, frames)
        task = job.task(MergeJob)
        if task is not None and not task.record and task.uses_residuals and not task.remembers:
            _add(job, NOT_REMEMBERED)
        return self._done(job, call, replace(self.grid, frames=len(frames)))

    def _done(self, job: Job, call: ModelCall, grid: TokenGrid) -> Tensor:
        """Do a job in a call that has the tokens of this grid."""
        sequences = self._sequences(call, grid)
        if job.compute:
            return self._subsets(job, *sequences.left_of(call))
        task = job.task(MergeJob)
        if task is None:
            return self._dense(job, call, sequences, grid)
        if not task.record:
            return self._merged(task, call, sequences, grid)
        with recording_for(self.transformer, self.family.sites, DiTCall(call, self.family), task, sequences.around):
            return self._dense(job, call, sequences, grid, [image.residuals for image in task.images])

    def _sequences(self, call: ModelCall, grid: TokenGrid) -> Sequences:
        """What stands in the sequences of tokens of a call."""
        text = 0 if call.c_crossattn is None else call.c_crossattn.shape[1]
        orders = self.family.orders(self.network, Call(grid, text, call.extra))
        return Sequences.of(orders, self.family.references == "left out", call)

    def _merged(self, task: MergeJob, call: ModelCall, sequences: Sequences, grid: TokenGrid) -> Tensor:
        """A call on merged tokens, without references where these were recorded."""
        left_out = sequences.leaves_out and task.keeps_references(call.keys)
        own, around = sequences.left_of(call) if left_out else (call, sequences.around)
        of_family = DiTCall(own, self.family)
        return compute_merged(self.transformer, self.family.sites, of_family, task, around, grid.count, left_out)

    def _dense(
        self, job: Job, call: ModelCall, sequences: Sequences, grid: TokenGrid, keepers: Sequence[ReferenceKeeper] = ()
    ) -> Tensor:
        """A dense call, whose attention is overridden where something is recorded or captured. keepers: what takes the keys and
        values of references besides the regions' caches, where some calls leave these out."""
        around, orders, apart = sequences.around, sequences.orders, keepers if sequences.leaves_out else None
        capture = self._capture(job.capture, call, grid)
        if not (job.record or apart or capture or self.engine.state.methods):
            return call()
        cropped = self.cropped_control(job, call.control, lambda subset: self._crop(self._gather(subset, around), call))
        foreign_tokens = call.control is not None and not _fits(call.control, grid)
        own = DiTCall(call, self.family)
        output, seen = record_subsets(self.transformer, own, job.record, grid.count, orders, capture, apart)
        self.keep_control(job, call, cropped)
        self._judge(seen, foreign_tokens)
        if capture is not None and not seen.captured:
            _add(job, f"not listened to: {seen.odd or 'an attention of this model is not to be seen'}")
        return output

    def _subsets(self, job: Job, call: ModelCall, around: Around) -> Tensor:
        """The subsets by themselves, in a tensor of the whole call's size."""
        if not all(subset.holds(call.keys) for subset in job.compute):
            return self._whole(job, call, NOT_RECORDED if frames_of(call.options) is None else MOVED)
        if not all(subset.joins(call.keys) for subset in job.compute):
            return self._whole(job, call, "prompts of different lengths are computed together that were not before")

        def control_of(gather: TokenGather) -> Residuals | None:
            return self.control_in(job, gather.subset, call, self._crop(gather, call))

        own = DiTCall(call, self.family, control_of)
        return compute_subsets(self.transformer, own, job.compute, job.evaluation.sigma, around)

    def _whole(self, job: Job, call: ModelCall, why: str) -> Tensor:
        """A call that is computed as it is, as are those to come, and says why."""
        self.no_parts = why
        _add(job, f"computed whole: {why}")
        return call()

    @staticmethod
    def _gather(subset: Any, around: Around) -> TokenGather:
        return TokenGather(subset, around)

    @staticmethod
    def _crop(gather: TokenGather, call: ModelCall) -> Crop:
        """Gathers a control net's residuals (B, tokens, C) of this call for a subset."""
        rows, count = gather.subset.rows, len(call.x)
        return partial(mapped, change=lambda value: gather.image(rows.of(value) if len(value) == count else value))

    def _judge(self, seen: RecordingOverride, foreign_tokens: bool) -> None:
        """Note what keeps this graph from being computed in part."""
        if foreign_tokens:
            self.no_parts = "a control net's tokens are not those of the picture"
        elif seen.odd is not None:
            self.no_parts = seen.odd
        elif seen.passed - seen.seen:
            self.no_parts = "an attention of this model is not to be seen"

    def _capture(self, accumulator: HeatmapAccumulator | None, call: ModelCall, grid: TokenGrid) -> Capture | None:
        """What adds how much the image's tokens look at the text's to an accumulator, in a few blocks; None where nothing is
        wanted. Where another node attends with a part of the batch, as normalised attention guidance does, nothing is added."""
        rows = self.positive_rows(call)
        if accumulator is None or not rows:
            return None
        captured, streams = set(chosen(self.transformer.blocks, CAPTURED_BLOCKS)), len(call.keys)

        def capture(block: int, q: Tensor, k: Tensor, heads: int) -> None:
            if block not in captured or not len(q) == len(k) == len(call.x):
                return
            groups = q.shape[-1] // k.shape[-1]  # of queries that share a key
            if groups > 1:
                k = k.unflatten(-1, (heads // groups, -1)).repeat_interleave(groups, -2).flatten(-2)
            queries, texts = q.chunk(streams), k.chunk(streams)
            for row, prompt, weights in rows:
                maps = token_maps(queries[row], texts[row], heads)
                frames = grid.frames if frames_of(call.options) is None else 1  # windows overlap: theirs are one mean
                maps = reduce(maps, "b m (f g n) -> (b f) m n", "mean", f=frames, g=grid.frames // frames)
                accumulator.add(maps, grid.size, prompt, weights)

        return capture


def _within(job: Job, frames: tuple[int, ...]) -> Job:
    """The job in a call that has these frames of the video."""
    tasks = tuple(task.within(frames) if isinstance(task, MergeJob) else task for task in job.tasks)
    record, compute = (tuple(subset.over(len(frames)) for subset in subsets) for subsets in (job.record, job.compute))
    return replace(job, record=record, compute=compute, tasks=tasks)


def _add(job: Job, what: str) -> None:
    """Add something to the reason of a job's evaluation, of which there may be several calls."""
    if what not in job.evaluation.reason:
        job.evaluation.reason += f"; {what}"


def _fits(control: Residuals, grid: TokenGrid) -> bool:
    """Whether a control net's residuals (B, tokens, C) are those of the image's tokens."""
    tensors = [v for values in control.values() if isinstance(values, list) for v in values if isinstance(v, Tensor)]
    return all(v.ndim == 3 and v.shape[1] == grid.count for v in tensors)
