"""The activation cache: what a partial evaluation lacks, recorded in dense ones and extrapolated to where it is needed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import Memory
from ..extrapolation import extrapolate, extrapolation_ratio, is_below
from ..time_axis import DIFFUSION, TimeAxis
from ..tuning import ACTIVATION_DAMPING
from .storage import STORAGES, Storage

Key = Hashable  # one stream of a call: a cond of the host
Keys = tuple[Key, ...]
Place = Hashable  # where in the model a tensor was recorded


@dataclass(frozen=True)
class ImageRows:
    """The rows of one image in a call. A call's rows are its streams, of each of which every image of the batch is a row.

    image: its index in the batch. images: how many there are.
    """

    image: int = 0
    images: int = 1

    def of(self, x: Tensor) -> Tensor:
        """The rows (streams, ...) of this image, a view of those of a whole call (streams * images, ...)."""
        return x.unflatten(0, (-1, self.images))[:, self.image] if self.images > 1 else x


ONE_IMAGE = ImageRows()


@dataclass
class CacheEntry:
    """What was recorded in one dense evaluation.

    parts: place -> the streams of one call -> a tensor whose rows are those streams', one after the other.
    """

    sigma: float = 0.0
    parts: dict[Place, dict[Keys, Storage]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for calls in self.parts.values() for part in calls.values())

    def holds(self, keys: Keys, place: Place | None = None) -> bool:
        """Whether these streams were recorded at a place, by default the first, in one call or several."""
        calls = next(iter(self.parts.values()), {}) if place is None else self.parts.get(place, {})
        return keys in calls or set(keys) <= {key for call in calls for key in call}

    def put(self, place: Place, keys: Keys, part: Tensor, memory: Memory = "device") -> None:
        """Keep what these streams have at a place."""
        self.parts.setdefault(place, {})[keys] = STORAGES[memory](part.detach())

    def get(self, place: Place, keys: Keys) -> Tensor:
        """The rows of these streams, in their order."""
        calls = self.parts[place]
        if keys in calls:
            return calls[keys].restored()
        rows = {
            key: row for call, part in calls.items() for key, row in zip(call, part.restored().chunk(len(call)), strict=True)
        }
        return torch.cat([rows[key] for key in keys])


class ActivationCache:
    """The last two recordings of what one region of one image lacks.

    rows: the image it belongs to; a region records and computes that one's rows alone. axis: the time axis along which it is
    extrapolated. memory: how tensors with a row for each token are kept, which are by far the most of it. damping: the share of
    the last slope that goes on; 0 takes what was recorded last as it is.
    """

    def __init__(self, rows: ImageRows = ONE_IMAGE, axis: TimeAxis = DIFFUSION):
        self.rows, self.axis = rows, axis
        self.memory: Memory = "device"
        self.damping = ACTIVATION_DAMPING
        self.entries: list[CacheEntry] = []

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def begin(self, sigma: float) -> None:
        """Start the recording of a dense evaluation; the one before the last is dropped."""
        if self.entries and not is_below(sigma, self.entries[-1].sigma):
            self.entries.pop()
        self.entries.append(CacheEntry(sigma))
        del self.entries[:-2]

    def end(self) -> None:
        """End the recording of a dense evaluation; one that holds nothing, since the model was not called, is dropped."""
        self.entries[:] = [entry for entry in self.entries if entry.parts]

    def holds(self, keys: Keys) -> bool:
        """Whether the newest recording has these streams."""
        return self.entries[-1].holds(keys)

    def clear(self) -> None:
        """Drop what was recorded."""
        self.entries.clear()

    def put(self, place: Place, keys: Keys, part: Tensor, tokens: bool = False) -> None:
        """Add what was recorded at a place to the newest recording. tokens: whether it has a row for each token."""
        self.entries[-1].put(place, keys, part, self.memory if tokens else "device")

    def get(self, place: Place, keys: Keys, sigma: float) -> Tensor:
        """What was recorded at a place for these streams, extrapolated to sigma."""
        newer = self.entries[-1]
        part = newer.get(place, keys)
        if len(self.entries) < 2 or not self.entries[0].holds(keys, place):
            return part
        older = self.entries[0]
        before = older.get(place, keys)
        if before.shape != part.shape:  # other prompts were computed together, whose text has another length
            return part
        ratio = extrapolation_ratio(sigma, newer.sigma, older.sigma, self.axis)
        return extrapolate(part, before, self.damping * ratio)
