"""One sampling run of Highlight Diffusion, without a host: what each evaluation does, and the state it needs.

A host (ComfyUI, or the plain sampler of the demo) asks `decide` at every evaluation, computes what it is told to,
and hands the results back. Nothing here outlives the run but the trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from .config import HighlightConfig
from .forecast import Forecast
from .heatmap import HeatmapAccumulator
from .highlight import Region, find_region
from .schedule import PlannedStep, forecast_space, make_plan, step_of
from .trace import Box, Evaluation, Kind, Run
from .window import Affine, Window, module_affine

HEATMAP_NEWEST = 0.2  # least share of the newest heatmap in the running mean
MOVED = 0.2  # share of the highlight outside the windows that makes them move
SHRUNK = 0.7  # new windows are taken up when they save at least this much


class HighlightRun:
    """State of one run.

    sigmas: the schedule, descending, its final 0 included. frame: latent (H, W). align: the UNet's downsampling.
    first_sigma, last_sigma: between them evaluations may be saved (start and end percent).
    """

    def __init__(
        self, config: HighlightConfig, trace: Run, frame: tuple[int, int], align: int,
        first_sigma: float = float("inf"), last_sigma: float = 0.0, affine: Affine = module_affine,
    ):  # fmt: skip
        self.config, self.trace, self.frame, self.align, self.affine = config, trace, frame, align, affine
        sigmas = trace.sigmas
        inside = [i for i, s in enumerate(sigmas[:-1]) if last_sigma <= s <= first_sigma]
        first, last = (inside[0], inside[-1]) if inside else (0, -1)
        self.plan = make_plan(sigmas[:-1], config, first, last)
        self.recorded = _recorded_steps(self.plan)
        self.space = forecast_space(trace.sampler) if config.forecast == "auto" else config.forecast
        self.forecasts: dict[int, Forecast] = {}
        self.region: Region | None = None
        self.coming: Region | None = None
        self.windows: list[Window] = []
        self.heatmap: Tensor | None = None
        self.heard = 0
        self.accumulator: HeatmapAccumulator | None = None
        self.signature: object = None
        self.dense_reason: str | None = None
        self.no_windows: str | None = None
        if frame[0] % align or frame[1] % align:
            self.no_windows = f"a {frame[0]}x{frame[1]} latent is no multiple of {align}"

    # -- before an evaluation ------------------------------------------------------------------------------------

    def decide(self, sigma: float, signature: object = None) -> Evaluation:
        """What this evaluation does. `signature` is what is being evaluated; when it changes, forecasts are void.

        Reasons a host sets beforehand: `dense_reason` makes everything dense, `no_windows` rules out partial ones.
        """
        step = step_of(sigma, self.trace.sigmas)
        planned = self.plan[step]
        kind, reason = planned.kind, planned.reason
        if self.dense_reason:
            kind, reason = "dense", self.dense_reason
        elif signature != self.signature:
            reason = "the conditioning changed" if self.forecasts and kind != "dense" else reason
            kind = "dense"
            self.forget()
        elif kind != "dense":
            kind, reason = self._affordable(kind, reason, sigma)
        self.signature = signature
        evaluation = Evaluation(len(self.trace.evaluations), step, sigma, kind, reason, 1.0 if kind == "dense" else 0.0)
        if kind == "partial" and self.region:
            evaluation.active, evaluation.boxes, evaluation.windows = self.region.area, self.region.inner, self.region.outer
        self.trace.evaluations.append(evaluation)
        return evaluation

    def _affordable(self, kind: Kind, reason: str, sigma: float) -> tuple[Kind, str]:
        """Fall back to dense where a forecast has no ground, and to the forecast where a window has none."""
        if not self.forecasts or not all(f.ready for f in self.forecasts.values()):
            return "dense", "no forecast yet"
        if any(sigma > f.last_sigma * (1 + 1e-4) for f in self.forecasts.values()):
            return "dense", "sigma went up"
        if self.region and self.region.everything:
            return "dense", self.region.reason
        if kind == "partial" and self.no_windows:
            return "skipped", f"forecast only: {self.no_windows}"
        if kind == "partial" and not (self.region and self.region.outer):
            return "skipped", f"forecast only: {self.region.reason if self.region else 'no highlight was found yet'}"
        if kind == "partial" and not all(window.recordings for window in self.windows):
            return "skipped", "forecast only: the highlight moved since the last dense evaluation"
        return kind, reason

    def forget(self) -> None:
        """Drop every forecast and recording, keep the highlight."""
        self.forecasts.clear()
        for window in self.windows:
            window.recordings.clear()

    # -- during a dense evaluation -------------------------------------------------------------------------------

    def begin_dense(self, evaluation: Evaluation) -> Sequence[Window]:
        """Prepare a dense evaluation; returns the windows to record, none when nothing will use them."""
        if self.coming:
            self._move(self.coming)
        self.accumulator = None
        if self.wants_heatmap(evaluation):
            self.accumulator = HeatmapAccumulator(max(1, self.frame[0] // 2), max(1, self.frame[1] // 2))
        wanted = evaluation.step in self.recorded and self.config.active and not self.no_windows and not self.dense_reason
        if not wanted:
            return ()
        for window in self.windows:
            window.begin(evaluation.sigma)
        return self.windows

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        """True where cross-attention is worth capturing: from the second step on, while anything is left to save."""
        if not self.config.active or self.dense_reason:
            return False
        return evaluation.step >= 1 and any(p.kind != "dense" for p in self.plan[evaluation.step :])

    def end_dense(self, evaluation: Evaluation, x: Tensor, outputs: Sequence[Tensor]) -> None:
        """Take up a dense evaluation: denoised tensors, one a branch (positive, negative ...), all at x."""
        for i, denoised in enumerate(outputs):
            self.forecasts.setdefault(i, Forecast(self.space)).add_dense(x, denoised, evaluation.sigma)
        self.trace.cache_bytes = max(self.trace.cache_bytes, sum(window.bytes for window in self.windows))
        if self.accumulator and self.accumulator.count:
            heat = self.accumulator.heatmap()
            self.heard += 1
            newest = max(HEATMAP_NEWEST, 1 / self.heard)
            self.heatmap = heat if self.heatmap is None else self.heatmap.lerp(heat, newest)
            evaluation.heatmap = self.heatmap.cpu()
            self._aim(evaluation.heatmap)
        self.accumulator = None

    def _aim(self, heatmap: Tensor) -> None:
        """Find the highlight, and move the windows when they miss it or are much too large."""
        highlight, region = find_region(heatmap, self.frame, self.align, self.config)
        self.trace.highlight, self.trace.highlight_reason = highlight, region.reason
        old, self.coming = self.region, None
        if old and old.outer and region.outer:
            inside = sum(_overlap(a, b) for a in region.inner for b in old.inner)
            wanted = sum(_overlap(a, a) for a in region.inner)
            if inside >= (1 - MOVED) * wanted and region.area >= SHRUNK * old.area:
                return
        if old and old.outer == region.outer:
            self.region = region
            return
        if region.everything or not any(window.recordings for window in self.windows):
            self._move(region)
        else:
            self.coming = region  # this gap still has the old windows' recordings

    def _move(self, region: Region) -> None:
        self.region, self.coming = region, None
        boxes = () if region.everything else region.outer
        self.windows = [Window(box, self.frame, self.affine) for box in boxes]

    # -- during the others ---------------------------------------------------------------------------------------

    def forecast(self, evaluation: Evaluation, x: Tensor) -> list[Tensor]:
        """The denoised tensors of all branches, extrapolated to this evaluation."""
        boxes = self.region.inner if self.region else ()
        return [f.predict(x, evaluation.sigma, boxes) for f in self.forecasts.values()]

    def correct(
        self, evaluation: Evaluation, x: Tensor, forecasts: Sequence[Tensor], computed: Sequence[Tensor]
    ) -> list[Tensor]:
        """Put what was computed inside the highlight into the forecasts, and measure how wrong they were there.

        computed: full-size tensors of which only the windows are filled.
        """
        corrected, error, scale = [], x.new_zeros(()), x.new_zeros(())
        for i, (predicted, fresh) in enumerate(zip(forecasts, computed, strict=True)):
            result = predicted.clone()
            for y0, y1, x0, x1 in evaluation.boxes:
                inside = (..., slice(y0, y1), slice(x0, x1))
                error += (fresh[inside] - predicted[inside]).float().square().sum()
                scale += fresh[inside].float().square().sum()
                result[inside] = fresh[inside]
            self.forecasts[i].add_partial(x, result, evaluation.sigma)
            corrected.append(result)
        evaluation.forecast_error = float((error / scale.clamp(min=1e-12)).sqrt().detach())
        return corrected

    # -- a whole evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self, x: Tensor, sigma: float, signature: object,
        dense: Callable[[Evaluation, Sequence[Window]], list[Tensor]],
        partial: Callable[[Evaluation, Sequence[Window]], list[Tensor]],
    ) -> list[Tensor]:  # fmt: skip
        """One evaluation from decision to result; `dense` and `partial` are the host's ways to compute."""
        started = time.perf_counter()
        evaluation = self.decide(sigma, signature)
        if evaluation.kind == "dense":
            outputs = dense(evaluation, self.begin_dense(evaluation))
            self.end_dense(evaluation, x, outputs)
        else:
            outputs = self.forecast(evaluation, x)
            if evaluation.kind == "partial":
                outputs = self.correct(evaluation, x, outputs, partial(evaluation, self.windows))
        evaluation.seconds = time.perf_counter() - started
        return outputs


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[1], b[1]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[2], b[2]))


def _recorded_steps(plan: list[PlannedStep]) -> set[int]:
    """Dense steps whose surroundings a partial step will use: the two before each gap that has one."""
    recorded, dense = set(), []
    for i, step in enumerate(plan):
        if step.kind == "dense":
            dense.append(i)
        elif step.kind == "partial":
            recorded.update(dense[-2:])
    return recorded


def paste(full: Tensor, crop: Tensor, box: Box) -> None:
    """Write a window's output into a full-size tensor, in place."""
    y0, y1, x0, x1 = box
    full[..., y0:y1, x0:x1] = crop
