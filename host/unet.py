"""Highlight Diffusion on ComfyUI's UNets: what a run does at each of the sampler's calls.

Evaluations are decided at CALC_COND_BATCH, where control nets can be skipped with the model and post-cfg functions
still run; windows are computed at APPLY_MODEL, where every tensor of a call is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..engine.config import HighlightConfig
from ..engine.heatmap import TokenWeights
from ..engine.highlight import Given
from ..engine.run import HighlightRun
from ..engine.schedule import forecast_space
from ..engine.trace import Evaluation, Run
from ..engine.window import Window, computing, fit, recording, windows_of
from .attention import HeatmapTap, cross_attention_sites
from .sampler import sampler_response
from .words import WORDS

KEY = "highlight_diffusion"  # of our wrappers and of the run in transformer_options
CONDITIONING_WITHOUT_WINDOWS = {
    "area": "area conditioning is in use",
    "gligen": "GLIGEN is in use",
    "hooks": "the conditioning carries hooks",
}


def require_unet(model: ModelPatcher) -> UNetModel:
    """The UNet of a MODEL. Raises ValueError naming the model where it is none that this method supports."""
    unet = model.get_model_object("diffusion_model")
    if not isinstance(unet, UNetModel) or any(isinstance(m, VideoResBlock) for m in unet.modules()):
        raise ValueError(
            f"Highlight Diffusion does not support {type(model.model).__name__} ({type(unet).__name__}) yet; "
            "it supports the image UNets: SD1.x, SD2.x, SDXL and their finetunes"
        )
    return unet


def _affine(norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias through ComfyUI, which may keep them elsewhere or quantised."""
    weight, bias = comfy.ops.cast_bias_weight(norm, like)
    return weight, bias


