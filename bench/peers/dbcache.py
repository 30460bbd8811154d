"""DBCache of Cache-DiT (2025): the first blocks always run, and where their residual has changed little since the last computed
step, or where a mask of the steps says so, what the others add is forecast by Taylor's first order.

The pack for ComfyUI that bears its name has nothing of that on the transformers it names: at every second or third call it
gives the last output once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from torch import Tensor

from .common import change, with_block_patches

# Bins of computed and of cached steps, in turn, of the masks for so many steps.
Bins = tuple[Sequence[int], Sequence[int]]
FEW: dict[int, Bins] = {4: ((2, 1), (1,)), 6: ((3, 1), (2,))}  # of all masks
LONGEST = 28
MASKS: dict[str, dict[int, Bins]] = {
    "slow": {
        8: ((5, 1, 1), (1,)), 9: ((5, 2, 1), (1,)), 15: ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        LONGEST: ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    },
    "medium": {
        8: ((4, 1, 1), (1, 1)), 9: ((5, 1, 1), (1, 1)), 15: ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        LONGEST: ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    },
    "fast": {
        8: ((3, 1, 1), (1, 2)), 9: ((4, 1, 1), (1, 2)), 15: ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        LONGEST: ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    },
    "ultra": {
        8: ((2, 1, 1), (2, 2)), 9: ((3, 1, 1), (2, 2)), 15: ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
        LONGEST: ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    },
}  # fmt: skip


def mask(name: str, steps: int) -> list[bool]:
    """Which steps are computed: the published mask of that number of steps, or else the next longer one, shortened, or the
    longest, lengthened. The last step is always computed."""
    published = FEW | MASKS[name]
    longer = [count for count in published if count >= steps]
    bins = published[min(longer)] if longer else _lengthened(published[LONGEST], steps)
    made: list[bool] = []
    for computed, cached in zip_longest(*_shortened(bins, steps), fillvalue=0):
        made += [True] * computed + [False] * cached
    return [*made[:-1], True]


def _lengthened(bins: Bins, steps: int) -> Bins:
    """Each bin in turn grows by half its share of these steps, and the last one by one, until there are enough."""
    computed, cached = grown = tuple(list(kind) for kind in bins)
    while sum(computed) + sum(cached) < steps:
        for i in range(len(cached)):
            for kind, was in zip(grown, bins, strict=True):
                if sum(computed) + sum(cached) < steps:
                    kind[i] += max(1, int(was[i] * ((steps / LONGEST) * 0.5)))
        if sum(computed) + sum(cached) < steps:
            computed[-1] += 1
    return computed, cached


def _shortened(bins: Bins, steps: int) -> Bins:
    """One step less of the last bin of either kind in turn, cached ones first, until none is too many."""
    computed, cached = (list(kind) for kind in bins)
    while sum(computed) + sum(cached) > steps:
        for kind in (cached, computed):
            if kind and sum(computed) + sum(cached) > steps:
                kind[-1] -= 1
                if not kind[-1]:
                    kind.pop()
    return computed, cached


@dataclass
class Rest:
    """What the later blocks added in the last two computed steps, and the residual of the first ones then."""

    values: list[tuple[int, Tensor]] = field(default_factory=list)
    residual: Tensor | None = None
    in_a_row: int = 0

    def at(self, step: int) -> Tensor:
        """Forecast by the difference over steps."""
        (j, newer) = self.values[-1]
        if len(self.values) < 2:
            return newer
        i, older = self.values[-2]
        return newer + (newer - older) * ((step - j) / (j - i))


def apply(model: Any, first: int, skips: Callable[[int, int, float, Rest], bool]) -> Any:
    """`first` blocks always run. skips: given the step, their number, the change of the first blocks' residual and what is
    kept, whether the others are forecast."""

    def call(index: int, last: int, img: Tensor, txt: Tensor, run, cache: dict):
        rest = cache.setdefault("rest", Rest())
        if index < first:
            cache["entered"] = img if index == 0 else cache["entered"]
            txt, img = run(txt, img)
            if index == first - 1:
                residual = img - cache["entered"]
                moved = float("inf") if rest.residual is None else float(change(residual, rest.residual))
                cache["skip"] = bool(rest.values) and skips(run.step, run.count, moved, rest)
                rest.in_a_row = rest.in_a_row + 1 if cache["skip"] else 0
                rest.residual = rest.residual if cache["skip"] else residual
                cache["began"] = img.clone()
            return txt, img
        if cache["skip"]:
            return txt, img + rest.at(run.step) if index == last else img
        txt, img = run(txt, img)
        if index == last:
            rest.values = [*rest.values, (run.step, img - cache["began"])][-2:]
        return txt, img

    return with_block_patches(model, "dbcache", call)


def by_change(model: Any, first: int, in_a_row: int, warmup: int = 4, threshold: float = 0.08) -> Any:
    """Published for FLUX: F4 or F1, four steps of warm-up, at most 4 or 6 cached ones in a row."""
    return apply(
        model, first, lambda step, count, moved, rest: step >= warmup and moved < threshold and rest.in_a_row < in_a_row
    )


def by_mask(model: Any, name: str, first: int = 1) -> Any:
    """One of `MASKS`, whatever has changed."""
    return apply(model, first, lambda step, count, moved, rest: not mask(name, count)[min(step, count - 1)])
