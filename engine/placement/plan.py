"""Where the dense evaluations go: a plan over the sampler's schedule, made before the first evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..config import ADAPTIVE, ForecastSpace, HighlightConfig
from ..prediction.response import Response
from ..trace import Kind
from .time_axis import Axis, log_ratio, log_sigma

# Samplers that add fresh noise: only the denoised image is smooth along their path.
STOCHASTIC = ("ancestral", "sde", "lcm", "ddpm", "sa_solver", "seeds", "restart", "2s_a")
# Samplers that extrapolate from earlier steps, and so carry a forecast's error on into the next.
MULTISTEP = ("_2m", "_3m", "multistep", "lms", "ipndm", "deis", "uni_pc", "gradient_estimation", "er_sde", "sa_solver")
CORRECTED_GAP, CORRECTED_PACE = 3, 3.0  # shorter gaps and slower paces are forecast well enough
FIRST_GAP = 3  # a longer gap right after the warm-up now and then leads to another picture
SHALLOW_PACE = 6.0  # at slower ones forecasts are better than shallow evaluations even in short schedules
FINE = 20  # steps; in shorter schedules forecasts reach so far that even an exact revision leaves something to compute
OFF = "off"  # the reason of evaluations that are computed because Highlight Diffusion is switched off
NOISY_PACE = 0.7  # of the pace, under fresh noise, where forecasts are good for less
# How much of the noise in the state may be new since the last dense evaluation under a sampler that adds noise, at pace 0 and
# more of it with each pace; with more, objects appear. Forecasts are good for less of it than shallow evaluations, for which
# this is, and samplers of one step for more than those that carry errors on. `python run.py stochastic` measured all four.
RENEWED, RENEWED_A_PACE, OF_FORECASTS, OF_ONE_STEP = 0.35, 0.01, 3 / 4, 4 / 3
NOISY_START = 2  # dense steps at the start of gaps filled with shallow evaluations under fresh noise
LOG_SHARE = 0.75  # of log sigma in the distance between evaluations, the rest is steps
FLOW_PACE = 5.0  # of a higher pace flows get a third of what is above this; their forecasts do not reach further
WARMUP, BRISK = 4, 8.0  # dense steps at the start; one less from this pace on
FLOW_WARMUP, BRIEF = 2, 12  # the same for flows, which start from sheer noise; one more in fewer steps than this


def adds_noise(sampler: str) -> bool:
    """Whether a sampler of this k-diffusion name, with or without the prefix "sample_", adds fresh noise."""
    return any(word in sampler for word in STOCHASTIC)


def solves_an_sde(sampler: str) -> bool:
    """Whether a sampler of this name adds as much noise as a stochastic differential equation has."""
    return any(word in sampler for word in ("sde", "seeds"))


def forecast_space(sampler: str, wanted: ForecastSpace = "auto", axis: Axis = log_sigma) -> Literal["noise", "denoised"]:
    """What is forecast: what is `wanted`, or what was measured to be worth it under a sampler and on an axis: the denoised
    picture under fresh noise and in flows, else the noise. On the demo transformer that is 1 to 7 dB, most of it where
    nothing but background is asked for."""
    if wanted != "auto":
        return wanted
    return "denoised" if adds_noise(sampler) or axis is log_ratio else "noise"


@dataclass(frozen=True)
class PlannedStep:
    """`kind` is what is wanted of every evaluation in this step; what really happens is in the trace."""

    kind: Kind
    reason: str


FORECAST = PlannedStep("skipped", "forecast")
HIGHLIGHT = PlannedStep("partial", "highlight corrects the forecast")
SHALLOW = PlannedStep("shallow", "outermost blocks, the others forecast")


def spread_gaps(length: int, gaps: tuple[int, ...]) -> list[int]:
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


def carries_errors(sampler: str) -> bool:
    """Whether a sampler of this name extrapolates from earlier steps."""
    return any(word in sampler for word in MULTISTEP)


def dense_tail(sampler: str) -> int:
    """How many steps at the end are to be dense: what they get wrong nothing mends."""
    return 3 if carries_errors(sampler) else 2


def paced_gaps(sigmas: Sequence[float], pace: float, tail: int = 2) -> list[int]:
    """Gaps between dense evaluations over the steps at these sigmas (descending), from the first to the last.

    A dense evaluation is due when the run has come `pace` average steps further, where distance is a quarter steps and
    three quarters log sigma: predictions change with both. A gap is at most one or two longer than the gap before it, since
    a forecast reaches no further than the slope it stands on was measured over, and the last `tail` steps are dense. The rule
    was found by comparing some hundred placements on the demo UNet under euler and dpmpp_2m; it beats even, growing and
    log-spaced gaps by 4 to 8 dB at equal cost.
    """
    last = len(sigmas) - 1
    places = [log_sigma(sigma) for sigma in sigmas]
    whole = max(places[-1] - places[0], 1e-6)
    way = [(1 - LOG_SHARE) * i / max(last, 1) + LOG_SHARE * (at - places[0]) / whole for i, at in enumerate(places)]
    limit, growth = pace / max(last, 1) * (1 + 0.05), max(1, round(pace / 2.5))
    gaps: list[int] = []
    position = 0
    while position < last:
        longest, end = gaps[-1] + growth if gaps else min(1 + growth, FIRST_GAP), position + 1
        while end <= last - tail and end - position < longest and way[end + 1] - way[position] <= limit:
            end += 1
        gaps.append(end - position)
        position = end
    return gaps


def flow_gaps(length: int, pace: float, few: bool = False) -> list[int]:
    """Gaps between dense evaluations over `length` steps of a flow: from two steps they grow by one to the pace, on average,
    and before the end they shrink again in the same way to two, since nothing mends what the last one gets wrong.

    Paces above `FLOW_PACE` grow by more, or in `few` steps to four at once, and the last gap then reaches beyond the end; those
    under three end with a gap of one. Steps alone count: schedulers of flows space them by themselves. On the demo transformer
    this is 2 to 13 dB better at equal cost than gaps that are even but for a longer warm-up and a dense end, at 12, 16, 20 and
    30 steps, under euler and dpmpp_2m; most at 12, where those were below simply taking fewer steps.
    """
    pace = min(pace, max(length, FLOW_PACE + 1))  # of a longer gap there is none, and the loops below count
    growth = max(1, math.floor(pace) - math.floor(FLOW_PACE) + 1)
    if few and pace > FLOW_PACE:
        length, pace, growth = length + (length > 0), 4.0, 2
    least = 2 if growth == 1 and pace >= 3 else 1
    gaps: list[int] = []
    left = length
    while left:
        paced = math.floor(pace * (len(gaps) + 1)) - math.floor(pace * len(gaps))
        gap = min(paced, gaps[-1] + growth if gaps else 2)
        while gap > 1 and (sum(range(gap, least - 1, -growth)) > left or gap == left > 2):
            gap -= 1
        gaps.append(gap)
        left -= gap
    return gaps


def warm_up(config: HighlightConfig, steps: int, axis: Axis = log_sigma, shallow: bool = False, noisy: bool = False) -> int:
    """Dense steps at the start: as configured, or as many as were measured to be worth it; only forecasts need several."""
    if config.warmup:
        return config.warmup
    if axis is log_ratio:
        return FLOW_WARMUP + (steps < BRIEF)
    if shallow:
        return NOISY_START if noisy else 1
    return WARMUP - (config.pace >= BRISK)


def effective_pace(config: HighlightConfig, sampler: str, axis: Axis = log_sigma) -> float:
    """The pace that suits what is forecast: less of it under fresh noise, and little more than `FLOW_PACE` in flows."""
    pace = config.pace * (NOISY_PACE if adds_noise(sampler) else 1)
    if axis is not log_ratio:
        return pace
    pace = max(pace, min(config.pace, 2.0))  # below two nothing would be saved
    return min(pace, FLOW_PACE + (pace - FLOW_PACE) / 3)


def correction_pays(steps: int, noisy: bool, response: Response | None, axis: Axis = log_sigma) -> bool:
    """Whether computing the highlight in a gap was measured to be worth at least as much as more dense evaluations.

    On the demo model and objects of at most a fifth of the frame, inside them at equal cost: under ancestral noise it is
    worth 2 to 4 dB, under Euler at 12 steps 1.5, under dpmpp_2m at 30 between nothing and 3, depending on the prompts. Not
    so under Euler at 30, where it loses up to 6: the revision at the end of a gap brings the state back exactly, and even
    an exact partial evaluation would no more than break even. On the demo transformer, a flow, it loses 0.4 to 2.7 at 12 and
    30 steps with the gaps that `flow_gaps` chooses, and gains up to 0.8 in longer ones.
    """
    if response is None:
        return True
    return axis is not log_ratio and (steps < FINE or noisy or not response.forgets)


def shallow_gaps(length: int, pace: float) -> list[int]:
    """Gaps over `length` steps that are filled with shallow evaluations, growing from the first step on, at a higher pace
    faster and further: a step gone astray early leads to another picture. The last may reach beyond the end: the very last
    step is too close to the picture for a dense evaluation to be worth it, one before it is worth more."""
    growth, longest = max(0.5, (pace - 5) / 6), max(2, round(pace / 2.75))
    gaps: list[int] = []
    while sum(gaps) < length:
        gaps.append(min(longest, 1 + int((len(gaps) + 1) * growth)))
    lands_at_the_end = bool(gaps) and sum(gaps) == length and gaps[-1] > 1
    return [*gaps[:-1], gaps[-1] - 1, 2] if lands_at_the_end else gaps


def shallow_pays(steps: int, noisy: bool, config: HighlightConfig) -> bool:
    """Whether gaps filled with shallow evaluations were measured to be worth more than forecasts: in short schedules, from
    the pace on at which forecasts would have to reach too far; under fresh noise in any. Not where forecasts are wanted
    to be corrected by the highlight, or gaps of a length."""
    wanted = config.interval is not None or config.correct == "always"
    return not wanted and (noisy or steps < FINE and config.pace >= SHALLOW_PACE)


def make_plan(
    sigmas: Sequence[float], config: HighlightConfig, first: int = 0, last: int | None = None, sampler: str = "euler",
    correcting: bool | None = None, axis: Axis = log_sigma, shallow: bool = False, anew: Sequence[float] = (),
) -> list[PlannedStep]:  # fmt: skip
    """Plan the steps at these sigmas (the final 0 left out); only `first` to `last` (inclusive) may be anything but dense.

    The warm-up is dense, and so is the last planned step, but where `shallow_gaps` or `flow_gaps` reach beyond it. When
    `correcting` (None: unless it never is to be), a gap of three or more that is long for its pace has one partial step in
    its middle, where the highlight is to correct the forecast. A second one in a gap brings little anywhere. An adaptive
    interval leaves the steps between warm-up and end open: they are planned as skipped, and `AdaptiveGaps` says while
    sampling which are not. anew: how much of the noise each step makes new (see `renewed`), none by default; where it is any,
    it ends gaps, and shallow evaluations fill all that it leaves, unless an interval or corrections are wanted.
    """
    steps = len(sigmas)
    last = steps - 1 if last is None else last
    if not config.active:
        return [PlannedStep("dense", OFF if not config.enabled else "interval 1")] * steps
    plan = [PlannedStep("dense", "outside start and end percent")] * steps
    if last < first:
        return plan
    noisy = config.interval is None and config.correct != "always" and any(anew)
    position = min(first + warm_up(config, steps, axis, shallow, noisy) - 1, last)
    for i in range(first, position + 1):
        plan[i] = PlannedStep("dense", "warm-up")
    correcting = config.correct != "never" if correcting is None else correcting
    if config.interval == ADAPTIVE:
        tail = max(position + 1, last + 1 - dense_tail(sampler))
        plan[position + 1 : tail] = [FORECAST] * (tail - position - 1)
        plan[tail : last + 1] = [PlannedStep("dense", "last steps")] * (last + 1 - tail)
        return plan
    if shallow and noisy:
        plan[position + 1 : last + 1] = [SHALLOW] * (last - position)
        return hold_to_the_noise(plan, anew, config.pace, sampler)
    if shallow and not config.interval:
        gaps, corrected = shallow_gaps(last - position, config.pace), math.inf
    elif config.interval:
        gaps, corrected = spread_gaps(last - position, config.interval), CORRECTED_GAP
    else:
        pace = max(1.0, effective_pace(config, sampler, axis))
        corrected = max(CORRECTED_GAP, pace - 2) if pace >= CORRECTED_PACE else math.inf
        if axis is log_ratio:
            gaps = flow_gaps(last - position, min(pace, FLOW_PACE) if steps < BRIEF else pace, few=steps < FINE)
        else:
            gaps = paced_gaps(sigmas[position : last + 1], pace, dense_tail(sampler))
    for gap in gaps:
        middle = position + gap // 2 + gap % 2 if gap >= corrected and correcting else None
        for i in range(position + 1, min(position + gap, last + 1)):
            plan[i] = HIGHLIGHT if i == middle else SHALLOW if shallow else FORECAST
        position += gap
        if position > last:
            break
        plan[position] = PlannedStep("dense", "last step" if position == steps - 1 else f"refresh after {gap}")
    return hold_to_the_noise(plan, anew, config.pace, sampler) if noisy else plan


def renewed(sampler: str, sigmas: Sequence[float], fresh: Sequence[float] | None, axis: Axis = log_sigma) -> list[float]:
    """How much of the noise in the state each step between these sigmas makes anew, as far as forecasts are concerned; zeros
    under samplers that add none. fresh: what was measured of the sampler; None to go by its name.

    Half of it is what the sampler adds of its own, the other half what the stochastic differential equation would add: the
    prediction also changes where the noise only falls. For samplers that solve this equation exactly both are the same.
    """
    fall = [math.exp(-2 * max(0.0, axis(following) - axis(sigma))) for sigma, following in pairwise(sigmas)]
    if fresh is None or len(fresh) != len(fall):
        return [1 - kept if adds_noise(sampler) else 0.0 for kept in fall]
    if not any(share > 1e-3 for share in fresh):
        return [0.0] * len(fall)
    return [1 - math.sqrt((1 - share) * kept) for share, kept in zip(fresh, fall, strict=True)]


def allowed(kind: Kind, pace: float, sampler: str) -> float:
    """How much of the noise may be new since the last dense evaluation in a step of this kind."""
    share = RENEWED + RENEWED_A_PACE * pace
    return min(1.0, share * (1 if kind == "shallow" else OF_FORECASTS) * (1 if carries_errors(sampler) else OF_ONE_STEP))


def hold_to_the_noise(plan: list[PlannedStep], anew: Sequence[float], pace: float, sampler: str) -> list[PlannedStep]:
    """Make those steps of a plan dense at which more of the noise is new than is `allowed` at a pace; anew: what each step
    makes new."""
    held, kept = list(plan), 1.0
    for i, step in enumerate(plan):
        kept *= 1 - anew[i - 1] if i else 1.0
        if step.kind != "dense" and 1 - kept > allowed(step.kind, pace, sampler):
            held[i] = PlannedStep("dense", f"{1 - kept:.0%} of the noise is new since the last dense one")
        if held[i].kind == "dense":
            kept = 1.0
    return held


def step_of(sigma: float, sigmas: tuple[float, ...]) -> int:
    """Index i of the step whose sigmas bracket `sigma`: sigmas[i] >= sigma > sigmas[i + 1], with 0.01% tolerance.

    Samplers evaluate between the grid's sigmas and may nudge them, so neither counting nor equality would do.
    """
    above = sum(s >= sigma * (1 - 1e-4) for s in sigmas[:-1])
    return max(0, above - 1)
