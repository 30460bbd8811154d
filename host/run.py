"""One sampling run on any of ComfyUI's models: what it does at each of the sampler's calls.

Evaluations are decided at CALC_COND_BATCH, where control nets can be skipped with the model and post-cfg functions still run.
The job that comes of it travels in the call's transformer_options to APPLY_MODEL, where every tensor is at hand, and is done
there by the executor of the kind of model: host/unet.py or host/dit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..engine.config import HighlightConfig
from ..engine.job import Job, Request
from ..engine.method import Method
from ..engine.partial.cache import ActivationCache
from ..engine.placement.plan import on_schedule
from ..engine.region.heatmap import TokenWeights
from ..engine.region.regions import UserMasks
from ..engine.region.tracking import MakeCaches
from ..engine.run import SamplingRun
from ..engine.setup import start_run
from ..engine.time_axis import DIFFUSION, FLOW, TimeAxis
from ..engine.trace import RunRecord
from . import ip_adapter
from .call import ModelCall
from .context_windows import IN_USE, WINDOW, in_windows
from .control import Crop, RecordedControl, Residuals, active_net, chain, in_effect, nets_at, reuses, without_nets
from .learning import Learner
from .live import Live
from .profiles import profile_of
from .references import REFERENCES, is_reference_cache, reference_latents
from .sampler import sampler_noise, sampler_response
from .words import weights_of

KEY = "highlight_diffusion"  # of our wrappers, and of the run in transformer_options
JOB = "highlight_diffusion_job"  # of the job of one call in its transformer_options
CONDITIONING_WITHOUT_WINDOWS = {
    "area": "area conditioning is in use",
    "gligen": "GLIGEN is in use",
    "hooks": "the conditioning carries hooks",
}

NOT_RECORDED = "prompts are computed that were not where their surroundings were recorded"


@dataclass(frozen=True)
class Sampling:
    """One call of a sampler, as OUTER_SAMPLE sees it.

    config: of Highlight Diffusion. record: where the run is written down. guider, sampler, sigmas: ComfyUI's. masks: the
    user's. methods: the configs of the methods that take part, by their ids. shape: of the latent that the sampler passes on,
    where that is not the record's: several latents packed into one, of which the record has the first's.
    """

    config: HighlightConfig
    record: RunRecord
    guider: Any
    sampler: Any
    sigmas: Tensor
    masks: UserMasks = UserMasks()  # noqa: RUF009
    methods: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @property
    def model(self) -> ModelPatcher:
        return self.guider.model_patcher

    def sigma_range(self, config: Any) -> tuple[float, float]:
        """The sigmas between which a config's start and end percent let it work."""
        sampling = self.model.get_model_object("model_sampling")
        return sampling.percent_to_sigma(config.start_percent), sampling.percent_to_sigma(config.end_percent)


def is_unguided(guider: Any) -> bool:
    """Whether a guider hands the model's prediction for the prompt on as it is: ComfyUI's own at CFG 1. Of others that is not
    known."""
    return type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise and guider.cfg == 1


