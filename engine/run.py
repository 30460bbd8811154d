"""One sampling run of Highlight Diffusion, without a host: what each evaluation does, and the state it needs.

A host (ComfyUI, or the plain sampler of the demo) asks `decide` at every evaluation, computes what it is told to,
and hands the results back. Nothing here outlives the run but the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .config import ADAPTIVE, HighlightConfig
from .merging.sdtm import MergingRun
from .partial.cache import Surroundings
from .partial.window import windows_of
from .placement.adaptive import AdaptiveGaps
from .placement.plan import (
    CORRECTED_GAP,
    PlannedStep,
    adds_noise,
    correction_pays,
    dense_tail,
    forecast_space,
    make_plan,
    renewed,
    shallow_pays,
    solves_an_sde,
    step_of,
)
from .placement.time_axis import Axis, log_sigma
from .prediction.forecast import Forecast
from .prediction.response import Response, Space
from .region.heatmap import HeatmapAccumulator
from .region.highlight import Given, Region, find_region
from .stopwatch import Stopwatch
from .trace import Box, Boxes, Evaluation, Kind, Run, inside

# Boxes of each image of a batch -> what is recorded for them.
Surround = Callable[[Sequence[tuple[Box, ...]]], Sequence[Surroundings]]
NOT_WORTH_IT = "not computed: under this sampler and schedule dense evaluations are worth more"
LISTENED = 3  # evaluations that are listened to where the highlight is only looked at
HEATMAP_NEWEST = 0.2  # least share of the newest heatmap in the running mean


class HighlightRun:
    """State of one run.

    sigmas: the schedule, descending, its final 0 included. frame: latent (H, W). align: what windows are snapped to.
    surround: makes what is recorded for the regions of a batch, as its executor needs it. whole: the same for the whole
    frame, for shallow evaluations; None where a model has none.
    first_sigma, last_sigma: between them evaluations may be saved (start and end percent).
    response: gives the sampler's for what is forecast, by which a computed evaluation makes up for the forecasts before it;
    None, or where it gives None, to let them stand.
    axis: along what predictions are smooth. fresh: how much of the noise each step makes anew, None where it was not measured.
    merging: merges tokens in computed evaluations, where a host can.
    """

    def __init__(
        self, config: HighlightConfig, trace: Run, frame: tuple[int, int], align: int,
        first_sigma: float = float("inf"), last_sigma: float = 0.0, surround: Surround | None = None,
        given: Given | None = None, response: Callable[[Space], Response | None] | None = None, axis: Axis = log_sigma,
        merging: MergingRun | None = None, whole: Surroundings | None = None, fresh: Sequence[float] | None = None,
    ):  # fmt: skip
        self.merging, self.whole = merging, whole
        self.config, self.trace, self.frame, self.align = config, trace, frame, align
        self.surround, self.axis = surround or windows_of(frame), axis
        self.given = given or Given()
        sigmas = trace.sigmas
        inside = [i for i, s in enumerate(sigmas[:-1]) if last_sigma <= s <= first_sigma]
        first, last = (inside[0], inside[-1]) if inside else (0, -1)
        self.space = forecast_space(trace.sampler, config.forecast, axis)
        self.response = response(self.space) if response is not None and config.active and config.revise else None
        self.corrects = self._corrects(len(sigmas) - 1)
        anew = renewed(trace.sampler, sigmas[:-1], fresh, axis)
        shallow = self._shallow(len(sigmas) - 1, any(anew))
        self.plan = make_plan(sigmas[:-1], config, first, last, trace.sampler, self.corrects, axis, shallow, anew)
        if whole is not None and solves_an_sde(trace.sampler):
            whole.persistence = 0.0  # what enters from within is noise above all: a copy is 1.4 dB better at 12 steps
        self.gaps = AdaptiveGaps(config.pace) if config.interval == ADAPTIVE else None
        self.recorded = set(range(last)) if self.gaps else _recorded_steps(self.plan, "partial")
        self.recorded_whole = _recorded_steps(self.plan, "shallow")
        trace.revises = self.response is not None
        self.forecasts: dict[int, Forecast] = {}
        self.corrected: Boxes = ()  # where the last partial evaluation counted
        self.regions: tuple[Region, ...] = ()  # one an image, once a heatmap was captured
        self.coming: tuple[Region, ...] = ()  # those to take up at the next dense evaluation
        self.windows: Sequence[Surroundings] = ()
        self.heatmap: Tensor | None = None
        self.heard = 0
        self.accumulator: HeatmapAccumulator | None = None
        self.signature: object = None
        self.dense_reason: str | None = None
        self.no_windows: str | None = None
        self.watches: list[tuple[Evaluation, Stopwatch]] = []
        self.exhausted: str | None = None  # how memory ran out, once it did

    def _corrects(self, steps: int) -> bool:
        """Whether longer gaps are to have a partial evaluation: as wanted, with a mask, or where it pays."""
        if self.config.correct != "auto":
            return self.config.correct == "always"
        return bool(self.given) or correction_pays(steps, adds_noise(self.trace.sampler), self.response, self.axis)

    def _shallow(self, steps: int, noisy: bool) -> bool:
        """Whether gaps are to be filled with shallow evaluations: as wanted, or where it pays; not where everything is
        highlighted, and so to be computed."""
        if self.config.threshold == 0:
            return False
        if self.config.shallow != "auto":
            return self.config.shallow == "always"
        return self.whole is not None and not self.given and shallow_pays(steps, noisy, self.config)

    # -- before an evaluation ------------------------------------------------------------------------------------

    def decide(self, sigma: float, signature: object = None) -> Evaluation:
        """What this evaluation does. `signature` is what is being evaluated; when it changes, forecasts are void.

        Reasons a host sets beforehand: `dense_reason` makes everything dense, `no_windows` rules out partial ones.
        """
        step = step_of(sigma, self.trace.sigmas)
        planned = self.plan[step]
        kind, reason = planned.kind, planned.reason
        if self.gaps and kind == "skipped":
            kind, reason = self._adapted(step)
        wanted = kind
        if self.dense_reason:
            kind, reason = "dense", self.dense_reason
            self.forget()
        elif signature != self.signature:
            reason = "the conditioning changed" if self.forecasts and kind != "dense" else reason
            kind = "dense"
            self.forget()
        elif kind != "dense":
            kind, reason = self._affordable(kind, reason, sigma)
        self.signature = signature
        evaluation = Evaluation(len(self.trace.evaluations), step, sigma, kind, reason, 1.0 if kind == "dense" else 0.0)
        evaluation.planned = wanted
        if kind == "partial":
            evaluation.active = sum(region.area for region in self.regions) / len(self.regions)
            evaluation.boxes = tuple(region.inner for region in self.regions)
            evaluation.windows = tuple(region.outer for region in self.regions)
        self.trace.evaluations.append(evaluation)
        return evaluation

    def _adapted(self, step: int) -> tuple[Kind, str]:
        """What a step left open by the plan is to do."""
        since = step - (self.gaps.last_dense or 0)
        if self.gaps.due(step):
            return "dense", f"refresh after {since}, by the forecast's error"
        if self.corrects and self.gaps.gap >= CORRECTED_GAP and since == -(-self.gaps.gap // 2):
            return "partial", "highlight corrects the forecast and measures its error"
        return "skipped", "forecast"

    def _affordable(self, kind: Kind, reason: str, sigma: float) -> tuple[Kind, str]:
        """Fall back to dense where a forecast has no ground, and to the forecast where a window has none."""
        ready = all(f.ready for f in self.forecasts.values())
        if not self.forecasts or not (kind == "shallow" or ready):
            return "dense", "no forecast yet"
        if any(sigma > f.last_sigma * (1 + 1e-4) for f in self.forecasts.values()):
            return "dense", "sigma went up"
        if self.regions and all(region.everything for region in self.regions):
            return "dense", self.regions[0].reason
        if kind == "shallow":
            ruled_out = self.exhausted or self.no_windows or (None if self.whole else "only UNets have shallow evaluations")
            if ruled_out:
                return ("skipped", f"forecast only: {ruled_out}") if ready else ("dense", "no forecast yet")
            if not self.whole.recordings:
                return "dense", "nothing was recorded for shallow evaluations yet"
        if kind == "partial" and (self.exhausted or self.no_windows):
            return "skipped", f"forecast only: {self.exhausted or self.no_windows}"
        if kind == "partial" and not any(region.outer for region in self.regions):
            return "skipped", f"forecast only: {self.regions[0].reason if self.regions else 'no highlight was found yet'}"
        if kind == "partial" and not all(window.recordings for window in self.windows):
            return "skipped", "forecast only: the highlight moved since the last dense evaluation"
        return kind, reason

    def forget(self) -> None:
        """Drop every forecast and recording, keep the highlight."""
        self.forecasts.clear()
        self.corrected = ()
        self._drop_recordings()
        if self.merging is not None:
            self.merging.forget()

    @property
    def _surroundings(self) -> list[Surroundings]:
        """All that recordings are made for."""
        return [*self.windows, *([self.whole] if self.whole is not None else [])]

    def _drop_recordings(self) -> None:
        for surroundings in self._surroundings:
            surroundings.recordings.clear()

    # -- during a dense evaluation -------------------------------------------------------------------------------

    def begin_dense(self, evaluation: Evaluation) -> Sequence[Surroundings]:
        """Prepare a dense evaluation; returns the windows to record, none when nothing will use them."""
        if self.coming:
            self._move(self.coming)
        self.accumulator = None
        if self.wants_heatmap(evaluation):
            self.accumulator = HeatmapAccumulator(*self._heatmap_size)
        if self.no_windows or self.exhausted or self.dense_reason or not self.config.active:
            return ()
        recorded = list(self.windows) if evaluation.step in self.recorded else []
        evaluation.recording = bool(recorded)
        if self.whole is not None and evaluation.step in self.recorded_whole:
            recorded.append(self.whole)
        for surroundings in recorded:
            surroundings.begin(evaluation.sigma)
        return recorded

    @property
    def _heatmap_size(self) -> tuple[int, int]:
        return max(1, self.frame[0] // 2), max(1, self.frame[1] // 2)

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        """True where cross-attention is worth capturing: from the second step on, while a highlight is still to be
        computed, and in the warm-up at least, so that there is one to see."""
        if not self.config.active or self.dense_reason or evaluation.step < 1:
            return False
        left = self.plan[evaluation.step :]
        used = any(p.kind == "partial" for p in left) or bool(self.gaps and self.corrects)
        return any(p.kind != "dense" for p in left) and (used or self.heard < LISTENED)

    def _plan_merging(self, evaluation: Evaluation, windows: Sequence[Surroundings]) -> None:
        """What is attended is computed as it is, and what is recorded needs every token; the rest may be merged."""
        merging = self.merging
        merging.attended = self.trace.highlight if self.config.active else None
        merging.heat = self.heatmap
        blocked = self.dense_reason or self.exhausted or self.no_windows
        whole = "records the highlight's surroundings" if windows else None
        if self.config.active and evaluation.step >= len(self.plan) - dense_tail(self.trace.sampler):
            whole = whole or "one of the last steps, whose errors nothing mends"
        if self.accumulator is not None and not self.heard and evaluation.index <= LISTENED:
            blocked = blocked or "the highlight is looked for first"
        merging.begin(evaluation, blocked, whole)
        if merging.kinds:
            self.accumulator = None  # what is merged cannot be listened to
        elif not self.dense_reason and merging.wants_heat(evaluation):
            self.accumulator = self.accumulator or HeatmapAccumulator(*self._heatmap_size)

    def end_dense(self, evaluation: Evaluation, x: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Take up a dense evaluation: denoised tensors, one a branch (positive, negative ...), all at x.

        Returns what to answer: the same, or changed by what the forecasts before it got wrong.
        """
        if self.dense_reason:
            return list(outputs)
        answers, errors = [], []
        for i, denoised in enumerate(outputs):
            if self.gaps and i in self.forecasts and self.forecasts[i].ready:
                errors.append(self.forecasts[i].error(x, denoised, evaluation.sigma))
            forecast = self.forecasts.setdefault(i, Forecast(self.space, self.response, self.axis))
            answers.append(forecast.add_dense(evaluation.index, x, denoised, evaluation.sigma, self.corrected))
        held = sum(own.bytes for own in self._surroundings) + (self.merging.bytes if self.merging is not None else 0)
        self.trace.cache_bytes = max(self.trace.cache_bytes, held)
        self._measure(evaluation, errors)
        return answers

    def _measure(self, evaluation: Evaluation, errors: list[Tensor]) -> None:
        """Take up what a dense evaluation tells: the heatmap, and the errors of the forecasts. One transfer for both."""
        heard, words = bool(self.accumulator and self.accumulator.maps), {}
        if heard:
            heat, words = self.accumulator.heatmap(), self.accumulator.words()
            self.heard += 1
            newest = max(HEATMAP_NEWEST, 1 / self.heard)
            self.heatmap = heat if self.heatmap is None else self.heatmap.lerp(heat, newest)
        self.accumulator = None
        measured = [self.heatmap, *words.values()] if heard else []
        measured = [m.flatten() for m in measured] + ([torch.stack(errors).mean()[None]] if errors else [])
        told = torch.cat(measured).cpu() if measured else None  # one transfer
        if errors:
            evaluation.forecast_error = float(told[-1])
        if self.gaps:
            self.gaps.computed(evaluation.step, evaluation.sigma, evaluation.forecast_error)
        if heard:
            evaluation.heatmap = told[: self.heatmap.numel()].reshape(self.heatmap.shape)
            if words:
                rest = told[self.heatmap.numel() :][: len(words) * self.heatmap.numel()]
                evaluation.words = rest.reshape(len(words), -1, *self.heatmap.shape[-2:]).transpose(0, 1)
                self.trace.words = tuple(words)
            if self.config.active:
                self._aim(evaluation.heatmap)

    def _aim(self, heatmap: Tensor) -> None:
        """Find the highlight of each image, and move the windows where they miss it or are much too large."""
        found = [
            find_region(heat[None], self.frame, self.align, self.config, self.given, image)
            for image, heat in enumerate(heatmap)
        ]
        self.trace.highlight = torch.cat([highlight for highlight, _ in found])
        reasons = [region.reason for _, region in found]
        if not self.corrects:
            reasons.append("not computed: never wanted" if self.config.correct == "never" else NOT_WORTH_IT)
        self.trace.highlight_reason = "; ".join(dict.fromkeys(reasons))
        new = tuple(region for _, region in found)
        if self.regions:
            new = tuple(old if old.covers(region) else region for old, region in zip(self.regions, new, strict=True))
        self.coming = ()
        if [region.outer for region in new] == [region.outer for region in self.regions]:
            self.regions = new
        elif any(window.recordings for window in self.windows):
            self.coming = new  # this gap still has the old windows' recordings
        else:
            self._move(new)

    def _move(self, regions: tuple[Region, ...]) -> None:
        self.regions, self.coming = regions, ()
        if all(region.everything for region in regions):
            self.windows = ()
        else:
            self.windows = self.surround([region.outer for region in regions])
            for window in self.windows:
                window.memory = self.config.memory

    # -- during the others ---------------------------------------------------------------------------------------

    def forecast(self, evaluation: Evaluation, x: Tensor) -> list[Tensor]:
        """The denoised tensors of all branches, extrapolated to this evaluation."""
        return [f.predict(evaluation.index, x, evaluation.sigma, self.corrected) for f in self.forecasts.values()]

    def correct(
        self, evaluation: Evaluation, x: Tensor, forecasts: Sequence[Tensor], computed: Sequence[Tensor]
    ) -> list[Tensor]:
        """Put what was computed inside the highlight into the forecasts, and measure how wrong they were there.

        computed: full-size tensors of which only the windows are filled.
        """
        corrected, error, scale = [], x.new_zeros(()), x.new_zeros(())
        for i, (predicted, fresh) in enumerate(zip(forecasts, computed, strict=True)):
            result = predicted.clone()
            for box in inside(evaluation.boxes):
                error += (fresh[box] - predicted[box]).float().square().sum()
                truth = x[box] - fresh[box] if self.space == "noise" else fresh[box]  # sigma cancels
                scale += truth.float().square().sum()
                result[box] = fresh[box]
            corrected.append(self.forecasts[i].add_partial(evaluation.index, x, result, evaluation.sigma, evaluation.boxes))
        self.corrected = evaluation.boxes
        evaluation.forecast_error = float((error / scale.clamp(min=1e-12)).sqrt().detach())
        if self.gaps:
            self.gaps.probe(evaluation.sigma, evaluation.forecast_error)
        return corrected

    def end_shallow(self, evaluation: Evaluation, x: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Take up a shallow evaluation, which from here on counts as a dense one."""
        forecasts = zip(self.forecasts.values(), outputs, strict=True)
        return [own.add_dense(evaluation.index, x, denoised, evaluation.sigma, self.corrected) for own, denoised in forecasts]

    # -- a whole evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self, x: Tensor, sigma: float, signature: object,
        dense: Callable[[Evaluation, Sequence[Surroundings]], list[Tensor]],
        partial: Callable[[Evaluation, Sequence[Surroundings]], list[Tensor]],
        ran_out: Callable[[RuntimeError], bool] = lambda error: False,
    ) -> list[Tensor]:  # fmt: skip
        """One evaluation from decision to result; `dense` and `partial` are the host's ways to compute.

        Where memory runs out (`ran_out` tells by the error) beside what is recorded for windows, or remembered of merged
        tokens, that is dropped, the evaluation is computed densely, and the rest of the run goes without either.
        """
        watch = Stopwatch(x.device)
        evaluation = self.decide(sigma, signature)
        outputs = None
        try:
            outputs = self._computed(evaluation, x, dense, partial)
        except RuntimeError as error:
            held = any(own.recordings for own in self._surroundings) or bool(self.merging is not None and self.merging.bytes)
            if self.exhausted or not held or not ran_out(error):
                raise
        if outputs is None:  # not in the handler above: the error's traceback keeps the tensors of the attempt
            self._do_without_recordings(evaluation)
            outputs = self._computed(evaluation, x, dense, partial)
        watch.stop()
        self.watches.append((evaluation, watch))
        if watch.done:
            self.settle()
        return outputs

    def settle(self) -> None:
        """Fill in how long the evaluations took, waiting for a GPU where it is still at work."""
        for evaluation, watch in self.watches:
            evaluation.seconds = watch.seconds
        self.watches.clear()

    def _computed(self, evaluation: Evaluation, x: Tensor, dense, partial) -> list[Tensor]:
        if evaluation.kind == "dense":
            windows = self.begin_dense(evaluation)
            if self.merging is not None and self.merging.active:
                self._plan_merging(evaluation, windows)
            outputs = dense(evaluation, windows)
            if self.merging is not None:
                self.merging.learn(outputs[0])
            return self.end_dense(evaluation, x, outputs)
        if evaluation.kind == "shallow":
            return self.end_shallow(evaluation, x, partial(evaluation, [self.whole]))
        outputs = self.forecast(evaluation, x)
        if evaluation.kind == "partial":
            outputs = self.correct(evaluation, x, outputs, partial(evaluation, self.windows))
        return outputs

    def _do_without_recordings(self, evaluation: Evaluation) -> None:
        """Drop what is recorded, record no more, and make a dense evaluation of the one under way."""
        computed = evaluation.kind in ("partial", "shallow")
        where = f"in a {evaluation.kind} evaluation" if computed else "beside what is recorded for partial ones"
        if self.merging is not None and self.merging.bytes:
            where = "beside what merging remembers"
            self.merging.forget()
        self.exhausted = f"memory ran out {where}"
        self._drop_recordings()
        evaluation.kind, evaluation.reason, evaluation.active = "dense", f"{self.exhausted}: computed without", 1.0
        evaluation.boxes, evaluation.windows, evaluation.merged = (), (), None


def _recorded_steps(plan: list[PlannedStep], kind: Kind) -> set[int]:
    """Dense steps whose recordings a step of this kind will use: the two before each gap that has one."""
    recorded, dense = set(), []
    for i, step in enumerate(plan):
        if step.kind == "dense":
            dense.append(i)
        elif step.kind == kind:
            recorded.update(dense[-2:])
    return recorded
