"""What a partial evaluation lacks, recorded in dense ones and extrapolated to where it is needed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import Memory
from ..placement.time_axis import Axis, log_sigma
from ..prediction.forecast import extrapolate, reach

PERSISTENCE = 0.7  # how much of the last slope of what was recorded goes on, measured on the demo model
Key = Hashable  # one image stream of a batch: a cond of the host
Keys = tuple[Key, ...]


CODED = 64  # channels that share a scale in 8 bits, where they divide evenly


class Kept:
    """A tensor as it is."""

    def __init__(self, x: Tensor):
        self.x = x

    @property
    def bytes(self) -> int:
        return self.x.numel() * self.x.element_size()

    def restored(self) -> Tensor:
        return self.x


class Coded:
    """A tensor (..., C) in 8 bits, with a scale for every 64 channels; half a per cent off."""

    def __init__(self, x: Tensor):
        self.dtype, channels = x.dtype, x.shape[-1]
        groups = x.unflatten(-1, (-1, CODED if channels % CODED == 0 else channels))
        self.scale = groups.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 127
        self.codes = (groups / self.scale).round().to(torch.int8)

    @property
    def bytes(self) -> int:
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()

    def restored(self) -> Tensor:
        return (self.codes * self.scale).flatten(-2).to(self.dtype)


class Offloaded(Kept):
    """A tensor in the host's memory, copied there and back without waiting for either."""

    def __init__(self, x: Tensor):
        self.device = x.device
        super().__init__(torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True))

    def restored(self) -> Tensor:
        return self.x.to(self.device, non_blocking=True)


KEEPERS = {"device": Kept, "8 bit": Coded, "offload": Offloaded}


@dataclass
class Recording:
    """What one region lacks, from one dense evaluation.

    parts: its place in the model -> the streams of one call -> a tensor whose rows are those streams', one after the other.
    """

    sigma: float
    parts: dict[Hashable, dict[Keys, Kept | Coded]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for calls in self.parts.values() for part in calls.values())

    def holds(self, keys: Keys) -> bool:
        """True when these streams were recorded, in one call or several."""
        calls = next(iter(self.parts.values()), {})
        return keys in calls or set(keys) <= {key for call in calls for key in call}

    def part(self, place: Hashable, keys: Keys) -> Tensor:
        """The rows of these streams, in their order."""
        calls = self.parts[place]
        if keys in calls:
            return calls[keys].restored()
        rows = {
            key: row for call, part in calls.items() for key, row in zip(call, part.restored().chunk(len(call)), strict=True)
        }
        return torch.cat([rows[key] for key in keys])


class Surroundings:
    """The last two recordings of what one region of one image lacks.

    image: which image of a batch it belongs to, and how many there are. A call's rows are its streams, of each of
    which every image is a row; a region records and computes its own image's alone. axis: on which it is extrapolated.
    memory: how tokens are kept, which are by far the most of it.
    """

    memory: Memory = "device"
    persistence: float = PERSISTENCE  # how much of the last slope goes on; 0 takes what was recorded last as it is

    def __init__(self, image: tuple[int, int] = (0, 1), axis: Axis = log_sigma):
        self.image, self.images = image
        self.axis = axis
        self.recordings: list[Recording] = []

    @property
    def bytes(self) -> int:
        return sum(recording.bytes for recording in self.recordings)

    def begin(self, sigma: float) -> None:
        """Start the recording of a dense evaluation; the one before the last is dropped."""
        if self.recordings and sigma >= self.recordings[-1].sigma * (1 - 1e-6):
            self.recordings.pop()
        self.recordings.append(Recording(sigma))
        del self.recordings[:-2]

    def end(self) -> None:
        """End the recording of a dense evaluation; one that holds nothing, since the model was not called, is dropped."""
        self.recordings[:] = [recording for recording in self.recordings if recording.parts]

    def holds(self, keys: Sequence[Key]) -> bool:
        """Whether the newest recording has these streams."""
        return self.recordings[-1].holds(tuple(keys))

    def rows(self, x: Tensor) -> Tensor:
        """The rows (streams, ...) of this region's image, from those of a whole call (streams * images, ...)."""
        return x.unflatten(0, (-1, self.images))[:, self.image] if self.images > 1 else x

    def keep(self, place: Hashable, keys: Keys, part: Tensor, tokens: bool = False) -> None:
        """Add what was recorded at a place to the newest recording; `tokens`: it is one row a token."""
        keeper = KEEPERS[self.memory] if tokens else Kept
        self.recordings[-1].parts.setdefault(place, {})[keys] = keeper(part.detach())

    def part(self, place: Hashable, keys: Keys, sigma: float) -> Tensor:
        """The recorded part for these streams, extrapolated to sigma."""
        newer = self.recordings[-1]
        part = newer.part(place, keys)
        if len(self.recordings) < 2 or not self.recordings[0].holds(keys):
            return part
        older = self.recordings[0]
        before = older.part(place, keys)
        if before.shape != part.shape:  # the host put other prompts together, and their text has another length
            return part
        return extrapolate(part, before, self.persistence * reach(sigma, newer.sigma, older.sigma, self.axis))
