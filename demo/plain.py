"""Highlight Diffusion without ComfyUI: the engine on the plain demo UNet, sampled with Euler.

It plays the host's part (host/unet.py is the real one): two streams, positive and negative, in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.config import HighlightConfig
from ..engine.extrapolation import PredictionType
from ..engine.job import Job, Request
from ..engine.merging.config import SDTMConfig
from ..engine.merging.stages import MergingRun
from ..engine.partial.cache import ActivationCache
from ..engine.partial.patching import patched_forward
from ..engine.partial.unet_blocks import computing_window, depth_and_alignment, recording_windows
from ..engine.partial.unet_window import shallow_window, windows_of
from ..engine.prediction.response import ImpulseResponse, impulse_response
from ..engine.profile import bundled
from ..engine.region.heatmap import HeatmapAccumulator, finest_levels, grid_of, token_maps
from ..engine.region.tracking import MakeCaches
from ..engine.setup import start_run
from ..engine.state import RunState
from ..engine.time_axis import DIFFUSION
from ..engine.trace import RunRecord
from .diffusion import normal_sigmas, timestep_of
from .unet import UNet

STREAMS = ("positive", "negative")


@contextmanager
def listening(unet: UNet, accumulator: HeatmapAccumulator, frame: tuple[int, int]) -> Iterator[None]:
    """While this holds, cross-attentions of the decoder's two finest levels that have any, as in host/attention.py, add the
    positive stream's maps to `accumulator`."""
    forwards = {}
    levels = len(unet.config.channel_mult)
    attending = finest_levels(2**level for level in range(levels) if unet.config.attention[level])

    def listen(attention) -> None:
        forward = attention.forward

        def heard(x: Tensor, context: Tensor) -> Tensor:
            grid = grid_of(x.shape[1], *frame)
            if grid is not None and frame[0] // grid[0] in attending:
                q, k = attention.to_q(x).chunk(2)[0], attention.to_k(context).chunk(2)[0]
                accumulator.add(token_maps(q, k, attention.heads), grid)
            return forward(x, context)

        forwards[attention] = heard

    for name, module in unet.named_modules():
        if name.startswith("output_blocks") and name.endswith("attn2"):
            listen(module)
    with patched_forward(forwards):
        yield


@dataclass(frozen=True)
class Parts:
    """How parts of a frame are computed.

    align: latent cells that regions are snapped to. make_caches: makes the caches of what regions lack. depth: of the UNet's
    blocks, None for all of them. shallow: the cache of what shallow evaluations lack, None where there are none. exact: whether
    any cells can be computed by themselves, not windows alone.
    """

    align: int
    make_caches: MakeCaches
    depth: int | None = None
    shallow: ActivationCache | None = None
    exact: bool = False


class PlainModel:
    """The two streams of a guided demo UNet: x (B, 4, H, W) and sigma -> denoised positive and negative."""

    axis = DIFFUSION

    def __init__(self, unet: UNet, positive: Tensor, negative: Tensor):
        self.unet, self.positive, self.negative = unet, positive, negative

    def of(self, images: slice) -> PlainModel:
        """This model for some images of a batch, whose prompts may differ."""
        positive, negative = (c[images] if len(c) > 1 else c for c in (self.positive, self.negative))
        return PlainModel(self.unet, positive, negative)

    def sigmas(self, steps: int) -> list[float]:
        return normal_sigmas(steps).tolist()

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        """What sampling starts from, for noise of unit variance."""
        return noise * (1 + sigma**2) ** 0.5

    def parts(self, frame: tuple[int, int], levels: int) -> Parts:
        """How parts of a frame are computed."""
        depth, align = depth_and_alignment(self.unet, frame, levels)
        return Parts(align, windows_of(frame, depth=depth), depth, shallow_window(frame))

    def methods(self, merging: SDTMConfig | None, shape: Sequence[int], sigmas: Sequence[float]) -> list[MergingRun]:
        """What takes part in dense evaluations: nothing."""
        return []

    def do(self, job: Job, x: Tensor) -> list[Tensor]:
        """Do a job at x."""
        return window_call(self, job, x) if job.compute else dense_call(self, job, x)

    def __call__(self, x: Tensor, sigma: float) -> list[Tensor]:
        scale = (sigma**2 + 1) ** 0.5
        batch = len(x)
        context = torch.cat([self.positive.expand(batch, -1, -1), self.negative.expand(batch, -1, -1)])
        timestep = timestep_of(torch.tensor([sigma])).expand(2 * batch)
        dtype = next(self.unet.parameters()).dtype
        v = self.unet((torch.cat([x, x]) / scale).to(dtype), timestep, context.to(dtype)).float()
        return [x / scale**2 - part * sigma / scale for part in v.chunk(2)]


