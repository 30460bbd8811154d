"""How recorded tensors are kept: as they are, in 8 bits, or in the CPU's memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..config import Memory

CHANNELS_PER_SCALE = 64  # where they divide a tensor's channels evenly
LARGEST_CODE = 127
SMALLEST_SCALE = 1e-12


class Storage(Protocol):
    """A kept tensor."""

    @property
    def bytes(self) -> int:
        """What it takes."""

    def restored(self) -> Tensor:
        """Returns the tensor with its shape, dtype and device."""


class DenseStorage:
    """A tensor as it is."""

    def __init__(self, x: Tensor):
        self.x = x

    @property
    def bytes(self) -> int:
        return self.x.numel() * self.x.element_size()

    def restored(self) -> Tensor:
        return self.x


class Int8Storage:
    """A tensor (..., C) in 8 bits, with a scale for every 64 channels; it is off by about half a per cent."""

    def __init__(self, x: Tensor):
        self.dtype, channels = x.dtype, x.shape[-1]
        groups = x.unflatten(-1, (-1, CHANNELS_PER_SCALE if channels % CHANNELS_PER_SCALE == 0 else channels))
        self.scale = groups.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST_SCALE) / LARGEST_CODE
        self.codes = (groups / self.scale).round().to(torch.int8)

    @property
    def bytes(self) -> int:
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()

    def restored(self) -> Tensor:
        return (self.codes * self.scale).flatten(-2).to(self.dtype)


class CpuStorage(DenseStorage):
    """A tensor in the CPU's memory, copied there and back without waiting for either."""

    def __init__(self, x: Tensor):
        self.device = x.device
        super().__init__(torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True))

    def restored(self) -> Tensor:
        return self.x.to(self.device, non_blocking=True)


STORAGES: dict[Memory, type[DenseStorage] | type[Int8Storage]] = {
    "device": DenseStorage, "8 bit": Int8Storage, "offload": CpuStorage,
}  # fmt: skip
