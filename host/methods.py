"""The methods that take part in dense evaluations of a transformer, by their ids.

To add one, write its engine (`engine/method.py` says what it is asked), its node, a row here, and its task in
`DiTRun.apply_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engine.merging.config import PLANNED, SDTMConfig
from ..engine.merging.stages import MergingRun
from ..engine.method import DenseContext, Method
from ..engine.partial.token_subset import TokenGrid
from ..engine.trace import Evaluation
from .run import Sampling

HIGHLIGHT, MERGING = "highlight", "merging"
TITLES = {HIGHLIGHT: "Highlight Diffusion", MERGING: "SDTM Token Merging"}


def start_merging(
    config: SDTMConfig, sampling: Sampling, grid: TokenGrid, depth: int, by_plan: bool = False
) -> MergingRun:  # fmt: skip
    """The state of token merging over a run on a transformer with so many blocks."""
    record = sampling.record
    return MergingRun(config, record.sigmas, grid, record.shape[0], depth, sampling.sigma_range(config), by_plan)


class LeftOut:
    """A method that can do nothing on a model: it leaves every evaluation as it is, and says why.

    said: that, for people, with the method's name.
    """

    active, merges, by_plan, bytes, held_as = True, False, False, 0, ""

    def __init__(self, said: str):
        self.said = said

    def before_dense(self, evaluation: Evaluation, context: DenseContext) -> None:
        if context.alone:
            evaluation.reason = self.said

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        return False

    def after_dense(self, prediction: Tensor) -> None:
        """Nothing is learnt."""

    def forget(self) -> None:
        """Nothing is kept."""

    def begin_anew(self) -> None:
        """Nothing is kept."""


def not_merging(name: str, why: str) -> LeftOut:
    """What stands for a method on a model that it does not work on."""
    return LeftOut(f"{TITLES[name]} does nothing: {why}")


def methods_of(sampling: Sampling, grid: TokenGrid, depth: int) -> list[Method]:
    """The methods of a run on a transformer: those that nodes ask for, and merging where the plan of Highlight Diffusion wants
    it, unless a node merges."""
    asked = [METHODS[name](config, sampling, grid, depth) for name, config in sampling.methods.items()]
    if MERGING not in sampling.methods and sampling.config.active:
        asked.append(start_merging(replace(PLANNED, memory=sampling.config.memory), sampling, grid, depth, by_plan=True))
    return asked


METHODS: dict[str, Callable[[Any, Sampling, TokenGrid, int], Method]] = {MERGING: start_merging}
