"""What passes between the engine and a host at each evaluation: a request comes in, a job goes out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from .region.heatmap import HeatmapAccumulator
from .trace import Evaluation


@dataclass(frozen=True)
class Request:
    """What the sampler asks for, and what the host has found out about it.

    x: the state (B, C, ...). sigma: its noise level. signature: what is evaluated (prompts, control nets, shapes); when it
    changes, what was predicted before is void. dense_because: why nothing may be saved, None where something may.
    no_parts_because: why no part of the frame may be computed by itself, and no tokens may be merged. no_regions_because: why
    the former may not be. prompt_branch: which of the predictions is that of the prompt. reference: a picture that the model is
    given to edit, of the frame of what is sampled (1 or B, C, [F,] H, W) and on its scale; None where there is none. absent:
    the branches that are not computed, whose predictions are zeros, as that of the negative prompt at CFG 1.
    """

    x: Tensor
    sigma: float
    signature: Hashable = None
    dense_because: str | None = None
    no_parts_because: str | None = None
    no_regions_because: str | None = None
    prompt_branch: int = 0
    reference: Tensor | None = None
    absent: frozenset[int] = frozenset()


class Task(Protocol):
    """What a method has to do in one dense call of the model."""

    @property
    def silent(self) -> bool:
        """Whether attention cannot be captured in that call."""


T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What one call of the model is to do. The engine makes it, the host carries it to the executor, nobody changes it.

    evaluation: the one this call is for. record: the caches that a dense call fills. compute: the caches of the regions that
    are computed instead of the frame. Both are ActivationCaches of the executor's own kind. capture: what collects
    cross-attention, None where nothing does. tasks: what methods have to do, at most one of each kind. reuse_control: whether
    residuals of control nets are recorded in dense calls and taken from there in the others; the host decides that.
    """

    evaluation: Evaluation
    record: tuple[Any, ...] = ()
    compute: tuple[Any, ...] = ()
    capture: HeatmapAccumulator | None = None
    tasks: tuple[Task, ...] = ()
    reuse_control: bool = False

    def task(self, kind: type[T]) -> T | None:
        """The task of this kind, None where there is none."""
        return next((task for task in self.tasks if isinstance(task, kind)), None)


# The host's way to do a job: returns denoised images (B, C, ...), one for each branch (positive, negative, ...), filled in the
# computed regions only where the job computes regions.
Compute = Callable[[Job], list[Tensor]]