class ModelRun:
    """Base of the executors, whose own part is `apply_model`.

    align, make_caches, axis, shallow, methods: as `start_run` takes them.
    """

    unknown = False  # whether nothing but a model's predictions is known
    beside_references = False  # whether parts are computed beside reference pictures
    exact = False  # whether any cells of the frame can be computed by themselves, not windows alone

    def __init__(
        self, sampling: Sampling, align: int, make_caches: MakeCaches, axis: TimeAxis = DIFFUSION,
        shallow: ActivationCache | None = None, methods: Sequence[Method] = (),
    ):  # fmt: skip
        self.guider, self.config, self.record = sampling.guider, sampling.config, sampling.record
        self.shape = sampling.shape or sampling.record.shape
        shapes = self.shape[1:], self.record.shape[1:]
        self.engine: SamplingRun = start_run(
            sampling.config, sampling.record, align, make_caches, axis=axis, masks=sampling.masks, shallow=shallow,
            sigma_range=sampling.sigma_range(sampling.config), methods=methods,
            respond=partial(sampler_response, sampling.sampler, sampling.model, sampling.sigmas),
            fresh_noise=partial(sampler_noise, sampling.sampler, sampling.model, sampling.sigmas),
            profile=profile_of(sampling.model, axis) if sampling.config.active else None,
            unknown=self.unknown, exact=self.exact, unguided=is_unguided(sampling.guider),
            picture=partial(first_latent, shapes=shapes),  # no method of its own: the MODEL is to go with its last user
        )  # fmt: skip
        self.words: dict[Any, TokenWeights | None] = {}
        self.no_parts: str | None = None  # why this graph cannot be computed in part, once that is known
        self.no_regions: str | None = None  # why this model cannot be, although its tokens can be merged
        self.calls = 0
        self.live: Live | None = None
        self.learner: Learner | None = None
        self.control = RecordedControl()

    @property
    def frame(self) -> tuple[int, int]:
        """The latent's (H, W)."""
        return self.record.frame

    def first_of(self, latent: Tensor) -> Tensor:
        """The latent that the record is of, where several are packed into one; else the latent itself."""
        return self.engine.state.picture(latent)

    def apply_model(self, job: Job, call: ModelCall) -> Tensor:
        """Do a job in one call of the model; returns its denoised rows."""
        raise NotImplementedError

    def note_grouped_call(self, call: ModelCall) -> bool:
        """Whether a call has only some of the batch's pictures, as where another node slides over the frames of a video. From
        then on nothing is computed in part, since a region would belong to another picture in every call."""
        whole = len(call.x) == len(call.options["uuids"]) * self.record.shape[0]
        if whole or tuple(self.first_of(call.x).shape[-2:]) != self.frame:
            return False
        self.no_parts = "another node computes the pictures of the batch in groups"
        return True

    def begin_evaluation(self) -> None:
        """The sampler asks for a prediction; the first batch of conds that follows is the evaluation itself."""
        self.calls = 0

    # -- CALC_COND_BATCH -----------------------------------------------------------------------------------------

    def calc_cond_batch(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        """Answer one batch of conds: the evaluation itself, or a further pass of PAG, SLG or SAG, which runs another model in
        effect and so is computed as it is."""
        self.calls += 1
        if self.calls > 1:
            return executor(model, conds, x_in, timestep, model_options)
        sigma = on_schedule(self.engine.state.finite.sigma_of(timestep, x_in), self.record.sigmas, timestep.dtype)
        request = self._request(conds, x_in, sigma, model_options)
        unseen = bool(request.dense_because or self._unseen_because(model_options))
        nets = nets_at(conds, sigma)
        reusable = bool(nets) and reuses(self.config.control, nets)

        def compute(job: Job) -> list[Tensor]:
            reused = bool(job.compute) and reusable
            job.evaluation.control = "" if not nets else "reused" if reused else "computed"
            if unseen:  # such calls are made as they are, since they may be of another latent, or in several threads
                return executor(model, conds, x_in, timestep, model_options)
            carried = {**model_options.get("transformer_options", {}), JOB: replace(job, reuse_control=reusable)}
            carried.pop(WINDOW, None)  # of the evaluation before
            options = {**model_options, "transformer_options": carried}
            return executor(model, without_nets(conds, sigma) if reused else conds, x_in, timestep, options)

        outputs = self.engine.evaluate(request, compute, ran_out)
        if self.learner:
            self.learner.add(x_in, outputs, sigma)
        return outputs

    def _request(self, conds, x_in: Tensor, sigma: float, model_options: dict) -> Request:
        """What is asked for, and what else is at work: some things rule out regions, some rule out saving anything."""
        for cond in (c for group in conds if group for c in group):
            if cond["uuid"] not in self.words:
                self.words[cond["uuid"]] = weights_of(cond)
        branch = self._prompt_branch(conds)
        adapters = ip_adapter.active(model_options.get("transformer_options", {}), sigma)
        return Request(
            x_in, sigma, (_signature(conds, x_in, sigma), adapters), self._dense_because(x_in, model_options),
            self.no_parts or self._unseen_because(model_options) or self._beside(conds, sigma, model_options),
            self.no_regions, branch, self._reference(conds[branch], x_in),
            frozenset(i for i, group in enumerate(conds) if group is None),
        )  # fmt: skip

    def _reference(self, group: list | None, x_in: Tensor) -> Tensor | None:
        """The first reference of the prompt's conds that has the frame of what is sampled, None where there is none."""
        given = [latent for cond in group or () for latent in reference_latents(cond)]
        own = self.first_of(x_in)
        return next((latent for latent in given if latent.shape[1:] == own.shape[1:] and len(latent) in (1, len(own))), None)

    def windows_because(self, model_options: dict) -> str | None:
        """Why nothing is done in the context windows that an evaluation is computed in, or None."""
        return IN_USE if in_windows(model_options) else None

    def _unseen_because(self, model_options: dict) -> str | None:
        """Why the model's calls are left as they are, so that an evaluation is computed whole or forecast, or None. On several
        GPUs each is in a thread of its own and on a copy of the model."""
        return "several GPUs share the work" if "multigpu_clones" in model_options else self.windows_because(model_options)

    def _beside(self, conds, sigma: float, model_options: dict) -> str | None:
        """Why parts cannot be computed beside what else is at work, or None."""
        nets = in_windows(model_options) and nets_at(conds, sigma)
        if nets:
            return f"{IN_USE} beside a control net"
        return foreign(in_effect(conds, sigma), model_options, self.beside_references)

    def _prompt_branch(self, conds: list) -> int:
        """Which of the batches of conds is the prompt's."""
        return next((i for i, group in enumerate(conds) if group and self._is_positive(group[0]["uuid"], i)), 0)

    def _dense_because(self, x_in: Tensor, model_options: dict) -> str | None:
        """Why nothing may be saved, or None."""
        if "ar_state" in model_options.get("transformer_options", {}):
            return "the sampler keeps keys and values of earlier frames, which a forecast would not renew"
        return other_latent(x_in, self.shape)

    # -- control nets --------------------------------------------------------------------------------------------

    def cropped_control(
        self, job: Job, control: Residuals | None, crop: Callable[[ActivationCache], Crop]
    ) -> list[Residuals]:  # fmt: skip
        """The residuals of a dense call for each region that is recorded; none where nothing will use them. Call it before the
        model, which empties the lists."""
        return [crop(region)(control) for region in job.record] if control and job.reuse_control else []

    def keep_control(self, job: Job, call: ModelCall, cropped: Sequence[Residuals]) -> None:
        """Add what `cropped_control` returned to the recordings, after the call."""
        for region, residuals in zip(job.record, cropped, strict=False):
            self.control.keep(region, tuple(call.keys), residuals, len(call.x))

    def control_in(self, job: Job, region: ActivationCache, call: ModelCall, crop: Crop) -> Residuals | None:
        """The residuals of a call for a region: as recorded, or cropped where the nets did run."""
        if call.control is None:
            return None
        return self.control.at(region, call.keys, job.evaluation.sigma) if job.reuse_control else crop(call.control)

    # -- conds ---------------------------------------------------------------------------------------------------

    def positive_rows(self, call: ModelCall) -> list[tuple[int, Any, TokenWeights | None]]:
        """(row of the call, cond, its words) for the positive conds of a call."""
        keys = enumerate(zip(call.options["uuids"], call.options["cond_or_uncond"], strict=True))
        return [(i, uuid, self._words_in(call, uuid)) for i, (uuid, index) in keys if self._is_positive(uuid, index)]

    def _words_in(self, call: ModelCall, uuid: Any) -> TokenWeights | None:
        """A prompt's words, as often as the call repeats its text."""
        weights, text = self.words.get(uuid), call.c_crossattn
        return weights if weights is None or text is None else weights.repeated(text.shape[1])

    def _is_positive(self, uuid, index: int) -> bool:
        """Whether a cond is a positive one: by the guider's own name for it, else by the order of CFGGuider."""
        named = getattr(self.guider, "conds", {}).get("positive")
        return any(c.get("uuid") == uuid for c in named) if named else index == 0


def first_latent(latent: Tensor, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    """The first of several latents that are packed into one (B, ...); any other tensor as it is. shapes: of what is packed,
    and of the first, both without the batch."""
    packed, own = shapes
    if packed == own or tuple(latent.shape[1:]) != packed:
        return latent
    return latent.flatten(1)[:, : prod(own)].reshape(-1, *own)


def ran_out(error: RuntimeError) -> bool:
    """Whether the device's memory ran out, by ComfyUI's own judgement (its `is_oom` came after 0.8)."""
    judge = getattr(comfy.model_management, "is_oom", None)
    return judge(error) if judge else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def time_axis_of(model: ModelPatcher) -> TimeAxis:
    """The time axis of a MODEL. What maps pictures to pictures along a schedule of sigmas above 1 is no flow from noise,
    although ComfyUI derives its class from that of flows."""
    sampling = model.get_model_object("model_sampling")
    is_flow = isinstance(sampling, comfy.model_sampling.CONST) and float(sampling.sigma_max) <= 1
    return FLOW if is_flow else DIFFUSION


def other_latent(x: Tensor, shape: tuple[int, ...]) -> str | None:
    """Why x is not the latent (B, C, [frames,] H, W) that a run began with, or None where it is."""
    if tuple(x.shape[-2:]) != shape[-2:]:
        return f"the frame is {tuple(x.shape[-2:])}, not {shape[-2:]}"
    if len(x) != shape[0]:
        return f"{len(x)} of {shape[0]} pictures are computed at a time"
    return None if tuple(x.shape) == shape else f"the latent is {tuple(x.shape)}, not {shape}"


def check_latent(shape: tuple[int, ...], model: ModelPatcher) -> None:
    """Raises ValueError where a latent of this shape is none of the model's."""
    latent = model.get_model_object("latent_format")
    axes = 2 + latent.latent_dimensions
    if len(shape) != axes or shape[1] != latent.latent_channels:
        raise ValueError(
            f"the latent has shape {shape}, but this model samples {axes - 2} dimensions with {latent.latent_channels} latent "
            "channels; make it with the empty latent node of this model, or encode it with its own VAE"
        )


def foreign(conds, model_options: dict, beside_references: bool = False) -> str | None:
    """Why parts cannot be computed beside what other nodes attached, or None."""
    options = model_options.get("transformer_options", {})
    wraps = "another node wraps the model's function" if "model_function_wrapper" in model_options else None
    return _foreign_conds(conds, beside_references) or wraps or _foreign_patches(options) or _foreign_wrappers(options)


def _foreign_conds(conds, beside_references: bool) -> str | None:
    """What a conditioning carries that parts are not computed beside, or None."""
    all_conds = [cond for group in conds if group for cond in group]
    for name, reason in CONDITIONING_WITHOUT_WINDOWS.items():
        if any(cond.get(name) is not None for cond in all_conds):
            return reason
    used = {name for cond in all_conds for name in cond.get("model_conds", {})}
    return "reference images are in use" if used.intersection(REFERENCES) and not beside_references else None


def _foreign_patches(options: dict) -> str | None:
    """Which patches of other nodes parts are not computed beside, or None."""
    for name in ("patches", "patches_replace"):
        used = [key for key, value in options.get(name, {}).items() if value and not _known(key, value)]
        if used:
            return f"another node patches {', '.join(used)}"
    return None


def _foreign_wrappers(options: dict) -> str | None:
    """Which wrappers of other nodes parts are not computed beside, or None."""
    for kind in ("apply_model", "diffusion_model"):
        keys = [key for key, value in options.get("wrappers", {}).get(kind, {}).items() if value and key != KEY]
        if keys:
            return f"another node wraps {kind} ({', '.join(str(key) for key in keys)})"
    return None


def _known(key: str, patches: Any) -> bool:
    """Whether patches are of a kind that parts are computed beside."""
    if isinstance(patches, dict):
        return key == "attn2" and all(ip_adapter.is_ip_adapter(p) for p in patches.values())
    return all(is_reference_cache(patch) for patch in patches)


def _signature(conds, x: Tensor, sigma: float) -> tuple:
    """What is being evaluated: the conds, their control nets and the strengths of their hooks in effect at this sigma, and the
    latent's shape and dtype."""

    def nets(cond: dict) -> tuple:
        return tuple((id(net), active_net(net, sigma)) for net in chain(cond.get("control")))

    def hooks(cond: dict) -> tuple[int, ...]:
        """How many keyframes of each hook have begun."""
        found = getattr(cond.get("hooks"), "hooks", ())
        return tuple(sum(float(frame.start_t) >= sigma for frame in hook.hook_keyframe.keyframes) for hook in found)

    groups = tuple(
        None if group is None else tuple((c.get("uuid"), nets(c), hooks(c)) for c in group) for group in in_effect(conds, sigma)
    )
    return groups, tuple(x.shape), x.dtype, x.device
