"""The kinds of evaluation: what each does, when it cannot, and what is done instead.

A new kind is a class here, a row in `ACTIONS`, a name in `trace.Kind`, and a colour in `report/overlay.py` and js/colours.js.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .finite import number_or_none
from .job import Compute, Job, Request, Task
from .method import DenseContext, Merging
from .partial.cache import ActivationCache
from .placement.plan import step_of
from .region.heatmap import HeatmapAccumulator
from .region.tracking import Reading
from .state import RunState
from .trace import Evaluation, Kind
from .tuning import CAPTURES

SIGMA_TOLERANCE = 1e-4  # relative
NOT_WORTH_IT = "not computed: under this sampler and schedule dense evaluations are worth more"
NEVER_WANTED = "not computed: never wanted"


class Fallback(NamedTuple):
    """What is done instead of an action that cannot be done, and why."""

    action: Action
    reason: str


class Action(Protocol):
    """One kind of evaluation."""

    kind: Kind

    def blocked(self, state: RunState, request: Request) -> Fallback | None:
        """Returns what to do instead where this cannot be done now, else None."""

    def __call__(self, state: RunState, request: Request, evaluation: Evaluation, compute: Compute) -> list[Tensor]:
        """Evaluate; returns the denoised images to answer, one for each branch."""


def _stale(state: RunState, request: Request) -> Fallback | None:
    """What makes everything that is known useless."""
    if not state.forecasts:
        return Fallback(DENSE, "no forecast yet")
    if request.sigma > state.forecasts.last_sigma * (1 + SIGMA_TOLERANCE):
        return Fallback(DENSE, "sigma went up")
    if state.region.covers_frame:
        return Fallback(DENSE, state.region.regions[0].reason)
    return None


class Forecasting:
    """Computes nothing: every branch is forecast."""

    kind: Kind = "skipped"

    def blocked(self, state: RunState, request: Request) -> Fallback | None:
        if not state.forecasts.ready:
            return Fallback(DENSE, "no forecast yet")
        return _stale(state, request)

    def __call__(self, state: RunState, request: Request, evaluation: Evaluation, compute: Compute) -> list[Tensor]:
        outputs = state.forecasts.predict(evaluation.index, request.x, request.sigma)
        state.finite.see(evaluation, request.x, *outputs)
        return outputs


class Regional:
    """Computes the highlight, forecasts the rest, and measures how wrong the forecast was inside."""

    kind: Kind = "partial"

    def blocked(self, state: RunState, request: Request) -> Fallback | None:
        why = state.exhausted or request.no_parts_because or request.no_regions_because or state.region.blocked_because()
        if (stale := FORECASTING.blocked(state, request)) or not why:
            return stale
        if state.plan.is_dense_without_region(step_of(request.sigma, state.record.sigmas)):
            return Fallback(DENSE, f"the highlight cannot be computed: {why}")
        return Fallback(FORECASTING, f"forecast only: {why}")

    def __call__(self, state: RunState, request: Request, evaluation: Evaluation, compute: Compute) -> list[Tensor]:
        regions = state.region.regions
        evaluation.active = sum(region.area for region in regions) / len(regions)
        evaluation.boxes = tuple(region.inner for region in regions)
        evaluation.windows = tuple(region.outer for region in regions)
        forecasts = state.forecasts.predict(evaluation.index, request.x, request.sigma)
        computed = compute(Job(evaluation, compute=tuple(state.region.caches)))
        state.finite.see(evaluation, request.x, *forecasts, *computed)
        pasted, error = state.forecasts.paste(request.x, forecasts, computed, evaluation.boxes, request.absent)
        received = state.finite.told([error])
        if received is None:
            state.begin_anew()
            return pasted
        evaluation.forecast_error = number_or_none(float(received))
        if state.plan.adaptive:
            state.plan.adaptive.probe(request.sigma, float(received))
        return state.forecasts.add_regional(evaluation.index, request.x, pasted, request.sigma, evaluation.boxes)


class Shallow:
    """Computes the whole frame through the outermost blocks; what enters them from within is extrapolated."""

    kind: Kind = "shallow"

    def blocked(self, state: RunState, request: Request) -> Fallback | None:
        if stale := _stale(state, request):
            return stale
        if why := state.exhausted or request.no_parts_because:
            return Fallback(FORECASTING, f"forecast only: {why}")
        recorded = state.shallow is not None and state.shallow.entries
        return None if recorded else Fallback(DENSE, "nothing was recorded for shallow evaluations yet")

    def __call__(self, state: RunState, request: Request, evaluation: Evaluation, compute: Compute) -> list[Tensor]:
        outputs = compute(Job(evaluation, compute=(state.shallow,)))
        finite = state.finite.see(evaluation, request.x, *outputs)
        return state.forecasts.add_dense(evaluation.index, request.x, outputs, request.sigma, finite)


class Dense:
    """Computes everything, records what later evaluations will lack, and captures attention."""

    kind: Kind = "dense"

    def blocked(self, state: RunState, request: Request) -> Fallback | None:
        return None

    def __call__(self, state: RunState, request: Request, evaluation: Evaluation, compute: Compute) -> list[Tensor]:
        state.region.take_up_coming()
        record = self._recorded(state, request, evaluation)
        tasks, capture = self._tasks(state, request, evaluation, bool(record))
        evaluation.listening = capture is not None
        outputs = compute(Job(evaluation, record, capture=capture, tasks=tasks))
        for cache in state.caches:
            cache.end()
        finite = state.finite.see(evaluation, request.x, *outputs)
        if request.dense_because:
            return list(outputs)
        for method in state.methods:
            method.after_dense(state.picture(outputs[request.prompt_branch]))
        errors = state.forecasts.errors(request.x, outputs, request.sigma, request.absent) if state.plan.adaptive else []
        answers = state.forecasts.add_dense(evaluation.index, request.x, outputs, request.sigma, finite)
        state.record.cache_bytes = max(state.record.cache_bytes, state.bytes)
        reading = None
        if capture is not None and capture.maps:
            reading = state.region.read(capture, state.picture(outputs[request.prompt_branch]), request.reference)
        self._measure(state, evaluation, reading, errors)
        return answers

    def _recorded(self, state: RunState, request: Request, evaluation: Evaluation) -> tuple[ActivationCache, ...]:
        """The caches that this evaluation fills, which are begun."""
        if state.exhausted or request.no_parts_because or request.dense_because or not state.config.active:
            return ()
        regional = state.plan.records(evaluation.step, "partial") and not request.no_regions_because
        record = list(state.region.caches) if regional else []
        evaluation.recording = bool(record)
        if state.shallow is not None and state.plan.records(evaluation.step, "shallow"):
            record.append(state.shallow)
        for cache in record:
            cache.begin(evaluation.sigma)
        return tuple(record)

    def _captures(self, state: RunState, request: Request, step: int) -> bool:
        """Whether attention is worth capturing: from the second step on, while a region is still to be computed, and a few
        times at least, so that there is a highlight to see."""
        if not state.config.active or request.dense_because or state.exhausted or step < 1 or not state.plan.saves_from(step):
            return False
        return state.plan.computes_region_from(step) or state.region.captures < CAPTURES

    def _tasks(
        self, state: RunState, request: Request, evaluation: Evaluation, records: bool
    ) -> tuple[tuple[Task, ...], HeatmapAccumulator | None]:
        """What methods have to do in this evaluation, and what captures its attention."""
        captures = self._captures(state, request, evaluation.step)
        context = self._context(state, request, evaluation, records, captures)
        tasks: list[Task] = []
        for method in (method for method in state.methods if method.active):
            task = method.before_dense(evaluation, context)
            tasks += [task] if task is not None else []
            captures |= not request.dense_because and method.wants_heatmap(evaluation)
        silent = any(task.silent for task in tasks)
        return tuple(tasks), HeatmapAccumulator() if captures and not silent else None

    def _context(
        self, state: RunState, request: Request, evaluation: Evaluation, records: bool, captures: bool
    ) -> DenseContext:  # fmt: skip
        """What methods are told: what is attended is computed as it is, and recording needs every token."""
        blocked = request.dense_because or state.exhausted or request.no_parts_because
        planned = state.plan.merging(evaluation.step) if evaluation.planned == "dense" else None
        if captures and not state.region.captures and evaluation.index <= CAPTURES and planned != "record":
            blocked = blocked or "the highlight is looked for first"
        as_planned = evaluation.reason == state.plan.steps[evaluation.step].reason
        return DenseContext(
            alone=not state.config.enabled and as_planned,
            blocked_because=blocked,
            exact_because=self._exact_because(state, evaluation, records, planned),
            highlight=state.record.highlight if state.config.active else None,
            heatmap=state.region.heatmap,
            planned=planned,
        )

    def _exact_because(
        self, state: RunState, evaluation: Evaluation, records: bool, planned: Merging | None
    ) -> str | None:  # fmt: skip
        """Why methods have to leave an evaluation exact, or None."""
        if records:
            return "records the highlight's surroundings"
        tail = state.config.active and planned != "merge" and state.plan.is_tail(evaluation.step)
        return "one of the last steps, whose errors nothing mends" if tail else None

    def _measure(self, state: RunState, evaluation: Evaluation, reading: Reading | None, errors: list[Tensor]) -> None:
        """Take up what was read from attention and the errors of the forecasts, with one transfer to the CPU for both, and for
        whether all was finite."""
        maps: list[Tensor] = []
        if reading is not None:
            maps = [reading.heatmap, reading.unfiltered, *reading.words.values(), reading.prominence, reading.edited]
        received = state.finite.told([*maps, *([torch.stack(errors).mean()] if errors else [])])
        if received is None:
            return state.begin_anew()
        error = float(received[-1]) if errors else None
        evaluation.forecast_error = number_or_none(error)
        if state.plan.adaptive:
            state.plan.adaptive.computed(evaluation.step, evaluation.sigma, error)
        if reading is None:
            return
        sizes = [own.numel() for own in maps]
        parts = received[: sum(sizes)].split(sizes)
        read = (part.reshape(own.shape) for part, own in zip(parts, maps, strict=True))
        heatmap, unfiltered, *words, prominence, edited = read
        if not all(own.isfinite().all() for own in (heatmap, *words)):
            state.record.highlight_reason = "no highlight: what the model attended to was not finite"
            return
        state.region.take(reading)
        own = replace(reading, heatmap=heatmap, unfiltered=unfiltered, prominence=prominence, edited=edited)
        self._take_reading(state, evaluation, own, words)

    def _take_reading(self, state: RunState, evaluation: Evaluation, reading: Reading, words: list[Tensor]) -> None:
        """Show a reading's heatmap and those of its words (B, H, W), all on the CPU, and aim the regions by it."""
        evaluation.heatmap = reading.heatmap
        if words:
            evaluation.words = torch.stack(words, dim=1)
            state.record.words = tuple(reading.words)
        if not state.config.active:
            return
        state.record.highlight, reasons = state.region.aim(reading)
        if not state.plan.regional:
            reasons.append(NEVER_WANTED if state.config.correct == "never" else NOT_WORTH_IT)
        state.record.highlight_reason = "; ".join(dict.fromkeys(reasons))


DENSE, FORECASTING = Dense(), Forecasting()
ACTIONS: dict[Kind, Action] = {action.kind: action for action in (DENSE, Regional(), Shallow(), FORECASTING)}
