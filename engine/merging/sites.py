"""Where in a transformer's blocks image tokens are merged and given back.

The stream of tokens between the stations stays whole: only what attention and MLP work on is merged, so that what comes
after (control nets, other blocks, the next evaluation) finds every token in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import Memory
from ..partial.cache import ONE_IMAGE, CacheEntry, ImageRows, Key, Keys, Place
from ..partial.patching import patched_forward
from ..partial.tokens import Enter
from .matching import Merge

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True)
class Station:
    """A stretch of a block: tokens are merged where they enter `first` and given back where they leave `last`.

    kinds: what is done in between. takes: which argument of `first` they are, gives: which item of what `last` returns;
    None where it returns nothing else.
    """

    kinds: tuple[str, ...]
    first: nn.Module
    last: nn.Module
    takes: int | str = 0
    gives: int | None = None


def attention(first: nn.Module, last: nn.Module | None = None, takes: int | str = 0, gives: int | None = None) -> Station:
    return Station((ATTENTION,), first, last or first, takes, gives)


def mlp(module: nn.Module) -> Station:
    return Station((MLP,), module, module)


def parallel(first: nn.Module, last: nn.Module) -> Station:
    """Attention and MLP side by side between two layers."""
    return Station((ATTENTION, MLP), first, last)


Stations = Callable[[nn.Module], Iterable[Station]]


class MergedTokens:
    """A merge of the image's tokens in sequences that may hold others besides: stands where `Enter` expects a `Pick`.

    text_first, trailing: as a family has them.
    """

    def __init__(self, merge: Merge, text_first: bool = True, trailing: int = 0):
        self.of, self.text_first, self.trailing = merge, text_first, trailing

    def before(self, length: int, count: int) -> int:
        """How many tokens of a sequence come before the image's, of which it has `count`."""
        return length - count - self.trailing if self.text_first else 0

    def tokens(self, x: Tensor, text: bool = False) -> Tensor:
        """Hidden states stay whole between the stations."""
        return x

    def text(self, x: Tensor) -> Tensor:
        """So does text."""
        return x

    def positions(self, x: Tensor, axis: int) -> Tensor:
        """A table of positions of a whole sequence, for one whose image tokens are merged."""
        before = self.before(x.shape[axis], self.of.count)
        ends = torch.arange(x.shape[axis], device=x.device)
        index = torch.cat([ends[:before], before + self.of.places, ends[before + self.of.count :]])
        return x.index_select(axis, index)

    def merge(self, x: Tensor) -> Tensor:
        before = self.before(x.shape[1], self.of.count)
        if x.shape[1] == self.of.count:
            return self.of.merge(x)
        first, image, last = x.split([before, self.of.count, x.shape[1] - before - self.of.count], dim=1)
        return torch.cat([first, self.of.merge(image), last], dim=1)

    def unmerge(self, y: Tensor, detail: Tensor | None = None) -> Tensor:
        """detail (B, members, C): what each member of a group is given besides its group's value."""
        before = self.before(y.shape[1], self.of.merged_count)
        if y.shape[1] == self.of.merged_count:
            x = self.of.unmerge(y)
        else:
            ends = torch.arange(y.shape[1], device=y.device)
            rows = torch.cat([ends[:before], before + self.of.rows, ends[before + self.of.merged_count :]])
            x = y.index_select(1, rows)
        return x if detail is None else x.index_add_(1, before + self.of.members, detail.to(x.dtype))

    def detail(self, x: Tensor) -> Tensor:
        """What the members of groups in a sequence (B, n, C) differ from their groups by: (B, members, C)."""
        before = self.before(x.shape[1], self.of.count)
        return self.of.detail(x[:, before : before + self.of.count])


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
        held = place in self.entry.parts and self.entry.holds(keys)
        return self.entry.get(place, keys) if held else None


def _item(output, gives: int | None) -> Tensor:
    return output if gives is None else output[gives]


def _with_item(output, gives: int | None, value: Tensor):
    if gives is None:
        return value
    return type(output)(value if i == gives else item for i, item in enumerate(output))


@contextmanager
def recording_details(
    blocks: Iterable[nn.Module], stations: Stations, tokens: MergedTokens, details: MergeResiduals, keys: Sequence[Key],
    kinds: frozenset[str], spared: frozenset[int] = frozenset(),
) -> Iterator[None]:  # fmt: skip
    """While this holds, whole calls record what a coming merge will lack."""
    forwards: dict[nn.Module, Callable] = {}

    def heard(place: Place, station: Station) -> Callable:
        forward = station.last.forward

        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            details.put(place, tuple(keys), tokens.detail(details.rows.of(_item(output, station.gives))))
            return output

        return run

    for place, station in _chosen(blocks, stations, kinds, spared):
        forwards[station.last] = heard(place, station)
    with patched_forward(forwards):
        yield


@contextmanager
def merging(
    blocks: Sequence[nn.Module], stations: Stations, enter: Enter, tokens: MergedTokens, kinds: frozenset[str],
    spared: frozenset[int] = frozenset(), details: MergeResiduals | None = None, keys: Sequence[Key] = (),
) -> Iterator[None]:  # fmt: skip
    """While this holds, the image's tokens are merged at the stations of these kinds, but in `spared` blocks.

    enter: takes positions out of a block's arguments, as for a subset of tokens.
    """
    forwards: dict[nn.Module, Callable] = {}

    def entered(block: nn.Module) -> Callable:
        forward = block.forward

        def run(*args, **kwargs):
            args, kwargs = enter(block, list(args), dict(kwargs), tokens)
            return forward(*args, **kwargs)

        return run

    def merged(station: Station) -> Callable:
        forward, takes = station.first.forward, station.takes

        def run(*args, **kwargs):
            if isinstance(takes, str):
                kwargs[takes] = tokens.merge(kwargs[takes])
            else:
                args = (*args[:takes], tokens.merge(args[takes]), *args[takes + 1 :])
            return forward(*args, **kwargs)

        return run

    def given_back(place: Place, station: Station, forward: Callable) -> Callable:
        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            detail = details.get(place, tuple(keys)) if details is not None else None
            return _with_item(output, station.gives, tokens.unmerge(_item(output, station.gives), detail))

        return run

    for place, station in _chosen(blocks, stations, kinds, spared):
        if ATTENTION in station.kinds:
            forwards.setdefault(blocks[place[0]], entered(blocks[place[0]]))
        forwards[station.first] = merged(station)
        inner = forwards.get(station.last, station.last.forward)
        forwards[station.last] = given_back(place, station, inner)
    with patched_forward(forwards):
        yield


def _chosen(
    blocks: Iterable[nn.Module], stations: Stations, kinds: frozenset[str], spared: frozenset[int]
) -> Iterator[tuple[Place, Station]]:
    """The stations of which everything is wanted."""
    for index, block in enumerate(blocks):
        if index not in spared:
            for number, station in enumerate(stations(block)):
                if kinds.issuperset(station.kinds):
                    yield (index, number), station
