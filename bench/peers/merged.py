"""What the peers that merge tokens share: where SD3's blocks begin and end, and a merge matched for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...engine.partial.patching import patched_forward
from ...engine.partial.token_subset import TokenGrid
from ...host.families import family_of
from .common import Steps


class Bipartite:
    """Sources (B, S) merge by mean into one of the destinations (B, D) each; `into` (B, S) says which; others stay."""

    def __init__(self, count: int, sources: Tensor, into: Tensor, destinations: Tensor):
        taken = torch.zeros(len(sources), count, dtype=torch.long, device=sources.device)
        taken.scatter_(1, torch.cat([sources, destinations], 1), 1)
        others = count - sources.shape[1] - destinations.shape[1]
        self.kept = taken.argsort(dim=1, stable=True)[:, :others]
        self.sources, self.into, self.destinations, self.count = sources, into, destinations, count

    def merge(self, x: Tensor) -> Tensor:
        index = self.into[..., None].expand(-1, -1, x.shape[2])
        own = _rows(x, self.destinations).scatter_reduce(1, index, _rows(x, self.sources), "mean", include_self=True)
        return torch.cat([_rows(x, self.kept), own], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        kept, own = y.split([self.kept.shape[1], self.destinations.shape[1]], dim=1)
        x = y.new_empty(len(y), self.count, y.shape[2])
        for index, values in ((self.kept, kept), (self.destinations, own), (self.sources, _rows(own, self.into))):
            x.scatter_(1, index[..., None].expand(-1, -1, y.shape[2]), values)
        return x

    def touched(self) -> Tensor:
        """Bool (B, count, 1), true for sources and destinations."""
        untouched = torch.zeros(len(self.kept), self.count, dtype=torch.bool, device=self.kept.device)
        return ~untouched.scatter_(1, self.kept, True)[..., None]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def most_alike(x: Tensor, destinations: Tensor, number: int) -> Bipartite:
    """The `number` tokens most alike, by cosine, to one of the destinations (B, D) merge into it (ToMe's matching)."""
    count = x.shape[1]
    is_source = torch.ones(len(x), count, dtype=torch.long, device=x.device).scatter_(1, destinations, 0)
    candidates = is_source.argsort(dim=1, descending=True, stable=True)[:, : count - destinations.shape[1]]
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    best, into = (_rows(unit, candidates) @ _rows(unit, destinations).transpose(1, 2)).max(dim=2)
    chosen = best.argsort(dim=1, descending=True)[:, :number]
    return Bipartite(count, candidates.gather(1, chosen), into.gather(1, chosen), destinations)


def window_members(grid: TokenGrid, device: torch.device, side: int = 2) -> Tensor:
    """(W, side * side) tokens of each window of an even grid."""
    h, w = grid.size
    index = torch.arange(h * w, device=device).view(h // side, side, w // side, side)
    return index.permute(0, 2, 1, 3).reshape(-1, side * side)


class Merger:
    """One method: asked at every block's attention for a match, then given what enters and leaves the merge sites."""

    def begin(self, step: int, cache: dict, grid: TokenGrid) -> None:
        """A call of the model begins; the cache is one run's."""

    def match(self, x: Tensor) -> Bipartite | None:
        raise NotImplementedError

    def kinds(self) -> tuple[str, ...]:
        raise NotImplementedError

    def leave(self, place: tuple[int, int], y: Tensor, match: Bipartite | None) -> Tensor:
        """Outputs (B, count, C) of a station, given back where there is a match."""
        return y


@contextmanager
def around(blocks: list[nn.Module], sites: Callable, merger: Merger) -> Iterator[None]:
    """While this holds, every block's image tokens are matched where its attention begins, and merged where wanted."""
    forwards: dict[nn.Module, Callable] = {}

    def stretch(index: int, number: int, site, current: dict) -> None:
        kind, first, last = site.parts[0], site.input_module, site.output_module

        def enter(x: Tensor, forward=first.forward) -> Tensor:
            if number == 0:
                current["match"] = merger.match(x)
            merged = current["match"] is not None and kind in merger.kinds()
            return forward(current["match"].merge(x) if merged else x)

        forwards[first] = enter
        inner = forwards.get(last, last.forward)

        def leave(y: Tensor, forward=inner) -> Tensor:
            y, match = forward(y), current["match"] if kind in merger.kinds() else None
            return merger.leave((index, number), y if match is None else match.unmerge(y), match)

        forwards[last] = leave

    for index, block in enumerate(blocks):
        current: dict = {}
        for number, site in enumerate(sites(block)):
            stretch(index, number, site, current)
    with patched_forward(forwards):
        yield


def with_merger(model: Any, name: str, merger: Merger) -> Any:
    """A clone of an SD3 MODEL whose calls go through a merger."""
    family, network, steps = family_of(model), model.get_model_object("diffusion_model"), Steps()
    blocks = list(family.blocks(network))

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        step = steps.advance(float(transformer_options["sigmas"][0]))
        cache = steps.cache.setdefault(tuple(transformer_options["uuids"]), {})
        merger.begin(step, cache, TokenGrid(tuple(x.shape[-2:]), family.patch(network)))
        with around(blocks, family.sites, merger):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, name, apply_model)
    return clone
