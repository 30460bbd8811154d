"""What a placement is given, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import HighlightConfig
from ..time_axis import DIFFUSION, TimeAxis
from ..trace import Kind
from ..tuning import CAREFUL_GAP, FEW_STEPS, GAP_IN_FEW_STEPS, NOISY_PACE, REGIONAL_GAP, REGIONAL_PACE
from .errors import ErrorModel
from .traits import SamplerTraits


@dataclass(frozen=True)
class PlannedStep:
    """`kind` is what is wanted of every evaluation in this step; what really happens is in the trace. merged: whether a dense
    one is to be computed on merged tokens."""

    kind: Kind
    reason: str
    merged: bool = False


FORECAST = PlannedStep("skipped", "forecast")
REGIONAL = PlannedStep("partial", "highlight corrects the forecast")
SHALLOW = PlannedStep("shallow", "outermost blocks, the others forecast")


@dataclass(frozen=True)
class Context:
    """What is known when a plan is made.

    sigmas: of the steps, descending, the final 0 left out. first, last: the steps between which (both included) anything but
    dense evaluations is allowed. regional: whether longer gaps get a regional evaluation. shallow: whether gaps are filled with
    shallow evaluations. renewed: how much of the noise each step makes anew, one fewer than there are steps, none by default.
    errors: what plans are expected to cost, None where nothing is known of the model. unknown: whether the model is of a class
    that is not known. inpaints: whether the sampler puts back what is outside the highlight, so that nothing but the highlight
    has to be right.
    """

    sigmas: tuple[float, ...]
    config: HighlightConfig
    first: int
    last: int
    traits: SamplerTraits = SamplerTraits()
    axis: TimeAxis = DIFFUSION
    regional: bool = True
    shallow: bool = False
    renewed: tuple[float, ...] = ()
    errors: ErrorModel | None = None
    unknown: bool = False
    inpaints: bool = False

    @classmethod
    def of(
        cls, sigmas: Sequence[float], config: HighlightConfig, sampler: str = "euler", axis: TimeAxis = DIFFUSION,
        first: int = 0, last: int | None = None, regional: bool | None = None, shallow: bool = False,
        renewed: Sequence[float] = (), errors: ErrorModel | None = None, inpaints: bool = False,
        unguided: bool = False,
    ) -> Context:  # fmt: skip
        """The context of a schedule under a sampler, over all of its steps and with regional evaluations unless the config
        or the arguments say otherwise."""
        last = len(sigmas) - 1 if last is None else last
        regional = config.correct != "never" if regional is None else regional
        traits = SamplerTraits.of(sampler, unguided)
        return cls(
            tuple(sigmas), config, first, last, traits, axis, regional, shallow, tuple(renewed), errors, inpaints=inpaints
        )

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def unguided_few(self) -> bool:
        """Whether these are few steps of a flow without guidance, as turbo models are sampled in."""
        return self.axis.is_flow and self.traits.unguided and self.steps < FEW_STEPS

    @property
    def careful_gap(self) -> int | None:
        """The longest gap of a path that is found by another model's profile, where that may be wrong enough to spoil a
        picture: in few steps, but in flows without guidance, and on models of an unknown class. None for any gap."""
        if self.errors is None or not self.errors.profile.bundled:
            return None
        if self.steps < FEW_STEPS and (self.unknown or not self.unguided_few):
            return GAP_IN_FEW_STEPS
        return CAREFUL_GAP if self.unknown else None

    @property
    def ends_gaps_by_noise(self) -> bool:
        """Whether new noise ends gaps: where there is any, unless an interval or corrections are wanted."""
        return self.config.interval is None and self.config.correct != "always" and any(self.renewed)

    @property
    def pace(self) -> float:
        """The config's pace, less of it under fresh noise, where forecasts are good for less."""
        return self.config.pace * (NOISY_PACE if self.traits.noisy else 1)


class Placement(Protocol):
    """Decides where dense evaluations go. A new one is a class in a file of this folder and a row in `plan.PLACEMENTS`."""

    def suits(self, context: Context) -> bool:
        """Returns whether this placement is the one to use."""

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        """Returns what the steps after `start`, which is dense, up to `context.last` are to do."""


def regional_gap(pace: float) -> float:
    """The least length of a gap that gets a regional evaluation: one that is long for its pace, infinite at slow paces."""
    return max(REGIONAL_GAP, pace - 2) if pace >= REGIONAL_PACE else math.inf


def refresh(step: int, gap: int, steps: int) -> PlannedStep:
    """The dense step at the end of a gap."""
    return PlannedStep("dense", "last step" if step == steps - 1 else f"refresh after {gap}")


def filled(
    context: Context, start: int, gaps: list[int], filler: PlannedStep, regional_from: float = math.inf
) -> list[PlannedStep]:
    """Lay gaps out over the steps after `start`.

    filler: what fills them. regional_from: the least length of a gap that has one regional evaluation in its middle, where
    the context wants any. The last gap may reach beyond the last step.
    """
    placed: list[PlannedStep] = []
    count = context.last - start
    for gap in gaps:
        inner = [filler] * (gap - 1)
        if context.regional and gap >= regional_from:
            inner[gap // 2 + gap % 2 - 1] = REGIONAL
        end = start + len(placed) + gap
        placed += [*inner, refresh(end, gap, context.steps)]
        if len(placed) >= count:
            break
    return placed[:count]
