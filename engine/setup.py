"""What a run starts with: the policies of the plan, decided once from what is known of model and sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from .config import DEFAULT_PREDICTOR, HighlightConfig
from .extrapolation import PredictionType
from .method import Method
from .partial.cache import ActivationCache
from .placement.context import Context
from .placement.errors import ErrorModel
from .placement.noise import renewed
from .placement.path import said_of
from .placement.plan import Plan, regional_pays
from .placement.shallow import shallow_pays
from .placement.traits import SamplerTraits
from .prediction.forecast import Forecasts, prediction_type
from .prediction.response import ImpulseResponse
from .profile import Profile
from .region.regions import NOISE_MASK, UserMasks
from .region.tracking import MakeCaches, RegionTracker
from .run import SamplingRun
from .state import RunState
from .time_axis import DIFFUSION, TimeAxis
from .trace import RunRecord

ONLY_UNETS = "shallow evaluations were asked for, and only UNets have them"
# The sampler's impulse response for a type of prediction, None where it has none.
Respond = Callable[[PredictionType], ImpulseResponse | None]
FreshNoise = Callable[[], Sequence[float] | None]


def start_run(
    config: HighlightConfig, record: RunRecord, align: int, make_caches: MakeCaches, *, axis: TimeAxis = DIFFUSION,
    sigma_range: tuple[float, float] = (float("inf"), 0.0), masks: UserMasks | None = None,
    respond: Respond = lambda prediction: None, fresh_noise: FreshNoise = lambda: None,
    shallow: ActivationCache | None = None, methods: Sequence[Method] = (), profile: Profile | None = None,
    picture: Callable[[Tensor], Tensor] = lambda latent: latent, unknown: bool = False,
    exact: bool = False, unguided: bool = False,
) -> SamplingRun:  # fmt: skip
    """The run that `record` is to be the record of.

    align: latent cells that regions are snapped to. make_caches: makes the caches of what regions lack. axis: the model's time
    axis. sigma_range: the highest and the lowest sigma between which anything may be saved (start and end percent). masks: the
    user's. respond: gives the sampler's impulse response, by which a computed evaluation makes up for the forecasts before it.
    fresh_noise: gives how much of the noise the sampler makes anew in each step, None where that cannot be measured.
    shallow: the cache of what shallow evaluations lack, where the model has them. methods: what takes part in dense
    evaluations; those that go by the plan are left out where it has nothing for them. profile: the model's, None where nothing
    is known of it. picture: as of `RunState`.
    unknown: whether the model is of a class that is not known. exact: whether any cells can be computed by themselves, as a
    transformer's tokens can, and not windows alone. unguided: as of `SamplerTraits`.
    """
    masks = masks or UserMasks()
    traits = SamplerTraits.of(record.sampler, unguided)
    prediction = prediction_type(traits.noisy, config.forecast, axis)
    response = respond(prediction) if config.active and config.revise else None
    record.revises = response is not None
    if shallow is not None and traits.sde:
        shallow.damping = 0.0  # what enters from within is noise above all, and a copy is better than its trend
    sigmas = record.sigmas[:-1]
    measured = fresh_noise() if config.active and not traits.cfg_pp else None
    new_noise = renewed(traits.noisy, sigmas, measured, axis)
    region = RegionTracker(config, record.frame, align, make_caches, masks, exact)
    inpaints = config.active and _aim_by_noise_mask(region, record)
    masked = masks.to_the_node or inpaints
    context = Context(
        sigmas, _insisting(config, masked and not any(new_noise)), *_steps_within(sigmas, sigma_range), traits, axis,
        _wants_regional(config, len(sigmas), traits, response, axis, masked),
        _wants_shallow(config, len(sigmas), any(new_noise), masked, shallow is not None), new_noise,
        _error_model(config, sigmas, profile, prediction, response), unknown, inpaints,
    )  # fmt: skip
    plan = Plan(context, can_merge=any(own.merges for own in methods))
    record.expected_error, record.asked_error = plan.expected, plan.asked
    record.limits = (*record.limits, *said_of(context), *_lacking(config, shallow))
    return SamplingRun(RunState(
        config, record, plan, Forecasts(prediction, response, axis, config.predictor),
        region, shallow, _taking_part(methods, plan), picture=picture,
    ))  # fmt: skip


def _insisting(config: HighlightConfig, masked: bool) -> HighlightConfig:
    """The config, which with a mask asks for regional evaluations whatever they are worth."""
    return replace(config, correct="always") if masked and config.correct == "auto" else config


def _lacking(config: HighlightConfig, shallow: ActivationCache | None) -> list[str]:
    """What was asked for that a model does not have."""
    return [ONLY_UNETS] if config.active and config.shallow == "always" and shallow is None else []


def _taking_part(methods: Sequence[Method], plan: Plan) -> tuple[Method, ...]:
    """The methods of a run, without those that go by a plan which has nothing for them."""
    return tuple(own for own in methods if plan.merges or not own.by_plan)


def _error_model(
    config: HighlightConfig, sigmas: tuple[float, ...], profile: Profile | None, prediction: PredictionType,
    response: ImpulseResponse | None,
) -> ErrorModel | None:  # fmt: skip
    """What plans are expected to cost; None without a profile, and of predictors whose errors cannot be told from one."""
    if profile is None or not sigmas or config.predictor != DEFAULT_PREDICTOR:
        return None
    return ErrorModel(sigmas, profile, prediction, response, config.revise)


def _aim_by_noise_mask(region: RegionTracker, record: RunRecord) -> bool:
    """Whether a noise mask is the highlight, which then is known, and written down, from the start."""
    highlight = region.aim_by_noise_mask(record.shape[0])
    if highlight is None:
        return False
    record.highlight, record.highlight_reason = highlight, NOISE_MASK
    return True


def _steps_within(sigmas: Sequence[float], sigma_range: tuple[float, float]) -> tuple[int, int]:
    """The first and the last step within a range of sigmas; the last is below the first where there is none."""
    highest, lowest = sigma_range
    within = [i for i, sigma in enumerate(sigmas) if lowest <= sigma <= highest]
    return (within[0], within[-1]) if within else (0, -1)


def _wants_regional(
    config: HighlightConfig, steps: int, traits: SamplerTraits, response: ImpulseResponse | None, axis: TimeAxis, masked: bool
) -> bool:
    """Whether longer gaps get a regional evaluation: as the user wants, with a mask, or where it pays."""
    if config.correct != "auto":
        return config.correct == "always"
    if config.by_path:
        return masked
    return masked or regional_pays(steps, traits.noisy, None if response is None else response.one_step, axis)


def _wants_shallow(config: HighlightConfig, steps: int, noisy: bool, masked: bool, possible: bool) -> bool:
    """Whether gaps are filled with shallow evaluations: as the user wants, or where it pays; not where everything is
    highlighted, and so to be computed."""
    if config.threshold == 0:
        return False
    if config.shallow != "auto":
        return possible and config.shallow == "always"
    return possible and not masked and shallow_pays(steps, noisy, config)
