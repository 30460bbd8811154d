"""Highlight Diffusion without ComfyUI, on the plain demo MMDiT: demo/plain.py for transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.job import Job
from ..engine.merging.config import PLANNED, SDTMConfig
from ..engine.merging.execute import compute_merged, recording_for
from ..engine.merging.job import MergeJob
from ..engine.merging.sites import MergeSite, attention, mlp
from ..engine.merging.stages import MergingRun
from ..engine.partial.attention_override import AttentionOverride, Capture, Function
from ..engine.partial.cache import ImageRows, Keys
from ..engine.partial.token_gather import ALL_FIRST, Arguments, Gather, TokenGather
from ..engine.partial.token_subset import TokenGrid, subsets_of
from ..engine.partial.transformer import Transformer, compute_subsets, record_subsets
from ..engine.region.heatmap import token_maps
from ..engine.time_axis import FLOW
from .diffusion import STEPS, flow_sigmas
from .mmdit import JointBlock, MMDiT
from .plain import STREAMS, Parts, PlainModel

CAPTURED_BLOCKS = range(2, 6)  # of which the heatmap is made


def _gather_inputs(block: JointBlock, args: list, kwargs: dict, gather: Gather) -> Arguments:
    context, x, vec = args
    return [gather.text(context), gather.tokens(x), vec], kwargs


def sites(block: JointBlock) -> Iterator[MergeSite]:
    """Where a block's image tokens are merged and given back."""
    image = block.x_block
    yield attention(image.attn.qkv, image.attn.proj)
    yield mlp(image.mlp)


def transformer_of(mmdit: MMDiT) -> Transformer:
    """What an executor has to know of the network."""
    return Transformer(tuple(mmdit.joint_blocks), _gather_inputs, mmdit.final_layer)


@dataclass(frozen=True)
class PlainCall:
    """A `TransformerCall` of the demo MMDiT: the two streams of a batch at one sigma. images: x (B, 4, H, W)."""

    model: PlainFlow
    images: Tensor
    sigma: float
    keys: Keys = STREAMS
    previous: Function | None = None

    @property
    def x(self) -> Tensor:
        return torch.cat([self.images] * len(STREAMS))

    def of_image(self, rows: ImageRows) -> PlainCall:
        own = slice(rows.image, rows.image + 1) if rows.images > 1 else slice(None)
        return replace(self, model=self.model.of(own), images=self.images[own])

    def of_subset(self, gather: TokenGather) -> PlainCall:
        return self.of_image(gather.subset.rows)

    def __call__(self, override: AttentionOverride | None = None) -> Tensor:
        if override is None:
            return torch.cat(self.model(self.images, self.sigma))
        own, heads = JointBlock.attend, self.model.mmdit.config.heads
        blocks: Any = self.model.mmdit.joint_blocks

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return override(lambda q, k, v, heads, mask=None: own(q, k, v, mask), q, k, v, heads)

        try:
            for block in blocks:
                block.attend = attend
            return torch.cat(self.model(self.images, self.sigma))
        finally:
            for block in blocks:
                del block.attend


class PlainFlow:
    """The two streams of a guided demo MMDiT: x (B, 4, H, W) and sigma -> denoised positive and negative."""

    axis = FLOW

    def __init__(self, mmdit: MMDiT, positive: Tensor, negative: Tensor):
        self.mmdit, self.positive, self.negative = mmdit, positive, negative

    def of(self, images: slice) -> PlainFlow:
        """This model for some images of a batch, whose prompts may differ."""
        positive, negative = (c[images] if len(c) > 1 else c for c in (self.positive, self.negative))
        return PlainFlow(self.mmdit, positive, negative)

    def sigmas(self, steps: int) -> list[float]:
        return flow_sigmas(steps).tolist()

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        """What sampling starts from, for noise of unit variance."""
        return noise * sigma

    def parts(self, frame: tuple[int, int], levels: int) -> Parts:
        """How parts of a frame are computed; a transformer has no levels and no shallow evaluations."""
        patch = self.mmdit.config.patch_size
        return Parts(patch, subsets_of(TokenGrid(frame, patch), self.axis), exact=True)

    def methods(self, merging: SDTMConfig | None, shape: Sequence[int], sigmas: Sequence[float]) -> list[MergingRun]:
        """Merging of latents of a shape, where the plan wants it unless there is a config of its own."""
        grid = TokenGrid((shape[-2], shape[-1]), self.mmdit.config.patch_size)
        depth = len(self.mmdit.joint_blocks)
        return [MergingRun(merging or PLANNED, sigmas, grid, shape[0], depth, by_plan=merging is None)]

    def __call__(self, x: Tensor, sigma: float) -> list[Tensor]:
        batch = len(x)
        context = torch.cat([self.positive.expand(batch, -1, -1), self.negative.expand(batch, -1, -1)])
        timesteps = torch.full((2 * batch,), sigma * STEPS)
        dtype = next(self.mmdit.parameters()).dtype
        velocity = self.mmdit(torch.cat([x, x]).to(dtype), timesteps, context.to(dtype)).float()
        return [x - sigma * part for part in velocity.chunk(2)]

    def do(self, job: Job, x: Tensor) -> list[Tensor]:
        """Do a job at x."""
        call, network = PlainCall(self, x, job.evaluation.sigma), transformer_of(self.mmdit)
        grid, task = TokenGrid((x.shape[-2], x.shape[-1]), self.mmdit.config.patch_size), job.task(MergeJob)
        if job.compute:
            rows = compute_subsets(network, call, job.compute, job.evaluation.sigma, ALL_FIRST)
        elif task is not None and not task.record:
            rows = compute_merged(network, sites, call, task, ALL_FIRST, grid.count)
        else:
            with recording_for(network, sites, call, task, ALL_FIRST) if task is not None else nullcontext():
                rows, _ = record_subsets(network, call, job.record, grid.count, capture=self._capture(job, grid))
        return list(rows.chunk(len(STREAMS)))

    @staticmethod
    def _capture(job: Job, grid: TokenGrid) -> Capture | None:
        """What adds the positive stream's attention to the job's accumulator."""
        if (accumulator := job.capture) is None:
            return None

        def capture(block: int, q: Tensor, k: Tensor, heads: int) -> None:
            if block in CAPTURED_BLOCKS:
                accumulator.add(token_maps(q.chunk(2)[0], k.chunk(2)[0], heads), grid.size)

        return capture


def plain_class(kind: str) -> type[PlainModel] | type[PlainFlow]:
    """What samples a denoiser of a kind, as `load.load_plain` has them."""
    return PlainFlow if kind.startswith("mmdit") else PlainModel
