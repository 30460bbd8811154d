"""Highlight Diffusion on ComfyUI's UNets: windows of the frame."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..engine.job import Job
from ..engine.partial.unet_blocks import computing_window, depth_and_alignment, pads_otherwise, recording_windows
from ..engine.partial.unet_window import Window, shallow_window, windows_of
from .attention import HeatmapTap, cross_attention_sites
from .call import ModelCall
from .control import Crop, Residuals, mapped
from .ip_adapter import in_window
from .methods import not_merging
from .run import NOT_RECORDED, ModelRun, Sampling, check_latent

NOT_OF_UNETS = "this is a UNet, whose tokens ComfyUI's own node TomePatchModel merges"


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

    def __init__(self, sampling: Sampling):
        check_latent(sampling.record.shape, sampling.model)
        unet, frame = sampling.model.get_model_object("diffusion_model"), sampling.record.frame
        self.sites = cross_attention_sites(unet)
        depth, align = depth_and_alignment(unet, frame, sampling.config.levels)
        sampling.record.depth = depth
        methods = [not_merging(name, NOT_OF_UNETS) for name in sampling.methods]
        sampling.record.limits = tuple(method.said for method in methods)
        super().__init__(
            sampling, align, windows_of(frame, affine, depth), shallow=shallow_window(frame, affine), methods=methods
        )
        if pads_otherwise(unet):
            self.no_regions = "convolutions of this model do not pad with zeros, as where pictures are to be tiled"

    def apply_model(self, job: Job, call: ModelCall) -> Tensor:
        if self.note_grouped_call(call):
            return call()
        unet = call.function.class_obj.diffusion_model
        if job.compute:
            return self._windows(job, unet, call)
        call = self._captured(job, call)
        if not job.record:
            return call()
        cropped = self.cropped_control(job, call.control, lambda window: self._crop(window, unet, call))
        with recording_windows(unet, job.record, call.keys):
            output = call()
        # of their own: views would hold those of the whole frame
        self.keep_control(job, call, [mapped(residuals, Tensor.clone) for residuals in cropped])
        return output

    @staticmethod
    def _crop(window: Any, unet: UNetModel, call: ModelCall) -> Crop:
        """Crops a control net's residuals of this call for a window."""
        return partial(_crop_control, window, unet, len(call.x))

    def _captured(self, job: Job, call: ModelCall) -> ModelCall:
        """The call with its cross-attention captured, where that is wanted."""
        rows = self.positive_rows(call)
        if job.capture is None or not rows or tuple(call.x.shape[-2:]) != self.frame:
            return call
        tap = HeatmapTap(job.capture, self.sites, rows, len(call.keys), self.frame)
        return replace(call, options=tap.attached(call.options))

    def _windows(self, job: Job, unet: UNetModel, call: ModelCall) -> Tensor:
        """The windows by themselves, in a tensor of the whole call's size."""
        if not all(window.holds(call.keys) for window in job.compute):
            self.no_parts = NOT_RECORDED
            return call()
        full = torch.zeros_like(call.x)
        for window in job.compute:
            own = call.of_image(window.rows)
            own = replace(
                own, x=window.crop(own.x), c_concat=None if own.c_concat is None else window.crop(own.c_concat),
                control=self.control_in(job, window, call, self._crop(window, unet, call)),
                options=in_window(call.options, window),
            )  # fmt: skip
            with computing_window(unet, window, call.keys, job.evaluation.sigma):
                window.paste(full, own())
        return full


def _crop_control(window: Window, unet: UNetModel, rows: int, control: Residuals) -> Residuals:
    """A control net's residuals for a window, of a call with so many rows: cropped on every level it reaches, none for the
    blocks within.

    The UNet pops them from the ends of the lists, block by block.
    """
    blocks = len(unet.output_blocks)
    control = dict(control)
    if window.depth and (within := blocks - window.depth):
        control["middle"] = []
        control["input"] = control.get("input", [])[-window.depth :]
        outputs = control.get("output", [])
        control["output"] = outputs[: max(0, len(outputs) - within)] + [None] * within

    return mapped(control, lambda value: window.crop(window.rows.of(value) if len(value) == rows else value))
