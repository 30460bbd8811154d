"""Highlight Diffusion without ComfyUI, on the plain demo MMDiT: demo/plain.py for transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..engine.job import Job
from ..engine.merging.config import SDTMConfig
from ..engine.merging.job import MergeJob
from ..engine.merging.key_bias import WeighingTap
from ..engine.merging.sites import ATTENTION, MergedTokens, Station, attention, merging, mlp, recording_details
from ..engine.merging.stages import MergingRun
from ..engine.partial.tokens import AttentionTap, Pick, RecordingTap, SubsetTap, TokenGrid, passing, subsets_of
from ..engine.region.heatmap import token_maps
from ..engine.time_axis import FLOW
from .diffusion import STEPS, flow_sigmas
from .mmdit import JointBlock, MMDiT
from .plain import STREAMS, Parts

LISTENED = range(2, 6)  # blocks of which the heatmap is made


def _enter(block: JointBlock, args: list, kwargs: dict, pick: Pick):
    context, x, vec = args
    return [pick.text(context), pick.tokens(x), vec], kwargs


def stations(block: JointBlock) -> Iterator[Station]:
    """Where a block's image tokens are merged and given back."""
    image = block.x_block
    yield attention(image.attn.qkv, image.attn.proj)
    yield mlp(image.mlp)


@contextmanager
def tapped(mmdit: MMDiT, tap: AttentionTap, pick: Pick | None = None) -> Iterator[None]:
    """While this holds, joint attention passes the tap, and only what is picked runs through the blocks."""
    own, heads = JointBlock.attend, mmdit.config.heads
    try:
        for block in mmdit.joint_blocks:
            block.attend = lambda q, k, v: tap(lambda q, k, v, heads, mask=None: own(q, k, v, mask), q, k, v, heads)
        with passing(mmdit.joint_blocks, mmdit.final_layer, _enter, tap, pick):
            yield
    finally:
        for block in mmdit.joint_blocks:
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
        return Parts(patch, subsets_of(TokenGrid(frame, patch), self.axis))

    def merging(self, config: SDTMConfig, shape: Sequence[int], sigmas: Sequence[float]) -> MergingRun:
        """The state of merging for latents of a shape."""
        grid = TokenGrid(tuple(shape[-2:]), self.mmdit.config.patch_size)
        return MergingRun(config, sigmas, grid, shape[0], len(self.mmdit.joint_blocks))

    def __call__(self, x: Tensor, sigma: float) -> list[Tensor]:
        batch = len(x)
        context = torch.cat([self.positive.expand(batch, -1, -1), self.negative.expand(batch, -1, -1)])
        timesteps = torch.full((2 * batch,), sigma * STEPS)
        dtype = next(self.mmdit.parameters()).dtype
        velocity = self.mmdit(torch.cat([x, x]).to(dtype), timesteps, context.to(dtype)).float()
        return [x - sigma * part for part in velocity.chunk(2)]

    def do(self, job: Job, x: Tensor) -> list[Tensor]:
        """Do a job at x."""
        task = job.task(MergeJob)
        if job.compute:
            return self._subsets(job, x)
        return self._dense(job, x) if task is None or task.record else self._merged(task, x, job.evaluation.sigma)

    def _dense(self, job: Job, x: Tensor) -> list[Tensor]:
        """A full evaluation that also records and captures attention, where the job wants that."""
        grid = TokenGrid(tuple(x.shape[-2:]), self.mmdit.config.patch_size)

        def hear(block: int, q: Tensor, k: Tensor, heads: int) -> None:
            if block in LISTENED:
                job.capture.add(token_maps(q.chunk(2)[0], k.chunk(2)[0], heads), grid.size)

        tap = RecordingTap(job.record, STREAMS, grid.count, hear=hear if job.capture is not None else None)
        task, blocks = job.task(MergeJob), self.mmdit.joint_blocks
        with ExitStack() as stack:
            stack.enter_context(tapped(self.mmdit, tap))
            for image in task.images if task is not None else ():
                if image.merge is not None:
                    tokens = MergedTokens(image.merge)
                    stack.enter_context(
                        recording_details(blocks, stations, tokens, image.residuals, STREAMS, task.parts, task.spared)
                    )
            return self(x, job.evaluation.sigma)

    def _merged(self, task: MergeJob, x: Tensor, sigma: float) -> list[Tensor]:
        """Every image by itself, with its own merge."""
        parts, blocks = [], self.mmdit.joint_blocks
        grid = TokenGrid(tuple(x.shape[-2:]), self.mmdit.config.patch_size)
        for i, image in enumerate(task.images):
            own, merge = slice(i, i + 1), image.merge
            with ExitStack() as stack:
                if task.key_bias is not None:
                    seen = merge if ATTENTION in task.parts else None
                    tap = WeighingTap(grid.count, seen, task.spared, task.key_bias.prompt, task.key_bias.proportional)
                    stack.enter_context(tapped(self.mmdit, tap))
                if merge is not None:
                    residuals, tokens = image.residuals if task.uses_residuals else None, MergedTokens(merge)
                    stack.enter_context(merging(blocks, stations, _enter, tokens, task.parts, task.spared, residuals, STREAMS))
                parts.append(self.of(own)(x[own], sigma))
        return [torch.cat(stream) for stream in zip(*parts, strict=True)]

    def _subsets(self, job: Job, x: Tensor) -> list[Tensor]:
        """The subsets alone, in tensors of full size."""
        full = [torch.zeros_like(x) for _ in STREAMS]
        for subset in job.compute:
            own = slice(subset.rows.image, subset.rows.image + 1)
            pick = Pick(subset)
            with tapped(self.mmdit, SubsetTap(pick, STREAMS, job.evaluation.sigma), pick):
                for whole, part in zip(full, self.of(own)(x[own], job.evaluation.sigma), strict=True):
                    whole[own] = part
        return full
