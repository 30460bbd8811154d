"""Highlight Diffusion without ComfyUI: the engine on the plain demo UNet, sampled with Euler.

It plays the host's part (host/unet.py is the real one): two streams, positive and negative, in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..engine.config import HighlightConfig
from ..engine.merging.sdtm import SDTMConfig
from ..engine.partial.window import Window, computing, fit, recording, shallow_window, swapped, windows_of
from ..engine.placement.time_axis import log_sigma
from ..engine.prediction.response import Response, Space, impulse_response
from ..engine.region.heatmap import HeatmapAccumulator, grid_of, token_maps
from ..engine.run import HighlightRun
from ..engine.trace import Evaluation, Run
from .diffusion import normal_sigmas, timestep_of
from .unet import UNet

STREAMS = ("positive", "negative")
HEATMAP_GRIDS = (2, 4)  # the frame's size over the grid's, as in host/attention.py


@contextmanager
def listening(unet: UNet, accumulator: HeatmapAccumulator, frame: tuple[int, int]) -> Iterator[None]:
    """While this holds, cross-attentions at middle resolution add the positive stream's maps to `accumulator`."""
    forwards = {}

    def listen(attention) -> None:
        forward = attention.forward

        def heard(x: Tensor, context: Tensor) -> Tensor:
            grid = grid_of(x.shape[1], *frame)
            if frame[0] // grid[0] in HEATMAP_GRIDS:
                q, k = attention.to_q(x).chunk(2)[0], attention.to_k(context).chunk(2)[0]
                accumulator.add(token_maps(q, k, attention.heads), grid)
            return forward(x, context)

        forwards[attention] = heard

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            listen(module)
    with swapped(forwards):
        yield


class PlainModel:
    """The two streams of a guided demo UNet: x (B, 4, H, W) and sigma -> denoised positive and negative."""

    axis = staticmethod(log_sigma)

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

    def fit(self, frame: tuple[int, int], levels: int):
        """What windows are snapped to, what is recorded for them, their depth, and what shallow evaluations compute."""
        depth, align = fit(self.unet, frame, levels)
        return align, windows_of(frame, depth=depth), depth, shallow_window(frame)

    def dense(self, state: HighlightRun, x: Tensor, evaluation: Evaluation, windows: Sequence[Window]) -> list[Tensor]:
        return dense_call(self, state, x, evaluation, windows)

    def partial(self, state: HighlightRun, x: Tensor, evaluation: Evaluation, windows: Sequence[Window]) -> list[Tensor]:
        return window_call(self, state, x, evaluation, windows)

    def __call__(self, x: Tensor, sigma: float) -> list[Tensor]:
        scale = (sigma**2 + 1) ** 0.5
        batch = len(x)
        context = torch.cat([self.positive.expand(batch, -1, -1), self.negative.expand(batch, -1, -1)])
        timestep = timestep_of(torch.tensor([sigma])).expand(2 * batch)
        dtype = next(self.unet.parameters()).dtype
        v = self.unet((torch.cat([x, x]) / scale).to(dtype), timestep, context.to(dtype)).float()
        return [x / scale**2 - part * sigma / scale for part in v.chunk(2)]


def dense_call(
    model: PlainModel, state: HighlightRun, x: Tensor, evaluation: Evaluation, windows: Sequence[Window]
) -> list[Tensor]:
    """A full evaluation that also records for `windows` and listens for the heatmap, where that is wanted."""
    with ExitStack() as stack:
        if state.accumulator is not None:
            stack.enter_context(listening(model.unet, state.accumulator, state.frame))
        if windows:
            stack.enter_context(recording(model.unet, windows, STREAMS))
        return model(x, evaluation.sigma)


Call = Callable[[PlainModel, HighlightRun, Tensor, Evaluation, Sequence[Window]], list[Tensor]]


def window_call(
    model: PlainModel, state: HighlightRun, x: Tensor, evaluation: Evaluation, windows: Sequence[Window]
) -> list[Tensor]:
    """The windows alone, in tensors of full size."""
    full = [torch.zeros_like(x) for _ in STREAMS]
    for window in windows:
        own = slice(window.image, window.image + 1) if window.images > 1 else slice(None)
        with computing(model.unet, window, STREAMS, evaluation.sigma):
            parts = model.of(own)(window.crop(x[own]), evaluation.sigma)
        for whole, part in zip(full, parts, strict=True):
            window.paste(whole, part)
    return full


def euler(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method from x at sigmas[0] along the schedule (descending); returns the state at its end."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
    return x


def sample(
    model: Any, noise: Tensor, steps: int, cfg: float, config: HighlightConfig, partial: Call | None = None,
    merging: SDTMConfig | None = None,
) -> tuple[Tensor, Run]:  # fmt: skip
    """Euler over `steps` of a model's own schedule, from noise (B, 4, H, W); returns the latent and the trace's run.

    model: a `PlainModel`, or a `PlainFlow`. partial: another way to compute partial evaluations. merging: for a `PlainFlow`.
    """
    sigmas = model.sigmas(steps)
    run = Run(tuple(noise.shape), "euler", tuple(sigmas))
    frame = tuple(noise.shape[-2:])
    align, surround, run.depth, whole = model.fit(frame, config.levels)

    def respond(space: Space) -> Response | None:
        return impulse_response(lambda answer, x: euler(answer, x, sigmas), space)

    state = HighlightRun(config, run, frame, align, surround=surround, response=respond, axis=model.axis, whole=whole)
    if merging is not None:
        state.merging = model.merging(merging, noise.shape, sigmas)

    def computed(x: Tensor, evaluation: Evaluation, windows: Sequence[Any]) -> list[Tensor]:
        if partial is not None:
            return partial(model, state, x, evaluation, windows)
        return model.partial(state, x, evaluation, windows)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        positive, negative = state.evaluate(
            x, sigma, "plain",
            dense=lambda evaluation, windows: model.dense(state, x, evaluation, windows),
            partial=lambda evaluation, windows: computed(x, evaluation, windows),
        )  # fmt: skip
        return negative + cfg * (positive - negative)

    started = time.perf_counter()
    with torch.inference_mode():
        x = euler(denoise, model.noised(noise, sigmas[0]), sigmas)
    state.settle()
    run.seconds, run.completed = time.perf_counter() - started, True
    return x, run
