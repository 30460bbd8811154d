"""How the methods attach to a MODEL: the only file that patches a ModelPatcher.

The clone carries keyed wrappers and a frozen config. A run's state is created when sampling starts and dropped when
it ends, also by an exception, so nothing is left behind for the next run or for other clones of the model.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..engine.config import HighlightConfig
from ..engine.merging.sdtm import SDTMConfig
from ..engine.region.highlight import Given
from ..engine.report.numbers import as_line
from ..engine.trace import Run, Trace
from .dit import DiTRun
from .families import FAMILIES, family_of
from .live import latent_colours, watch
from .run import KEY, ModelRun
from .unet import UNetRun, is_unet

log = logging.getLogger("highlight_diffusion")
TITLES = {"highlight": "Highlight Diffusion", "merging": "SDTM Token Merging"}
WRAPPED = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)


@dataclass(frozen=True)
class Asked:
    """What the pack's nodes ask of one MODEL: each of the two methods at most once, with the trace it hands out."""

    highlight: HighlightConfig = HighlightConfig(enabled=False)
    given: Given = Given()
    merging: SDTMConfig | None = None
    traces: tuple[tuple[str, Trace, str], ...] = ()  # method, trace, node id

    def by(self, method: str, trace: Trace, node_id: str) -> tuple[tuple[str, Trace, str], ...]:
        """The traces once this method's node hands out this one."""
        return (*(own for own in self.traces if own[0] != method), (method, trace, node_id))


def attach(
    model: ModelPatcher, config: HighlightConfig, trace: Trace, node_id: str = "", given: Given | None = None
) -> ModelPatcher:
    """A clone of `model` that samples with Highlight Diffusion and writes every run into `trace`.

    `given` holds a user's masks. Applied again, it replaces what it attached before. Raises ValueError for a model that
    is not supported.
    """
    executor, asked = executor_of(model), asked_of(model)
    traces = asked.by("highlight", trace, node_id)
    return _attached(model, executor, replace(asked, highlight=config, given=given or Given(), traces=traces))


def attach_merging(model: ModelPatcher, config: SDTMConfig, trace: Trace, node_id: str = "") -> ModelPatcher:
    """A clone of `model` that samples with merged tokens and writes every run into `trace`; with Highlight Diffusion on the
    same model, in either order, they are one run. Raises ValueError for a model that is not supported.
    """
    if is_unet(model):
        raise ValueError(
            "SDTM Token Merging is for diffusion transformers, and this is a UNet; ComfyUI's own node TomePatchModel merges "
            "tokens of UNets, and Highlight Diffusion supports them"
        )
    executor, asked = executor_of(model), asked_of(model)
    return _attached(model, executor, replace(asked, merging=config, traces=asked.by("merging", trace, node_id)))


def asked_of(model: ModelPatcher) -> Asked:
    """What nodes of the pack asked of this MODEL before."""
    found = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return found[-1].asked if found else Asked()


def _attached(model: ModelPatcher, executor: type[ModelRun], asked: Asked) -> ModelPatcher:
    clone = model.clone()
    for kind in WRAPPED:
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _OuterSample(executor, asked))
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _predict_noise)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model)
    return clone


def executor_of(model: ModelPatcher) -> type[ModelRun]:
    """What runs a MODEL in part. Raises ValueError naming the model where nothing does, with what is supported."""
    if is_unet(model):
        return UNetRun
    if family_of(model) is not None:
        return DiTRun
    network = model.get_model_object("diffusion_model")
    if old := next((family.title for family in FAMILIES if family.names(network)), None):
        raise ValueError(f"{old} is built in another way in this version of ComfyUI than is supported; update ComfyUI")
    transformers = ", ".join(family.title for family in FAMILIES)
    raise ValueError(
        f"Highlight Diffusion does not support {type(model.model).__name__} ({type(network).__name__}) yet; it supports "
        f"the image UNets SD1.x, SD2.x and SDXL, the transformers {transformers}, and their finetunes"
    )


class _OuterSample:
    """Creates the state of a run around the whole sampling call."""

    def __init__(self, executor: type[ModelRun], asked: Asked):
        self.executor, self.asked = executor, asked

    def __call__(self, executor: WrapperExecutor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        function = getattr(sampler, "sampler_function", None)
        name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
        colours = latent_colours(guider.model_patcher.get_model_object("latent_format"))
        asked = self.asked
        nodes = tuple(node for _, _, node in asked.traces)
        run = Run(tuple(noise.shape), name, tuple(float(s) for s in sigmas), nodes, colours)
        options = guider.model_options.setdefault("transformer_options", {})
        merging = {"merging": asked.merging} if asked.merging is not None else {}
        state = options[KEY] = self.executor(asked.highlight, run, guider, asked.given, sampler, sigmas, **merging)
        for _, trace, _ in asked.traces:
            trace.runs.append(run)
        started = time.perf_counter()
        try:
            state.live = watch(run)
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.completed = True
            return result
        finally:
            del options[KEY]
            state.engine.settle()
            run.seconds = time.perf_counter() - started
            if state.live:
                state.live.close()
            log.info("%s: %s", " and ".join(TITLES[method] for method, _, _ in asked.traces), as_line(run))


def _state(model_options: dict) -> ModelRun:
    return model_options["transformer_options"][KEY]


def _predict_noise(executor: WrapperExecutor, x, timestep, model_options=None, seed=None):
    state = _state(model_options)
    state.begin_evaluation()
    denoised = executor(x, timestep, model_options, seed)
    if state.live:
        state.live.show(denoised)
    return denoised


def _calc_cond_batch(executor: WrapperExecutor, model, conds, x_in, timestep, model_options):
    return _state(model_options).calc_cond_batch(executor, model, conds, x_in, timestep, model_options)


def _apply_model(
    executor: WrapperExecutor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    options = transformer_options or {}
    return options[KEY].apply_model(executor, x, t, c_concat, c_crossattn, control, options, **kwargs)
