"""Cross-attention as ComfyUI computes it, listened to without taking anybody's place.

An attn2 replacement has one slot a block, which IP-Adapter fills. So the tap is put into a copy of the call's
transformer_options, for that call alone, and calls whatever was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import comfy.ldm.modules.attention
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

from ..engine.region.heatmap import HeatmapAccumulator, TokenWeights, finest_levels, grid_of, token_maps

TAKES_NO_MASKS = "attention_flash"  # by its name, since not every version of ComfyUI has it
LAYERS = 3  # cross-attentions of a level that are listened to; more cost more and say the same

Site = tuple[str, int, int]


def takes_no_masks() -> bool:
    """Whether the attention in use takes no mask: ComfyUI's of flash attention says so in a warning at every call with one, and
    goes on with PyTorch's."""
    return getattr(comfy.ldm.modules.attention.optimized_attention, "__name__", "") == TAKES_NO_MASKS


def with_masks(function: Callable, *args, **kwargs) -> Tensor:
    """An attention override that takes PyTorch's attention for calls with a mask, and `function` for all others."""
    return (function if kwargs.get("mask") is None else attention_pytorch)(*args, **kwargs)


def cross_attention_sites(unet: UNetModel) -> list[Site]:
    """(block, number, depth) of the cross-attentions of the decoder's two finest levels that have any, at most `LAYERS` of each
    level, spread evenly; of the middle block where no level has any."""
    factors: list[int] = []
    for block in unet.input_blocks:
        halvings = sum(isinstance(layer, Downsample) for layer in block)
        factors.append((factors[-1] if factors else 1) * 2**halvings)
    levels: dict[int, list[Site]] = {}
    for number, (block, factor) in enumerate(zip(unet.output_blocks, reversed(factors), strict=True)):
        if sites := _sites("output", number, block):
            levels.setdefault(factor, []).extend(sites)
    if not levels:
        return _sites("middle", 0, unet.middle_block)[:LAYERS]
    return [site for factor in finest_levels(levels) for site in _spread(levels[factor])]


def _sites(name: str, number: int, block) -> list[Site]:
    depth = sum(len(layer.transformer_blocks) for layer in block if isinstance(layer, SpatialTransformer))
    return [(name, number, i) for i in range(depth)]


def _spread(sites: list[Site]) -> list[Site]:
    """At most `LAYERS` of them, evenly."""
    return sites if len(sites) <= LAYERS else [sites[i * (len(sites) - 1) // (LAYERS - 1)] for i in range(LAYERS)]


class HeatmapTap:
    """Listens to the cross-attentions of one call for some of its `streams` rows: (row, its cond, its words' weights)."""

    def __init__(
        self, accumulator: HeatmapAccumulator, sites: Sequence[Site],
        rows: Sequence[tuple[int, Hashable, TokenWeights | None]], streams: int, frame: tuple[int, int],
    ):  # fmt: skip
        self.accumulator, self.sites, self.rows, self.streams, self.frame = accumulator, sites, rows, streams, frame

    def attached(self, options: dict) -> dict:
        """A copy of transformer_options in which the chosen attn2 calls pass by this tap."""
        options = dict(options)
        replace = dict(options.get("patches_replace", {}))
        replace["attn2"] = _Slots(replace.get("attn2", {}), self)
        options["patches_replace"] = replace
        return options

    def hear(self, q: Tensor, k: Tensor, heads: int) -> None:
        grid = grid_of(q.shape[1], *self.frame)
        if grid is None:
            return
        queries, keys = q.chunk(self.streams), k.chunk(self.streams)
        for row, prompt, weights in self.rows:
            self.accumulator.add(token_maps(queries[row], keys[row], heads), grid, prompt, weights)


class _Slots(dict):
    """The attn2 slots of one call: foreign replacements stay, chosen sites are listened to."""

    def __init__(self, foreign: dict, tap: HeatmapTap):
        super().__init__(foreign)
        self.tap = tap

    def __contains__(self, site) -> bool:
        return site in self.tap.sites or super().__contains__(site)

    def __getitem__(self, site) -> Callable:
        if site not in self.tap.sites:
            return super().__getitem__(site)
        foreign = self.get(site, self.get(site[:2]))

        def listened(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
            self.tap.hear(q, k, extra["n_heads"])
            if foreign is not None:
                return foreign(q, k, v, extra)
            return optimized_attention(
                q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra
            )

        return listened
