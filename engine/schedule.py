"""Where the dense evaluations go: a plan over the sampler's schedule, made before the first evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import HighlightConfig
from .trace import Kind

# Samplers whose step uses one prediction only and adds no noise: the forecast's error just adds up, so gaps may grow.
FIRST_ORDER = {"euler", "ddim", "euler_cfg_pp"}
# Samplers that add fresh noise: only the denoised image is smooth along their path.
STOCHASTIC = ("ancestral", "sde", "lcm", "ddpm", "sa_solver", "seeds", "restart", "2s_a")
GROWING_GAPS = (3, 4, 5)
EVEN_GAPS = (2,)
CORRECTED_GAP = 4  # shorter gaps are forecast well enough


@dataclass(frozen=True)
class SamplerTraits:
    """What a sampler's name tells about its path.

    gaps: the dense gaps that suit it, spread over the schedule; space: what is worth forecasting under it.
    """

    gaps: tuple[int, ...]
    space: Literal["noise", "denoised"]


def traits_of(sampler: str) -> SamplerTraits:
    """Traits of a sampler by its k-diffusion name, with or without the prefix "sample_"."""
    name = sampler.removeprefix("sample_")
    if any(word in name for word in STOCHASTIC):
        return SamplerTraits(EVEN_GAPS, "denoised")
    return SamplerTraits(GROWING_GAPS if name in FIRST_ORDER else EVEN_GAPS, "noise")


@dataclass(frozen=True)
class PlannedStep:
    """`kind` is what is wanted of every evaluation in this step; what really happens is in the trace."""

    kind: Kind
    reason: str


def dense_gaps(length: int, gaps: tuple[int, ...]) -> list[int]:
    """Split `length` steps into gaps taken from `gaps`, spread evenly over the way.

    What does not fit is taken from the first gaps, so that the last ones, where the detail is, keep their rhythm.
    """
    placed, position = [], 0
    while position < length:
        gap = gaps[min(len(gaps) - 1, position * len(gaps) // length)]
        placed.append(gap)
        position += gap
    excess = position - length
    while excess and excess >= placed[0]:
        excess -= placed.pop(0)
    if excess:
        placed[0] -= excess
    return placed


def make_plan(steps: int, config: HighlightConfig, sampler: str, first: int = 0, last: int | None = None) -> list[PlannedStep]:
    """Plan `steps` steps; only those from `first` to `last` (inclusive) may be anything but dense.

    The warm-up and the last planned step are dense; each gap of four or more has one partial step in its middle, where
    the highlight is to correct the forecast.
    """
    last = steps - 1 if last is None else last
    if not config.active:
        return [PlannedStep("dense", "off" if not config.enabled else "interval 1")] * steps
    plan = [PlannedStep("dense", "outside start and end percent")] * steps
    warm = min(first + config.warmup - 1, last)
    for i in range(first, warm + 1):
        plan[i] = PlannedStep("dense", "warm-up")
    position = warm
    for gap in dense_gaps(last - warm, config.interval or traits_of(sampler).gaps):
        middle = position + gap // 2 + gap % 2 if gap >= CORRECTED_GAP and config.correct else None
        for i in range(position + 1, position + gap):
            correct = i == middle
            plan[i] = PlannedStep(
                "partial" if correct else "skipped", "highlight corrects the forecast" if correct else "forecast"
            )
        position += gap
        plan[position] = PlannedStep("dense", "last step" if position == steps - 1 else f"refresh after {gap}")
    return plan


def step_of(sigma: float, sigmas: tuple[float, ...]) -> int:
    """Index i of the step whose sigmas bracket `sigma`: sigmas[i] >= sigma > sigmas[i + 1], with 0.01% tolerance.

    Samplers evaluate between the grid's sigmas and may nudge them, so neither counting nor equality would do.
    """
    above = sum(s >= sigma * (1 - 1e-4) for s in sigmas[:-1])
    return max(0, above - 1)
