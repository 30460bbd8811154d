"""Methods: what takes part in dense evaluations beside Highlight Diffusion itself. Token merging is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .job import Task
from .placement.plan import Merging
from .trace import Evaluation


@dataclass(frozen=True)
class DenseContext:
    """What a method is told of a dense evaluation.

    alone: whether Highlight Diffusion is switched off and has nothing to say, so that the evaluation's reason is the method's
    to give.
    blocked_because: why the method may do nothing, and has to forget what it recorded. exact_because: why this evaluation has
    to be exact. highlight: bool (B, h, w), what the prompt looks at. heatmap: float (B, 1, h, w), how much. Both are None
    where they are not known. planned: what the plan has for methods that merge, None where it leaves that to them.
    """

    alone: bool = False
    blocked_because: str | None = None
    exact_because: str | None = None
    highlight: Tensor | None = None
    heatmap: Tensor | None = None
    planned: Merging | None = None


class Method(Protocol):
    """The state of one method over one sampling run. A new one is a folder of the engine, a node, and a row in
    `host/methods.py`."""

    by_plan: bool  # whether it does nothing, and says nothing, but where the plan wants it

    @property
    def active(self) -> bool:
        """Whether it does anything in this run."""

    @property
    def merges(self) -> bool:
        """Whether it can merge tokens where a plan wants that."""

    def before_dense(self, evaluation: Evaluation, context: DenseContext) -> Task | None:
        """Returns what a dense call is to do for this method, None for nothing, and says so in the evaluation's reason."""

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation's attention is to be captured where the method does not prevent it."""

    def after_dense(self, prediction: Tensor) -> None:
        """Take up the prediction (B, C, ...) of the prompt's branch, after a dense evaluation."""

    def forget(self) -> None:
        """Drop what was recorded."""

    def begin_anew(self) -> None:
        """Forget, and drop what was learnt of predictions too: those to come are of another latent."""

    @property
    def bytes(self) -> int:
        """What its records take on the model's device."""

    held_as: str  # what its records are, after "memory ran out beside what "
