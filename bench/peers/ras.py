"""RAS: Liu et al., "Region-Adaptive Sampling for Diffusion Transformers" (arXiv 2502.10389), on SD3.

Settings are those of its authors' example for SD3: the first 4 steps and those at 3/7 and 5/7 of the schedule are
dense; of the tokens left out 70% are those of least standard deviation and 30% those of most; starvation scale 1.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...engine.partial.attention_override import AttentionOverride
from ...engine.partial.token_gather import TokenGather
from ...engine.partial.token_subset import TokenGrid, TokenSubset
from ...engine.partial.transformer import patched_blocks
from ...host.call import ModelCall
from ...host.dit import DiTCall, transformer_of
from ...host.families import family_of
from .common import Steps

WARMUP, RESETS, HIGH, STARVATION = 4, (12 / 28, 20 / 28), 0.3, 1.0


class Chosen(TokenSubset):
    """Any tokens, not those of boxes."""

    def __init__(self, active: Tensor, rest: Tensor, grid: TokenGrid):
        super().__init__((), grid)
        self.active, self.rest = active.sort().values, rest.sort().values


class CacheOverride(AttentionOverride):
    """Keys and values of all tokens, those of the tokens that run renewed at each call."""

    def __init__(self, subset: TokenSubset | None, cache: dict, image_tokens: int):
        super().__init__(image_tokens)
        self.subset, self.cache = subset, cache

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        v = v.flatten(2) if v.ndim > q.ndim else v
        if self.subset is not None:
            old_k, old_v = self.cache[place]
            places = self.subset.places(k.shape[1] - self.image_tokens, 0)
            k, v = old_k.index_copy(1, places, k), old_v.index_copy(1, places, v)
        self.cache[place] = k, v
        return function(q, k, v, heads, *args, **kwargs)


class Ras:
    """State of runs: which tokens come next, what the guided velocity of the others was, how often each was left out."""

    def __init__(self, model: Any, steps: int, ratio: float):
        self.network, self.family = model.get_model_object("diffusion_model"), family_of(model)
        self.ratio, self.count = ratio, steps
        self.patch = self.family.patch(self.network)
        self.dense = {*range(WARMUP), *(round(share * steps) for share in RESETS)}
        self.steps = Steps()

    def predict(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed) -> Tensor:
        sigma = float(timestep.flatten()[0])
        index, state = self.steps.advance(sigma), self.steps.cache
        grid = TokenGrid(tuple(x.shape[-2:]), self.patch)
        state.setdefault("dropped", torch.zeros(grid.count) - self.count)
        state["subset"] = None if index in self.dense else state["next"]
        denoised = executor(x, timestep, model_options, seed)
        velocity = (x - denoised) / sigma
        if state["subset"] is not None:
            old = torch.zeros(grid.count, dtype=torch.bool).index_fill_(0, state["subset"].rest, True)
            old = old.reshape(grid.size).repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)
            velocity = torch.where(old[: x.shape[-2], : x.shape[-1]].to(x.device), state["velocity"], velocity)
        state["velocity"] = velocity
        state["next"] = self.choose(velocity, grid, state["dropped"])
        return x - sigma * velocity

    def choose(self, velocity: Tensor, grid: TokenGrid, dropped: Tensor) -> Chosen:
        spread = velocity[0].std(0)  # its factor, the step's length, is the same for all tokens
        metric = torch.nn.functional.avg_pool2d(spread[None], self.patch, ceil_mode=True).flatten().cpu()
        order = (metric * torch.exp(STARVATION * dropped)).argsort()
        skipped = int((1 - self.ratio) * grid.count)
        low, high = int(skipped * (1 - HIGH)), int(skipped * HIGH)
        rest = torch.cat([order[:low], order[grid.count - high :]])
        dropped[rest] += 1
        return Chosen(order[low : grid.count - high], rest, grid)

    def apply_model(
        self, executor, x: Tensor, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ) -> Tensor:
        state = self.steps.cache
        subset, cache = state["subset"], state.setdefault(tuple(transformer_options["uuids"]), {})
        grid = TokenGrid(tuple(x.shape[-2:]), self.patch)
        override = CacheOverride(subset, cache, grid.count if subset is None else len(subset.active))
        call = ModelCall(executor, x, t, c_concat, c_crossattn, control, transformer_options, kwargs)
        gather = None if subset is None else TokenGather(subset, keep_text=True)
        with patched_blocks(transformer_of(self.family, self.network), override, gather):
            return DiTCall(call, self.family)(override)


def apply(model: Any, steps: int, ratio: float) -> Any:
    """After the warm-up, `ratio` of the tokens are computed at each step that is not dense; the others keep their guided
    velocity, and their keys and values, from when they last were."""
    clone, state = model.clone(), Ras(model, steps, ratio)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "ras", state.predict)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "ras", state.apply_model)
    return clone
