"""One sampling run on any of ComfyUI's models: what it does at each of the sampler's calls.

Evaluations are decided at CALC_COND_BATCH, where control nets can be skipped with the model and post-cfg functions
still run; what is partial of them is computed at APPLY_MODEL, where every tensor of a call is at hand, by the
executor of the kind of model: host/unet.py or host/dit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..engine.config import HighlightConfig
from ..engine.partial.cache import Key, Surroundings
from ..engine.placement.time_axis import Axis, log_sigma
from ..engine.region.heatmap import TokenWeights
from ..engine.region.highlight import Given
from ..engine.run import HighlightRun, Surround
from ..engine.trace import Evaluation, Run
from . import ip_adapter
from .control import Crop, RecordedControl, Residuals, active_cond, active_net, chain, nets_at, reuses, without_nets
from .live import Live
from .sampler import sampler_noise, sampler_response
from .words import weights_of

KEY = "highlight_diffusion"  # of our wrappers and of the run in transformer_options
CONDITIONING_WITHOUT_WINDOWS = {
    "area": "area conditioning is in use",
    "gligen": "GLIGEN is in use",
    "hooks": "the conditioning carries hooks",
}


class ModelRun:
    """Base of the executors. `apply_model` is theirs to write: it computes `self.computed`, or the whole model while
    `self.recorded` are recorded."""

    def __init__(
        self, config: HighlightConfig, run: Run, guider: Any, given: Given, sampler: Any, sigmas: Tensor, align: int,
        surround: Surround, axis: Axis = log_sigma, whole: Surroundings | None = None,
    ):  # fmt: skip
        self.guider = guider
        model = guider.model_patcher
        sampling = model.get_model_object("model_sampling")
        first, last = sampling.percent_to_sigma(config.start_percent), sampling.percent_to_sigma(config.end_percent)
        respond = partial(sampler_response, sampler, model, sigmas)
        self.engine = HighlightRun(
            config,
            run,
            tuple(run.shape[-2:]),
            align,
            first,
            last,
            surround,
            given,
            respond,
            axis,
            whole=whole,
            fresh=sampler_noise(sampler, model, sigmas) if config.active else None,
        )
        self.words: dict[Any, TokenWeights | None] = {}
        self.no_parts: str | None = None  # why this graph cannot be computed in part, once that is known
        self.calls = 0
        self.live: Live | None = None
        self.current: Evaluation | None = None
        self.recorded: Sequence[Surroundings] = ()
        self.computed: Sequence[Surroundings] = ()
        self.control = RecordedControl()
        self.reuses_control = False  # in partial evaluations, as far as nets run at the present sigma

    def apply_model(self, executor, x: Tensor, t, c_concat, c_crossattn, control, options: dict, **kwargs) -> Tensor:
        raise NotImplementedError

    def in_groups(self, x: Tensor, options: dict) -> bool:
        """Whether a call has but some of the batch's pictures, as where another node slides over its frames. Then nothing
        is recorded or computed in part, since a window would belong to another picture in every call."""
        whole = len(x) == len(options["uuids"]) * self.engine.trace.shape[0]
        if whole or tuple(x.shape[-2:]) != self.engine.frame:
            return False
        self.no_parts = "another node computes the pictures of the batch in groups"
        return True

    def begin_evaluation(self) -> None:
        """The sampler asks for a prediction; the first batch of conds that follows is the evaluation itself."""
        self.calls = 0

    # -- CALC_COND_BATCH -----------------------------------------------------------------------------------------

    def calc_cond_batch(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
        self.calls += 1
        if self.calls > 1:  # extra passes of PAG, SLG, SAG: another model in effect, so never mixed with the forecast
            return executor(model, conds, x_in, timestep, model_options)
        self._look_around(conds, x_in, model_options)
        sigma = float(timestep.flatten()[0])
        nets = nets_at(conds, sigma)
        self.reuses_control = bool(nets) and reuses(self.engine.config.control, nets)

        def compute(evaluation: Evaluation, recorded: Sequence[Surroundings], computed: Sequence[Surroundings]) -> list[Tensor]:
            self.current, self.recorded, self.computed = evaluation, recorded, computed
            reused = bool(computed) and self.reuses_control
            evaluation.control = "" if not nets else "reused" if reused else "computed"
            try:
                return executor(model, without_nets(conds, sigma) if reused else conds, x_in, timestep, model_options)
            finally:
                self.current, self.recorded, self.computed = None, (), ()

        adapters = ip_adapter.active(model_options.get("transformer_options", {}), sigma)
        return self.engine.evaluate(
            x_in, sigma, (_signature(conds, x_in, sigma), adapters),
            dense=lambda evaluation, windows: compute(evaluation, windows, ()),
            partial=lambda evaluation, windows: compute(evaluation, (), windows), ran_out=ran_out,
        )  # fmt: skip

    def _look_around(self, conds, x_in: Tensor, model_options: dict) -> None:
        """Note what else is at work: some things rule out windows, some rule out saving anything."""
        self.engine.dense_reason = None
        if "multigpu_clones" in model_options:
            self.engine.dense_reason = "several GPUs share the work"
        elif model_options.get("context_handler") is not None:
            self.engine.dense_reason = "context windows are in use"
        elif tuple(x_in.shape[-2:]) != self.engine.frame:
            self.engine.dense_reason = f"the frame is {tuple(x_in.shape[-2:])}, not {self.engine.frame}"
        elif len(x_in) != self.engine.trace.shape[0]:
            self.engine.dense_reason = f"{len(x_in)} of {self.engine.trace.shape[0]} pictures are computed at a time"
        self.engine.no_windows = self.no_parts or foreign(conds, model_options)
        for cond in (c for group in conds if group for c in group):
            if cond["uuid"] not in self.words:
                self.words[cond["uuid"]] = weights_of(cond)

    # -- control nets --------------------------------------------------------------------------------------------

    def cropped_control(self, control: Residuals | None, crop: Callable[[Surroundings], Crop]) -> list[Residuals]:
        """Residuals of a dense call for each region that is recorded; none where nothing will use them. Before the call,
        since a model empties the lists."""
        return [crop(region)(control) for region in self.recorded] if control and self.reuses_control else []

    def keep_control(self, keys: Sequence[Key], cropped: Sequence[Residuals]) -> None:
        """Add what `cropped_control` returned to the recordings, after the call."""
        for region, residuals in zip(self.recorded, cropped, strict=False):
            self.control.keep(region, tuple(keys), residuals)

    def control_in(self, region: Surroundings, keys: Sequence[Key], control: Residuals | None, crop: Crop) -> Residuals | None:
        """The residuals of a partial call for a region: as recorded, or `control` cropped where the nets did run."""
        if control is None:
            return None
        return self.control.at(region, tuple(keys), self.current.sigma) if self.reuses_control else crop(control)

    # -- conds ---------------------------------------------------------------------------------------------------

    def positive_rows(self, options: dict) -> list[tuple[int, Any, TokenWeights | None]]:
        """(row of the call, cond, its words) for the positive conds of a call."""
        keys = zip(options["uuids"], options["cond_or_uncond"], strict=True)
        return [(i, uuid, self.words.get(uuid)) for i, (uuid, index) in enumerate(keys) if self._is_positive(uuid, index)]

    def _is_positive(self, uuid, index: int) -> bool:
        """Whether a cond is a positive one: by the guider's own name for it, else by the order of CFGGuider."""
        named = getattr(self.guider, "conds", {}).get("positive")
        return any(c.get("uuid") == uuid for c in named) if named else index == 0


