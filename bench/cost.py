"""Multiply-accumulates of a traced run, counted by running its evaluations on a UNet under torch's own counter.

Linear layers, convolutions and attention count; element-wise work and the recording of surroundings do none, and show
in the wall clock only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..demo.plain import PlainModel, dense_call, window_call
from ..engine.job import Job
from ..engine.partial.unet_window import Window, shallow_window
from ..engine.region.heatmap import HeatmapAccumulator
from ..engine.trace import Box, Evaluation


def _cpu_attention(q: tuple, k: tuple, v: tuple, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(q, k, v)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


def macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates that a call executes (half of torch's count of floating point operations)."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Cost:
    """Executed MACs by what they were for, and what the dense run would have taken."""

    dense: int
    partial: int
    heatmap: int
    dense_run: int

    @property
    def ratio(self) -> float:
        """How many times cheaper than the dense run."""
        return self.dense_run / max(self.dense + self.partial + self.heatmap, 1)


class CostModel:
    """Costs of one UNet at one latent shape (1, C, H, W); every kind of evaluation is run and counted once.

    A batch costs as many times its images."""

    def __init__(self, model: PlainModel, shape: tuple[int, ...]):
        self.model, self.x = model, torch.zeros(shape)
        self.frame = (shape[-2], shape[-1])
        self.full = macs(lambda: model(self.x, 1.0))
        self.listened = macs(lambda: self._dense(heatmap=True)) - self.full
        self._windows: dict[tuple[Box, int | None], int] = {}

    def _dense(self, heatmap: bool, windows: tuple[Window, ...] = ()) -> list[Tensor]:
        capture = HeatmapAccumulator() if heatmap else None
        for window in windows:
            window.begin(1.0)
        return dense_call(self.model, Job(Evaluation(0, 1, 1.0, "dense", "", 1.0), windows, capture=capture), self.x)

    def window(self, box: Box, depth: int | None) -> int:
        """MACs of computing one window to a depth."""
        if (box, depth) not in self._windows:
            window = Window(box, self.frame, depth=depth)
            with torch.no_grad():
                self._dense(False, (window,))
            job = Job(Evaluation(0, 2, 0.9, "partial", "", 0.0), compute=(window,))
            self._windows[box, depth] = macs(lambda: window_call(self.model, job, self.x))
        return self._windows[box, depth]

    def of(self, run: dict) -> Cost:
        """Cost of a run in the form of `RunRecord.as_dict`."""
        dense = partial = heatmap = 0
        images = run["shape"][0]
        for evaluation in run["evaluations"]:
            if evaluation["kind"] == "dense":
                dense += images * self.full
                heatmap += images * self.listened if evaluation["heatmap"] else 0
            elif evaluation["kind"] == "partial":
                partial += sum(self.window(tuple(box), run["depth"]) for own in evaluation["windows"] for box in own)
            elif evaluation["kind"] == "shallow":
                whole = shallow_window(self.frame)
                partial += images * self.window(whole.box, whole.depth)
        return Cost(dense, partial, heatmap, images * self.full * len(run["evaluations"]))
