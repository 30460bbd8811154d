"""Are partial evaluations worth it? Each is compared with a dense evaluation at the very same point.

Runs in plain torch, where a second evaluation at the same x is one more call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..demo.plain import PlainModel, sample, window_call
from ..engine.config import HighlightConfig
from ..engine.job import Job
from ..engine.state import RunState
from ..engine.trace import Boxes, inside


@dataclass(frozen=True)
class Comparison:
    """Inside the highlight, both branches together: rms distance to dense over rms of dense."""

    active: float
    gap: int
    computed: float
    forecast: float

    @property
    def nearer(self) -> bool:
        return self.computed < self.forecast


def _distance(values: list[Tensor], truth: list[Tensor], boxes: Boxes) -> float:
    error = scale = 0.0
    for value, true in zip(values, truth, strict=True):
        for box in inside(boxes):
            error += float((value - true)[box].square().sum())
            scale += float(true[box].square().sum())
    return (error / max(scale, 1e-12)) ** 0.5


def compare(model: PlainModel, noise: Tensor, steps: int, cfg: float, config: HighlightConfig) -> list[Comparison]:
    """Sample with `config`; at every regional evaluation also compute the dense one, for comparison only."""
    found: list[Comparison] = []

    def regional(model: PlainModel, job: Job, x: Tensor, state: RunState) -> list[Tensor]:
        evaluation = job.evaluation
        computed, truth = window_call(model, job, x), model(x, evaluation.sigma)
        guess = state.forecasts.predict(evaluation.index, x, evaluation.sigma)
        last = max(e.index for e in state.record.evaluations if e.kind == "dense")
        distances = (_distance(values, truth, evaluation.boxes) for values in (computed, guess))
        found.append(Comparison(evaluation.active, evaluation.index - last, *distances))
        return computed

    sample(model, noise, steps, cfg, config, regional)
    return found
