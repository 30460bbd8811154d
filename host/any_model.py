"""Highlight Diffusion on a MODEL of any class: its predictions are forecast, and nothing has to be known of its insides."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..engine.job import Job
from ..engine.region.tracking import Reading
from .call import ModelCall
from .methods import not_merging
from .run import ModelRun, Sampling, time_axis_of


class ForecastRun(ModelRun):
    """One sampling run on a MODEL of which nothing but its predictions is known, so that only time is saved.

    why: what keeps its insides from being known, for people. A highlight of the whole frame is honoured: then everything is
    computed.
    """

    unknown = True

    def __init__(self, sampling: Sampling, why: str):
        sampling = replace(sampling, masks=replace(sampling.masks, noise=None))  # for regions, which it has not
        record, limit = sampling.record, f"only time is saved: {why}"
        record.highlight_reason = limit
        methods = [not_merging(name, why) for name in sampling.methods]
        record.limits = (*([limit] if sampling.config.enabled else []), *(method.said for method in methods))
        super().__init__(sampling, 1, lambda boxes: [], time_axis_of(sampling.model), methods=methods)
        self.no_parts = why
        if sampling.config.threshold == 0 or sampling.masks:
            record.highlight, _ = self.engine.state.region.aim(Reading.of_nothing(record.shape[0], self.frame))

    def apply_model(self, job: Job, call: ModelCall) -> Tensor:
        return call()
