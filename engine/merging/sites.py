"""Where in a transformer's blocks image tokens are merged and given back.

The stream of tokens between the merge sites stays whole: only what attention and MLP work on is merged, so that what comes
after (control nets, other blocks, the next evaluation) finds every token in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Memory
from ..partial.cache import ONE_IMAGE, CacheEntry, ImageRows, Keys, Place
from ..partial.order import Around
from ..partial.patching import patched_forward
from ..partial.token_gather import ALL_FIRST, GatherInputs
from ..partial.token_subset import REFERENCES
from .matching import Merge

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True)
class MergeSite:
    """A stretch of a block: tokens are merged where they enter `input_module` and given back where they leave `output_module`.

    parts: what is computed in between, "attention", "mlp" or both. input_arg: which argument of `input_module` the tokens
    are, by position or by name, or several positions. output_index: which item of what `output_module` returns, None where it
    returns nothing else.
    """

    parts: tuple[str, ...]
    input_module: nn.Module
    output_module: nn.Module
    input_arg: int | str | tuple[int, ...] = 0
    output_index: int | None = None


def attention(
    first: nn.Module, last: nn.Module | None = None, input_arg: int | str | tuple[int, ...] = 0, output_index: int | None = None
) -> MergeSite:
    """Attention in one module, or from one to another."""
    return MergeSite((ATTENTION,), first, last or first, input_arg, output_index)


def mlp(module: nn.Module) -> MergeSite:
    """An MLP in one module."""
    return MergeSite((MLP,), module, module)


def parallel(first: nn.Module, last: nn.Module) -> MergeSite:
    """Attention and MLP side by side between two layers."""
    return MergeSite((ATTENTION, MLP), first, last)


MergeSites = Callable[[Any], Iterable[MergeSite]]  # those of a block


class MergedTokens:
    """A merge of the image's tokens in sequences that may hold others besides, a `Gather` that changes positions alone.

    around: where other tokens stand.
    """

    entering = False

    def __init__(self, merge: Merge, around: Around = ALL_FIRST):
        self.of, self.around = merge, around
        self.rows: tuple[int, ...] = ()  # frames, rows and columns of the tokens merged last, where they had them

    def before(self, length: int, count: int) -> int:
        """How many tokens of a sequence come before the image's, of which it has `count`."""
        return self.around.before(length - count)

    def tokens(self, x: Tensor, text: bool = False, alone: bool = False) -> Tensor:
        """Hidden states stay whole between the sites."""
        return x

    def text(self, x: Tensor) -> Tensor:
        """So does text."""
        return x

    def positions(self, x: Tensor, axis: int, alone: bool = False) -> Tensor:
        """A table of positions of a whole sequence, for one whose image tokens are merged."""
        before = self.before(x.shape[axis], self.of.count)
        ends = torch.arange(x.shape[axis], device=x.device)
        index = torch.cat([ends[:before], before + self.of.places, ends[before + self.of.count :]])
        return x.index_select(axis, index)

    def image(self, x: Tensor) -> Tensor:
        """What stands outside of attention stays whole too."""
        return x

    def mask(self, x: Tensor) -> Tensor:
        """An attention mask (..., queries or 1, keys) of a whole sequence, for one whose image tokens are merged."""
        keys = self.positions(x, x.ndim - 1)
        return keys if x.shape[-2] == 1 else self.positions(keys, x.ndim - 2)

    def merge(self, x: Tensor) -> Tensor:
        """Merge the image's tokens in a sequence (B, n, C), or (B, frames, rows, columns, C), which becomes one."""
        self.rows = tuple(x.shape[1:-1]) if x.ndim > 3 else ()
        x = x.flatten(1, -2)
        before = self.before(x.shape[1], self.of.count)
        if x.shape[1] == self.of.count:
            return self.of.merge(x)
        first, image, last = x.split([before, self.of.count, x.shape[1] - before - self.of.count], dim=1)
        return torch.cat([first, self.of.merge(image), last], dim=1)

    def unmerge(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Give every token its group's value. residual (B, members, C): what each member of a group gets besides that."""
        before = self.before(y.shape[1], self.of.merged_count)
        if y.shape[1] == self.of.merged_count:
            x = self.of.unmerge(y)
        else:
            ends = torch.arange(y.shape[1], device=y.device)
            rows = torch.cat([ends[:before], before + self.of.rows, ends[before + self.of.merged_count :]])
            x = y.index_select(1, rows)
        x = x if residual is None else x.index_add_(1, before + self.of.members, residual.to(x.dtype))
        return x.unflatten(1, self.rows) if self.rows else x

    def residual(self, x: Tensor) -> Tensor:
        """By how much the members of groups in a sequence (B, n, C) differ from their groups: (B, members, C)."""
        x = x.flatten(1, -2)
        before = self.before(x.shape[1], self.of.count)
        return self.of.residual(x[:, before : before + self.of.count])


class MergeResiduals:
    """By how much the outputs of merged tokens differed from their group's in the last exact evaluation: temporal reuse.

    A group's value is fresh; what sets its tokens apart is `share` of what it was then. rows: the image that they are of.
    memory: how they are kept.
    """

    def __init__(self, share: float, rows: ImageRows = ONE_IMAGE, memory: Memory = "device"):
        self.share, self.rows, self.memory, self.entry = share, rows, memory, CacheEntry()

    @property
    def bytes(self) -> int:
        return self.entry.bytes

    def clear(self) -> None:
        """Drop what was recorded."""
        self.entry = CacheEntry()

    def put(self, place: Place, keys: Keys, residual: Tensor) -> None:
        """Keep the residual (rows, members, C) of these streams at a place; it is scaled in place."""
        residual = residual.detach()
        self.entry.put(place, keys, residual.mul_(self.share) if self.share < 1 else residual, self.memory)

    def get(self, place: Place, keys: Keys) -> Tensor | None:
        """The residual of these streams at a place, None where none was recorded."""
        return self.entry.get(place, keys) if self.entry.holds(keys, place) else None

    def put_references(self, place: tuple[int, int], keys: Keys, part: Tensor) -> None:
        """Keep the keys and values (rows, ..., n, 2 C), side by side, that these streams' references have in an attention."""
        self.entry.put((*place, REFERENCES), keys, part, self.memory)

    def references(self, place: tuple[int, int], keys: Keys) -> Tensor | None:
        """Those keys and values, None where none were recorded."""
        return self.get((*place, REFERENCES), keys)

    def keeps_references(self, keys: Keys) -> bool:
        """Whether those of these streams were recorded."""
        kept = [place for place in self.entry.parts if isinstance(place, tuple) and place[-1] == REFERENCES]
        return any(self.entry.holds(keys, place) for place in kept)


def _item(output, index: int | None) -> Tensor:
    return output if index is None else output[index]


def _with_item(output, index: int | None, value: Tensor):
    if index is None:
        return value
    return type(output)(value if i == index else item for i, item in enumerate(output))


@contextmanager
def recording_residuals(
    blocks: Sequence[nn.Module], sites: MergeSites, tokens: MergedTokens, residuals: MergeResiduals, keys: Keys,
    parts: frozenset[str], spared: frozenset[int] = frozenset(),
) -> Iterator[None]:  # fmt: skip
    """While this holds, exact calls record what a coming merge will lack."""

    def recorded(place: Place, site: MergeSite) -> Callable:
        forward = site.output_module.forward

        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            own = residuals.rows.of(_item(output, site.output_index))
            residuals.put(place, keys, tokens.residual(own))
            return output

        return run

    chosen = _chosen(blocks, sites, parts, spared)
    with patched_forward({site.output_module: recorded(place, site) for place, site in chosen}):
        yield


@contextmanager
def merging(
    blocks: Sequence[nn.Module], sites: MergeSites, gather_inputs: GatherInputs, tokens: MergedTokens, parts: frozenset[str],
    spared: frozenset[int] = frozenset(), residuals: MergeResiduals | None = None, keys: Keys = (),
) -> Iterator[None]:  # fmt: skip
    """While this holds, the image's tokens are merged at the sites of these parts, except in `spared` blocks.

    gather_inputs: gathers positions from a block's arguments, as for a subset of tokens. residuals: what was recorded for these
    streams, None to give every token its group's value alone.
    """
    forwards: dict[nn.Module, Callable] = {}

    def entered(block: nn.Module) -> Callable:
        forward = block.forward

        def run(*args, **kwargs):
            args, kwargs = gather_inputs(block, list(args), dict(kwargs), tokens)
            return forward(*args, **kwargs)

        return run

    def merged(site: MergeSite) -> Callable:
        forward, argument = site.input_module.forward, site.input_arg

        def run(*args, **kwargs):
            if isinstance(argument, str):
                kwargs[argument] = tokens.merge(kwargs[argument])
            else:
                merge = (argument,) if isinstance(argument, int) else argument
                args = tuple(tokens.merge(own) if i in merge else own for i, own in enumerate(args))
            return forward(*args, **kwargs)

        return run

    def unmerged(place: Place, site: MergeSite, forward: Callable) -> Callable:
        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            residual = residuals.get(place, keys) if residuals is not None else None
            whole = tokens.unmerge(_item(output, site.output_index), residual)
            return _with_item(output, site.output_index, whole)

        return run

    for place, site in _chosen(blocks, sites, parts, spared):
        if ATTENTION in site.parts:
            forwards.setdefault(blocks[place[0]], entered(blocks[place[0]]))
        forwards[site.input_module] = merged(site)
        inner = forwards.get(site.output_module, site.output_module.forward)
        forwards[site.output_module] = unmerged(place, site, inner)
    with patched_forward(forwards):
        yield


def _chosen(
    blocks: Iterable[nn.Module], sites: MergeSites, parts: frozenset[str], spared: frozenset[int]
) -> Iterator[tuple[tuple[int, int], MergeSite]]:
    """The sites of which everything is wanted, each with its block and its number there."""
    for index, block in enumerate(blocks):
        if index not in spared:
            for number, site in enumerate(sites(block)):
                if parts.issuperset(site.parts):
                    yield (index, number), site