def ran_out(error: RuntimeError) -> bool:
    """Whether the device's memory ran out, by ComfyUI's own judgement (its `is_oom` came after 0.8)."""
    judge = getattr(comfy.model_management, "is_oom", None)
    return judge(error) if judge else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def check_latent(shape: tuple[int, ...], model: ModelPatcher) -> None:
    """Raises ValueError where a latent of this shape is none of the model's."""
    latent = model.get_model_object("latent_format")
    axes = 2 + latent.latent_dimensions
    if len(shape) != axes or shape[1] != latent.latent_channels:
        raise ValueError(
            f"the latent has shape {shape}, but this model samples {axes - 2} dimensions with {latent.latent_channels} latent "
            "channels; make it with the empty latent node of this model, or encode it with its own VAE"
        )


# What models are given besides the picture that is sampled, as more tokens of the same sequence.
REFERENCES = (
    "ref_latents", "ref_latent", "reference_latent", "guiding_frame_index", "context_latents", "ref_contexts", "image_cond",
    "time_dim_concat",
)  # fmt: skip


def foreign(conds, model_options: dict) -> str | None:
    """Why parts cannot be computed beside what other nodes attached, or None."""
    for name, reason in CONDITIONING_WITHOUT_WINDOWS.items():
        if any(cond.get(name) is not None for group in conds if group for cond in group):
            return reason
    models = [cond.get("model_conds", {}) for group in conds if group for cond in group]
    if any(name in given for given in models for name in REFERENCES):
        return "reference images are in use"
    if "model_function_wrapper" in model_options:
        return "another node wraps the model's function"
    options = model_options.get("transformer_options", {})
    for name in ("patches", "patches_replace"):
        used = [key for key, value in options.get(name, {}).items() if value and not _known(key, value)]
        if used:
            return f"another node patches {', '.join(used)}"
    for kind in ("apply_model", "diffusion_model"):
        keys = [key for key, value in options.get("wrappers", {}).get(kind, {}).items() if value and key != KEY]
        if keys:
            return f"another node wraps {kind} ({', '.join(str(key) for key in keys)})"
    return None


def _known(key: str, patches: Any) -> bool:
    """Whether patches are of a kind that parts are computed beside."""
    return key == "attn2" and isinstance(patches, dict) and all(ip_adapter.is_ip_adapter(p) for p in patches.values())


def _signature(conds, x: Tensor, sigma: float) -> tuple:
    """What is being evaluated: the conds and control nets in effect at this sigma, and the latent's shape and dtype."""

    def nets(cond: dict) -> tuple:
        return tuple((id(net), active_net(net, sigma)) for net in chain(cond.get("control")))

    groups = tuple(
        None if group is None else tuple((c.get("uuid"), nets(c)) for c in group if active_cond(c, sigma)) for group in conds
    )
    return groups, tuple(x.shape), x.dtype, x.device
