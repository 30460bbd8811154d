"""The cheapest way through the schedule: which steps are dense, by a shortest path over gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..config import HighlightConfig
from ..tuning import CAREFUL_DB, LEAST_UNGUIDED, REGIONAL_COST, REGIONAL_GAP, UNGUIDED_PACE, UNGUIDED_SCALE
from .context import FORECAST, Context, PlannedStep, filled


@dataclass(frozen=True)
class Paths:
    """The best plans of a schedule, one for every number of dense steps.

    dense: the dense steps of each plan, fewest first. errors: the mean square of the result's error that each has.
    """

    dense: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]


def cheapest(costs: np.ndarray, start: int, end: int) -> Paths:
    """All plans from `start`, which is dense as the step before it is, to `end`, the first step after the free ones.

    costs: of the gap from a to b with p dense before it, as [a, a - p - 1, b - a - 1]; infinite where there is none. By
    dynamic programming over the last two dense steps and the number of dense ones.
    """
    longest, most = costs.shape[1], end - start
    best = np.full((end + 1, most + 1, longest), np.inf)  # [a, dense steps after start, a - p - 1]
    came = np.zeros((end + 1, most + 1, longest), dtype=int)  # the gap before that one
    best[start, 0, 0] = 0.0
    for a in range(start, end):
        count = min(longest, end - a)
        through = best[a, :, :, None] + costs[a, None, :, :count]
        gap = through.argmin(1)
        value = np.take_along_axis(through, gap[:, None], 1)[:, 0]
        for d in range(count):
            shift = int(a + d + 1 < end)  # the end is not counted
            best[a + d + 1, shift:, d] = value[: most + 1 - shift, d]
            came[a + d + 1, shift:, d] = gap[: most + 1 - shift, d]
    plans, errors = [], []
    for count in range(most):
        gap = int(best[end, count].argmin())
        if np.isfinite(best[end, count, gap]):
            plans.append(_followed(came, start, end, count, gap))
            errors.append(float(best[end, count, gap]))
    return Paths(tuple(plans), tuple(errors))


def _followed(came: np.ndarray, start: int, end: int, count: int, gap: int) -> tuple[int, ...]:
    """The dense steps after `start` that lead to `end`."""
    steps: list[int] = []
    at = end
    while at > start:
        at, gap, count = at - gap - 1, int(came[at, count, gap]), count - int(at < end)
        steps.append(at)
    return tuple(sorted(set(steps) - {start}))


def dense_steps(steps: int, speed: float) -> int:
    """How many of so many steps are dense where a run is to be `speed` times cheaper."""
    return round(steps / speed)


def forecast_in_few(context: Context) -> int | None:
    """How many steps a preset forecasts in few steps without guidance; None elsewhere."""
    few = context.unguided_few and context.steps >= LEAST_UNGUIDED
    if not few or context.inpaints or context.config.by_path or context.config.interval is not None:
        return None
    return math.floor((context.pace + UNGUIDED_PACE) / UNGUIDED_SCALE * (context.steps - 1))


def places_a_pace(context: Context) -> bool:
    """Whether the path says where the dense steps go that a pace leaves: forecasts alone may fill the gaps, no new noise ends
    them, and the sampler's response and the model are known well enough."""
    config, errors = context.config, context.errors
    if errors is None or config.by_path or config.interval is not None or forecast_in_few(context) is not None:
        return False
    forecasts_alone = not (context.shallow or context.inpaints or config.correct == "always" or any(context.renewed))
    return forecasts_alone and errors.exact and config.revise and context.careful_gap is None


def dense_at_cost(plan: Sequence[PlannedStep]) -> int:
    """How many dense steps cost as much as a plan of dense, regional and forecast ones."""
    kinds = [step.kind for step in plan]
    return round(kinds.count("dense") + REGIONAL_COST * kinds.count("partial"))


def chosen(paths: Paths, context: Context, start: int) -> tuple[int, ...]:
    """The plan that the config asks for: with as many dense steps as its speed or its preset leaves, and with as many more as
    its limit of the error takes; the densest where none is good enough."""
    config, errors = context.config, context.errors
    if (forecast := forecast_in_few(context)) is not None:
        least = context.steps - forecast
    else:
        least = dense_steps(context.steps, config.speed) if config.speed else 0
    allowed = least - (context.steps - (context.last - start))
    wanted = config.fidelity + (CAREFUL_DB if context.careful_gap else 0)
    for dense, error in zip(paths.dense, paths.errors, strict=True):
        good = errors is None or not config.fidelity or errors.decibels(error) >= wanted
        if good and len(dense) >= allowed:
            return dense
    return tuple(range(start + 1, context.last + 1))


def nothing_left(config: HighlightConfig) -> str:
    """Why a path computes every step."""
    if config.fidelity:
        return f"a fidelity of {config.fidelity:g} dB leaves nothing to forecast"
    return f"a speed of {config.speed:g} leaves nothing to forecast" if config.speed else "too few steps to forecast one"


def said_of(context: Context) -> tuple[str, ...]:
    """What is to be said of a path, for people: nothing, or that it is a careful one, and what would make it a better one."""
    if context.careful_gap is None or not (context.config.active and context.config.by_path):
        return ()
    said = (
        f"planned with care: no gap is longer than {context.careful_gap} steps, whatever speed or fidelity ask for, since this "
        "model has no profile of its own; Profile a Model makes one"
    )
    return (said,)


class ShortestPath:
    """Gaps by the expected error of the result."""

    def suits(self, context: Context) -> bool:
        return context.errors is not None and (context.config.by_path or forecast_in_few(context) is not None)

    def place(self, context: Context, start: int) -> list[PlannedStep]:
        if context.errors is None or start >= context.last:
            return [PlannedStep("dense", "last steps")] * (context.last - start)
        costs, end = context.errors.costs, context.last + 1
        if (longest := context.careful_gap) is not None:
            costs = costs[:, :longest, :longest]
        dense = chosen(cheapest(costs, start, end), context, start)
        if len(dense) == context.last - start:
            return [PlannedStep("dense", nothing_left(context.config))] * len(dense)
        ends = [start, *dense, context.last + 1]
        gaps = [b - a for a, b in pairwise(ends)]
        return filled(context, start, gaps, FORECAST, REGIONAL_GAP if context.regional else math.inf)
