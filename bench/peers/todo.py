"""ToDo: Smith et al., "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", 2024
(arXiv 2402.13573), on SD3's joint attention."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ...engine.partial.attention_override import AttentionOverride
from ...engine.partial.token_subset import TokenGrid
from ...engine.partial.transformer import patched_blocks
from ...host.call import ModelCall
from ...host.dit import DiTCall, transformer_of
from ...host.families import family_of


class Downsampled(AttentionOverride):
    """Gives image queries the keys and values of every `factor`-th row and column of the grid alone, and all of the text's."""

    def __init__(self, grid: TokenGrid, factor: int, blocks: range):
        super().__init__(grid.count)
        self.grid, self.factor, self.blocks = grid, factor, blocks

    def attend(self, place, function, q, k, v, heads, *args, **kwargs):
        layout = self.layout(q, k)
        if layout is None or place[0] not in self.blocks:
            return function(q, k, v, heads, *args, **kwargs)
        kept = torch.arange(self.grid.count, device=k.device).view(self.grid.size)[:: self.factor, :: self.factor].flatten()
        index = torch.cat([torch.arange(layout.before, device=k.device), layout.before + kept])
        v = v.flatten(2) if v.ndim > q.ndim else v
        return function(q, k.index_select(-2, index), v.index_select(-2, index), heads, *args, **kwargs)


def apply(model: Any, factor: int, share: float = 1.0) -> Any:
    """Keys and values are downsampled by `factor` in both directions, in the first `share` of the blocks."""
    network, family = model.get_model_object("diffusion_model"), family_of(model)
    blocks = range(round(share * len(list(family.blocks(network)))))

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        override = Downsampled(TokenGrid(tuple(x.shape[-2:]), family.patch(network)), factor, blocks)
        call = ModelCall(executor, x, t, c_concat, c_crossattn, control, transformer_options, kwargs)
        with patched_blocks(transformer_of(family, network), override):
            return DiTCall(call, family)(override)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "todo", apply_model)
    return clone
