"""How the methods attach to a MODEL: the only file that patches a ModelPatcher.

The clone carries keyed wrappers and a frozen config. A run's state is created when sampling starts and dropped when
it ends, also by an exception, so nothing is left behind for the next run or for other clones of the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..engine.config import HighlightConfig
from ..engine.merging.config import SDTMConfig
from ..engine.region.regions import UserMasks
from ..engine.report.numbers import as_line
from ..engine.trace import RunRecord, Trace
from .any_model import ForecastRun
from .call import ModelCall
from .context_windows import CONTEXT_HANDLER, WholeVideo, in_windows
from .dit import DiTRun
from .families import FAMILIES, family_of
from .learning import Learner
from .live import latent_colours, watch
from .methods import HIGHLIGHT, MERGING, TITLES
from .noise_mask import changing
from .run import JOB, KEY, ModelRun, Sampling, time_axis_of
from .unet import UNetRun, is_unet

log = logging.getLogger("highlight_diffusion")
WRAPPED = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)


@dataclass(frozen=True)
class MethodRequest:
    """What one node of the pack asks of a MODEL.

    config: its settings. trace: where its runs are handed out. node_id: of the node. masks: the user's. learns: whether runs
    in which everything is computed go into the model's profile.
    """

    config: Any
    trace: Trace
    node_id: str = ""
    masks: UserMasks = UserMasks()  # noqa: RUF009
    learns: bool = False


Requests = Mapping[str, MethodRequest]  # by the method's id: each method at most once
Backend = Callable[[Sampling], ModelRun]  # starts a run


def attach(
    model: ModelPatcher, config: HighlightConfig, trace: Trace, node_id: str = "", given: UserMasks | None = None,
    learns: bool = False,
) -> ModelPatcher:  # fmt: skip
    """A clone of `model` that samples with Highlight Diffusion and writes every run into `trace`.

    given: a user's masks. learns: whether runs in which everything is computed go into the model's profile. Applied again, it
    replaces what it attached before. A model of a class that is not known is forecast without regional evaluations, and the
    trace says so.
    """
    return _attached(model, HIGHLIGHT, MethodRequest(config, trace, node_id, given or UserMasks(), learns))


def attach_merging(model: ModelPatcher, config: SDTMConfig, trace: Trace, node_id: str = "") -> ModelPatcher:
    """A clone of `model` that samples with merged tokens and writes every run into `trace`; with Highlight Diffusion on the
    same model, in either order, they are one run. Where a model has no tokens that are known, nothing is merged, and the trace
    says so.
    """
    return _attached(model, MERGING, MethodRequest(config, trace, node_id))


def requests_of(model: ModelPatcher) -> Requests:
    """What nodes of the pack asked of this MODEL before."""
    found = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return found[-1].requests if found else {}


def detached(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` without any of the pack's methods."""
    clone = model.clone()
    for kind in WRAPPED:
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


def _attached(model: ModelPatcher, method: str, request: MethodRequest) -> ModelPatcher:
    others = {name: own for name, own in requests_of(model).items() if name != method}
    clone = detached(model)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _OuterSample(executor_of(model), {**others, method: request}))
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _predict_noise)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model)
    return clone


def executor_of(model: ModelPatcher) -> Backend:
    """What runs a MODEL: an executor of its own kind, or one that forecasts it and says why it does no more."""
    if is_unet(model):
        return UNetRun
    if family_of(model) is not None:
        return DiTRun
    network = model.get_model_object("diffusion_model")
    if old := next((family.title for family in FAMILIES if family.is_named(network)), None):
        why = f"{old} is built in another way in this version of ComfyUI than is known; a newer one may help"
    else:
        known = ", ".join(family.title for family in FAMILIES)
        why = (
            f"the insides of {type(model.model).__name__} ({type(network).__name__}) are not known; known are the image UNets "
            f"SD1.x, SD2.x and SDXL, the transformers {known}, and their finetunes"
        )
    return partial(ForecastRun, why=why)


class _OuterSample:
    """Creates the state of a run around the whole sampling call."""

    def __init__(self, backend: Backend, requests: Requests):
        self.backend, self.requests = backend, requests

    def __call__(self, executor: WrapperExecutor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        shapes = [tuple(shape) for shape in kwargs.get("latent_shapes") or [noise.shape]]
        run = _record(guider, shapes[0], sampler, sigmas, self.requests)
        options = guider.model_options.setdefault("transformer_options", {})
        highlight = self.requests.get(HIGHLIGHT)
        methods = {name: own.config for name, own in self.requests.items() if name != HIGHLIGHT}
        config, masks = (highlight.config, highlight.masks) if highlight else (HighlightConfig(enabled=False), UserMasks())
        noise_mask = args[0] if args else kwargs.get("denoise_mask")
        masks = replace(masks, noise=changing(guider, sampler, noise_mask, run.shape))
        state = self.backend(Sampling(config, run, guider, sampler, sigmas, masks, methods, tuple(noise.shape)))
        if any(own.learns for own in self.requests.values()):
            state.learner = Learner(guider, sampler, sigmas, run, time_axis_of(guider.model_patcher), noise_mask is not None)
        for own in self.requests.values():
            own.trace.runs.append(run)
        started = time.perf_counter()
        handler = guider.model_options.get(CONTEXT_HANDLER)
        try:
            options[KEY] = state
            if handler is not None:
                guider.model_options[CONTEXT_HANDLER] = WholeVideo(handler, state.calc_cond_batch)
            state.live = watch(run)
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.completed = True
            return result
        finally:
            del options[KEY]
            if handler is not None:
                guider.model_options[CONTEXT_HANDLER] = handler
            state.engine.settle()
            run.seconds = time.perf_counter() - started
            if state.learner:
                run.learnt = state.learner.keep()
            if state.live:
                state.live.close()
            log.info("%s: %s", " and ".join(TITLES[method] for method in self.requests), as_line(run))


def _record(guider: Any, shape: tuple[int, ...], sampler: Any, sigmas: Tensor, requests: Requests) -> RunRecord:
    """The record of a run that is about to start, on a latent of this shape."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    colours = latent_colours(guider.model_patcher.get_model_object("latent_format"))
    nodes = tuple(own.node_id for own in requests.values())
    return RunRecord(shape, name, tuple(sigmas.tolist()), nodes, colours)


def _state(model_options: Any) -> ModelRun:
    return model_options["transformer_options"][KEY]


def _predict_noise(executor: WrapperExecutor, x, timestep, model_options=None, seed=None):
    state = _state(model_options)
    state.begin_evaluation()
    denoised = executor(x, timestep, model_options, seed)
    if state.live:
        state.live.show(state.first_of(denoised))
    return denoised


def _calc_cond_batch(executor: WrapperExecutor, model, conds, x_in, timestep, model_options):
    if in_windows(model_options):
        return executor(model, conds, x_in, timestep, model_options)
    return _state(model_options).calc_cond_batch(executor, model, conds, x_in, timestep, model_options)


def _apply_model(
    executor: WrapperExecutor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    options = transformer_options or {}
    call = ModelCall(executor, x, t, c_concat, c_crossattn, control, options, kwargs)
    job = options.get(JOB)
    return call() if job is None else options[KEY].apply_model(job, call)