def dense_call(model: PlainModel, job: Job, x: Tensor) -> list[Tensor]:
    """A full evaluation that also records and captures attention, where the job wants that."""
    with ExitStack() as stack:
        if job.capture is not None:
            stack.enter_context(listening(model.unet, job.capture, (x.shape[-2], x.shape[-1])))
        if job.record:
            stack.enter_context(recording_windows(model.unet, job.record, STREAMS))
        return model(x, job.evaluation.sigma)


def window_call(model: PlainModel, job: Job, x: Tensor) -> list[Tensor]:
    """The windows alone, in tensors of full size."""
    full = [torch.zeros_like(x) for _ in STREAMS]
    for window in job.compute:
        image, images = window.rows.image, window.rows.images
        own = slice(image, image + 1) if images > 1 else slice(None)
        with computing_window(model.unet, window, STREAMS, job.evaluation.sigma):
            parts = model.of(own)(window.crop(x[own]), job.evaluation.sigma)
        for whole, part in zip(full, parts, strict=True):
            window.paste(whole, part)
    return full


def euler(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method from x at sigmas[0] along the schedule (descending); returns the state at its end."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
    return x


Regional = Callable[[Any, Job, Tensor, RunState], list[Tensor]]


def sample(
    model: Any, noise: Tensor, steps: int, cfg: float, config: HighlightConfig, regional: Regional | None = None,
    merging: SDTMConfig | None = None,
) -> tuple[Tensor, RunRecord]:  # fmt: skip
    """Euler over `steps` of a model's own schedule, from noise (B, 4, H, W); returns the latent and the run's record.

    model: a `PlainModel`, or a `PlainFlow`. regional: another way to compute regional evaluations. merging: for a `PlainFlow`.
    """
    sigmas = model.sigmas(steps)
    record = RunRecord(tuple(noise.shape), "euler", tuple(sigmas))
    parts = model.parts(tuple(noise.shape[-2:]), config.levels)
    record.depth = parts.depth

    def respond(prediction: PredictionType) -> ImpulseResponse | None:
        return impulse_response(lambda answer, x: euler(answer, x, sigmas), prediction)

    run = start_run(
        config, record, parts.align, parts.make_caches, axis=model.axis, respond=respond, shallow=parts.shallow,
        methods=model.methods(merging, noise.shape, sigmas),
        profile=bundled(model.axis), exact=parts.exact, unguided=cfg == 1,
    )  # fmt: skip

    def denoise(x: Tensor, sigma: float) -> Tensor:
        def compute(job: Job) -> list[Tensor]:
            if regional is not None and job.evaluation.kind == "partial":
                return regional(model, job, x, run.state)
            return model.do(job, x)

        positive, negative = run.evaluate(Request(x, sigma, "plain"), compute)
        return negative + cfg * (positive - negative)

    started = time.perf_counter()
    with torch.inference_mode():
        x = euler(denoise, model.noised(noise, sigmas[0]), sigmas)
    run.settle()
    record.seconds, record.completed = time.perf_counter() - started, True
    return x, record
