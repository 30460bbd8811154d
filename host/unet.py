"""Highlight Diffusion on ComfyUI's UNets: windows of the frame."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..engine.config import HighlightConfig
from ..engine.partial.window import Window, computing, fit, recording, shallow_window, windows_of
from ..engine.region.highlight import Given
from ..engine.trace import Run
from .attention import HeatmapTap, cross_attention_sites
from .control import Residuals, mapped
from .ip_adapter import in_window
from .run import NOT_RECORDED, ModelRun, check_latent


def is_unet(model: ModelPatcher) -> bool:
    """True for the image UNets."""
    unet = model.get_model_object("diffusion_model")
    return isinstance(unet, UNetModel) and not any(isinstance(m, VideoResBlock) for m in unet.modules())


def affine(norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias through ComfyUI, which may keep them elsewhere or quantised."""
    weight, bias = comfy.ops.cast_bias_weight(norm, like)
    return weight, bias


class UNetRun(ModelRun):
    """One sampling run on a UNet."""

    def __init__(self, config: HighlightConfig, run: Run, guider: Any, given: Given, sampler: Any, sigmas: Tensor):
        model = guider.model_patcher
        check_latent(run.shape, model)
        unet, frame = model.get_model_object("diffusion_model"), tuple(run.shape[-2:])
        self.sites = cross_attention_sites(unet)
        depth, align = fit(unet, frame, config.levels)
        run.depth = depth
        whole = shallow_window(frame, affine)
        super().__init__(config, run, guider, given, sampler, sigmas, align, windows_of(frame, affine, depth), whole=whole)

    def apply_model(self, executor, x: Tensor, t, c_concat, c_crossattn, control, options: dict, **kwargs) -> Tensor:
        if self.current is None or self.in_groups(x, options):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        unet = executor.class_obj.diffusion_model
        keys = list(zip(options["uuids"], options["cond_or_uncond"], strict=True))
        if self.computed:
            return self._windows(executor, unet, keys, x, t, c_concat, c_crossattn, control, options, **kwargs)
        accumulator, rows = self.engine.accumulator, self.positive_rows(options)
        if accumulator is not None and rows and tuple(x.shape[-2:]) == self.engine.frame:
            options = HeatmapTap(accumulator, self.sites, rows, len(keys), self.engine.frame).attached(options)
        if not self.recorded:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        cropped = self.cropped_control(control, lambda window: partial(_crop_control, window, unet, len(x)))
        with recording(unet, self.recorded, keys):
            output = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        # of their own: views would hold those of the whole frame
        self.keep_control(keys, [mapped(residuals, Tensor.clone) for residuals in cropped])
        return output

    def _windows(self, executor, unet, keys, x: Tensor, t, c_concat, c_crossattn, control, options, **kwargs) -> Tensor:
        if not all(window.holds(keys) for window in self.computed):
            self.no_parts = NOT_RECORDED
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        full = torch.zeros_like(x)
        for window in self.computed:

            def own(value, window=window):
                return window.rows(value) if isinstance(value, Tensor) and len(value) == len(x) else value

            concat = window.crop(own(c_concat)) if c_concat is not None else None
            residuals = self.control_in(window, keys, control, partial(_crop_control, window, unet, len(x)))
            arguments = own(t), concat, own(c_crossattn), residuals, in_window(options, window)
            with computing(unet, window, keys, self.current.sigma):
                out = executor(window.crop(own(x)), *arguments, **{name: own(value) for name, value in kwargs.items()})
            window.paste(full, out)
        return full


def _crop_control(window: Window, unet: UNetModel, rows: int, control: Residuals) -> Residuals:
    """A control net's residuals for a window, of a call with so many rows: cropped on every level it reaches, none for the
    blocks within.

    The UNet pops them from the ends of the lists, block by block.
    """
    blocks = len(unet.output_blocks)
    within = blocks - window.depth if window.depth else 0
    control = dict(control)
    if within:
        control["middle"] = []
        control["input"] = control.get("input", [])[-window.depth :]
        outputs = control.get("output", [])
        control["output"] = outputs[: max(0, len(outputs) - within)] + [None] * within

    return mapped(control, lambda value: window.crop(window.rows(value) if len(value) == rows else value))