class UNetRun:
    """One sampling run on a UNet."""

    def __init__(self, config: HighlightConfig, run: Run, guider: Any, given: Given, sampler: Any, sigmas: Tensor):
        self.guider = guider
        model = guider.model_patcher
        self._check_latent(run.shape, model)
        sampling = model.get_model_object("model_sampling")
        first, last = sampling.percent_to_sigma(config.start_percent), sampling.percent_to_sigma(config.end_percent)
        unet = require_unet(model)
        self.sites, frame = cross_attention_sites(unet), tuple(run.shape[-2:])
        depth, align = fit(unet, frame, config.levels)
        space = forecast_space(run.sampler, config.forecast)
        response = sampler_response(sampler, model, sigmas, space) if config.active and config.revise else None
        self.engine = HighlightRun(config, run, frame, align, first, last, windows_of(frame, _affine, depth), given, response)
        run.depth = depth
        self.words: dict[Any, TokenWeights] = {}
        self.calls = 0
        self.current: Evaluation | None = None
        self.recorded: Sequence[Window] = ()
        self.computed: Sequence[Window] = ()

    @staticmethod
    def _check_latent(shape: tuple[int, ...], model: ModelPatcher) -> None:
        channels = model.get_model_object("latent_format").latent_channels
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(
                f"the latent has shape {shape}, but this UNet samples images with {channels} latent channels; "
                "make it with EmptyLatentImage or encode it with this model's own VAE"
            )

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

        def compute(evaluation: Evaluation, recorded: Sequence[Window], computed: Sequence[Window]) -> list[Tensor]:
            self.current, self.recorded, self.computed = evaluation, recorded, computed
            try:
                return executor(model, conds, x_in, timestep, model_options)
            finally:
                self.current, self.recorded, self.computed = None, (), ()

        return self.engine.evaluate(
            x_in, sigma, _signature(conds, x_in, sigma),
            dense=lambda evaluation, windows: compute(evaluation, windows, ()),
            partial=lambda evaluation, windows: compute(evaluation, (), windows),
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
        self.engine.no_windows = _foreign(conds, model_options)
        self.words = {c["uuid"]: c[WORDS] for group in conds if group for c in group if WORDS in c}

    # -- APPLY_MODEL ---------------------------------------------------------------------------------------------

    def apply_model(self, executor, x: Tensor, t, c_concat, c_crossattn, control, options: dict, **kwargs) -> Tensor:
        if self.current is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        unet = executor.class_obj.diffusion_model
        keys = list(zip(options["uuids"], options["cond_or_uncond"], strict=True))
        if self.computed:
            return self._windows(executor, unet, keys, x, t, c_concat, c_crossattn, control, options, **kwargs)
        accumulator = self.engine.accumulator
        if accumulator is not None and tuple(x.shape[-2:]) == self.engine.frame:
            positive = [(i, uuid) for i, (uuid, index) in enumerate(keys) if self._is_positive(uuid, index)]
            rows = [(i, uuid, self.words.get(uuid)) for i, uuid in positive]
            if rows:
                options = HeatmapTap(accumulator, self.sites, rows, len(keys), self.engine.frame).attached(options)
        if not self.recorded:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        with recording(unet, self.recorded, keys):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _windows(self, executor, unet, keys, x: Tensor, t, c_concat, c_crossattn, control, options, **kwargs) -> Tensor:
        full = torch.zeros_like(x)
        for window in self.computed:

            def own(value, window=window):
                return window.rows(value) if isinstance(value, Tensor) and len(value) == len(x) else value

            concat = window.crop(own(c_concat)) if c_concat is not None else None
            arguments = own(t), concat, own(c_crossattn), _crop_control(control, window, own, len(unet.output_blocks)), options
            with computing(unet, window, keys, self.current.sigma):
                out = executor(window.crop(own(x)), *arguments, **{name: own(value) for name, value in kwargs.items()})
            window.paste(full, out)
        return full

    def _is_positive(self, uuid, index: int) -> bool:
        """Whether a cond is a positive one: by the guider's own name for it, else by the order of CFGGuider."""
        named = getattr(self.guider, "conds", {}).get("positive")
        return any(c.get("uuid") == uuid for c in named) if named else index == 0


def _crop_control(control: dict | None, window: Window, own: Callable[[Any], Any], blocks: int) -> dict | None:
    """A control net's residuals for a window: cropped on every level it reaches, none for the blocks within.

    The UNet pops them from the ends of the lists, block by block, so the lists are copied.
    """
    if control is None:
        return None
    within = blocks - window.depth if window.depth else 0
    crop = lambda v: window.crop(own(v)) if isinstance(v, Tensor) and v.ndim == 4 else v  # noqa: E731
    cropped = {}
    for name, values in control.items():
        if not isinstance(values, list):
            cropped[name] = values
        elif within and name == "middle":
            cropped[name] = []
        elif within and name == "input":
            cropped[name] = [crop(v) for v in values[-window.depth :]]
        elif within and name == "output":
            cropped[name] = [crop(v) for v in values[: max(0, len(values) - within)]] + [None] * within
        else:
            cropped[name] = [crop(v) for v in values]
    return cropped


def _foreign(conds, model_options: dict) -> str | None:
    """Why windows cannot be computed beside what other nodes attached, or None."""
    for name, reason in CONDITIONING_WITHOUT_WINDOWS.items():
        if any(cond.get(name) is not None for group in conds if group for cond in group):
            return reason
    if "model_function_wrapper" in model_options:
        return "another node wraps the model's function"
    options = model_options.get("transformer_options", {})
    for name in ("patches", "patches_replace"):
        used = [key for key, value in options.get(name, {}).items() if value]
        if used:
            return f"another node patches {', '.join(used)}"
    for kind in ("apply_model", "diffusion_model"):
        keys = [key for key, value in options.get("wrappers", {}).get(kind, {}).items() if value and key != KEY]
        if keys:
            return f"another node wraps {kind} ({', '.join(str(key) for key in keys)})"
    return None


def _signature(conds, x: Tensor, sigma: float) -> tuple:
    """What is being evaluated: the conds and control nets in effect at this sigma, and the latent's shape and dtype."""

    def control_state(control) -> tuple:
        state = []
        while control is not None:
            window = getattr(control, "timestep_range", None)
            state.append((id(control), window is None or window[1] <= sigma <= window[0]))
            control = getattr(control, "previous_controlnet", None)
        return tuple(state)

    def active(cond: dict) -> bool:
        return sigma <= cond.get("timestep_start", sigma) and sigma >= cond.get("timestep_end", sigma)

    groups = tuple(
        None if group is None else tuple((c.get("uuid"), control_state(c.get("control"))) for c in group if active(c))
        for group in conds
    )
    return groups, tuple(x.shape), x.dtype, x.device
