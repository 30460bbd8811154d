"""Highlight Diffusion without ComfyUI, on the plain demo MMDiT: demo/plain.py for transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..engine.merging.key_bias import WeighingTap
from ..engine.merging.sdtm import MergingRun, SDTMConfig
from ..engine.merging.sites import ATTENTION, MergedTokens, Station, attention, merging, mlp, recording_details
from ..engine.partial.tokens import AttentionTap, Pick, RecordingTap, SubsetTap, TokenGrid, TokenSubset, passing, subsets_of
from ..engine.placement.time_axis import log_ratio
from ..engine.region.heatmap import token_maps
from ..engine.run import HighlightRun
from ..engine.trace import Evaluation
from .diffusion import STEPS, flow_sigmas
from .mmdit import JointBlock, MMDiT
from .plain import STREAMS

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

    axis = staticmethod(log_ratio)

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

    def fit(self, frame: tuple[int, int], levels: int):
        """What windows are snapped to, what is recorded for them, their depth, and what shallow evaluations compute."""
        patch = self.mmdit.config.patch_size
        return patch, subsets_of(TokenGrid(frame, patch), self.axis), None, None

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

    def dense(self, state: HighlightRun, x: Tensor, evaluation: Evaluation, subsets: Sequence[TokenSubset]) -> list[Tensor]:
        """A full evaluation that also records for `subsets` and listens for the heatmap, where that is wanted, or one with
        merged tokens."""
        if state.merging is not None and state.merging.kinds:
            return self._merged(state.merging, x, evaluation.sigma)
        grid = TokenGrid(tuple(x.shape[-2:]), self.mmdit.config.patch_size)

        def hear(block: int, q: Tensor, k: Tensor, heads: int) -> None:
            if block in LISTENED:
                state.accumulator.add(token_maps(q.chunk(2)[0], k.chunk(2)[0], heads), grid.size)

        tap = RecordingTap(subsets, STREAMS, grid.count, hear=hear if state.accumulator is not None else None)
        with ExitStack() as stack:
            stack.enter_context(tapped(self.mmdit, tap))
            recording = state.merging.images if state.merging is not None and state.merging.recording else ()
            for image in (image for image in recording if image.merge is not None):
                stack.enter_context(recording_details(
                    self.mmdit.joint_blocks, stations, MergedTokens(image.merge), image.details, STREAMS,
                    state.merging.kinds_of_stage, state.merging.spared,
                ))  # fmt: skip
            return self(x, evaluation.sigma)

    def _merged(self, state: MergingRun, x: Tensor, sigma: float) -> list[Tensor]:
        """Every image by itself, with its own merge."""
        parts, count, blocks = [], state.grid.count, self.mmdit.joint_blocks
        for i, image in enumerate(state.images):
            own, merge = slice(i, i + 1), image.merge
            with ExitStack() as stack:
                if state.weighs:
                    seen = merge if ATTENTION in state.kinds else None
                    tap = WeighingTap(count, seen, state.spared, state.prompt_weight, state.config.proportional)
                    stack.enter_context(tapped(self.mmdit, tap))
                if merge is not None:
                    details, tokens = image.details if state.remembers else None, MergedTokens(merge)
                    stack.enter_context(merging(blocks, stations, _enter, tokens, state.kinds, state.spared, details, STREAMS))
                parts.append(self.of(own)(x[own], sigma))
        return [torch.cat(stream) for stream in zip(*parts, strict=True)]

    def partial(self, state: HighlightRun, x: Tensor, evaluation: Evaluation, subsets: Sequence[TokenSubset]) -> list[Tensor]:
        """The subsets alone, in tensors of full size."""
        full = [torch.zeros_like(x) for _ in STREAMS]
        for subset in subsets:
            own = slice(subset.image, subset.image + 1)
            pick = Pick(subset)
            with tapped(self.mmdit, SubsetTap(pick, STREAMS, evaluation.sigma), pick):
                for whole, part in zip(full, self.of(own)(x[own], evaluation.sigma), strict=True):
                    whole[own] = part
        return full
