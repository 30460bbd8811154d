"""How far a gap may reach under a sampler that adds noise of its own: what is held between evaluations goes stale with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..time_axis import DIFFUSION, TimeAxis
from ..trace import Kind
from ..tuning import RENEWED, RENEWED_OF_FORECASTS, RENEWED_PER_PACE, UNDECIDED_ABOVE, UNDECIDED_STEPS
from .context import Context, PlannedStep

MULTIPLIED = PlannedStep("dense", "new noise in a flow, under a sampler that multiplies what a forecast is off by")
UNDECIDED = PlannedStep("dense", "what the picture will show is open yet, under new noise")
NEGLIGIBLE = 1e-3  # share of new noise under which a sampler counts as one that adds none


def renewed(
    noisy: bool, sigmas: Sequence[float], fresh: Sequence[float] | None, axis: TimeAxis = DIFFUSION
) -> tuple[float, ...]:
    """How much of the noise in the state each step between these sigmas makes anew, as far as forecasts are concerned; zeros
    under samplers that add none.

    fresh: what was measured of the sampler; None to go by whether its name says that it is `noisy`. Half of it is what the
    sampler adds of its own, the other half what the stochastic differential equation would add: the prediction also changes
    where the noise only falls. For samplers that solve this equation exactly both are the same.
    """
    position = axis.half_log_snr
    kept = [math.exp(-2 * max(0.0, position(following) - position(sigma))) for sigma, following in pairwise(sigmas)]
    if fresh is None or len(fresh) != len(kept):
        return tuple(1 - share if noisy else 0.0 for share in kept)
    if not any(share > NEGLIGIBLE for share in fresh):
        return (0.0,) * len(kept)
    return tuple(1 - math.sqrt((1 - new) * share) for new, share in zip(fresh, kept, strict=True))


def allowed(kind: Kind, pace: float, by_sampler: float) -> float:
    """How much of the noise may be new since the last dense evaluation in a step of this kind, `by_sampler` times as much as
    under a multistep sampler."""
    share = RENEWED + RENEWED_PER_PACE * pace
    by_kind = 1 if kind == "shallow" else RENEWED_OF_FORECASTS
    return min(1.0, share * by_kind * by_sampler)


def undecided(context: Context) -> int:
    """At how many steps of a flow's start it is open what the picture will show, where the sampler's noise leaves no path to
    which a corrector could bring the state back: what forecasts are off by there adds up until other things are drawn."""
    if not context.axis.is_flow:
        return 0
    above = sum(sigma > UNDECIDED_ABOVE for sigma in context.sigmas)
    return min(above, math.ceil(UNDECIDED_STEPS * context.steps))


def hold_to_noise(plan: Sequence[PlannedStep], context: Context) -> list[PlannedStep]:
    """The plan, dense at those steps at which more of the noise is new than is `allowed`, and in place of forecasts as long as
    the picture is `undecided`. In flows it is dense throughout under samplers that multiply there what a forecast is off by."""
    if context.axis.is_flow and context.traits.multiplies:
        return [step if step.kind == "dense" else MULTIPLIED for step in plan]
    held, kept, start = list(plan), 1.0, undecided(context)
    for i, step in enumerate(plan):
        kept *= 1 - context.renewed[i - 1] if i else 1.0
        if step.kind == "skipped" and i < start:
            held[i] = UNDECIDED
        elif step.kind != "dense" and 1 - kept > allowed(step.kind, context.config.pace, context.traits.may_be_renewed):
            held[i] = PlannedStep("dense", f"{1 - kept:.0%} of the noise is new since the last dense one")
        if held[i].kind == "dense":
            kept = 1.0
    return held
