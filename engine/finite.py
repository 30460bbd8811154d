"""Which evaluation of a run first was not finite, found without waiting for the device once more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .trace import Evaluation, RunRecord


def all_finite(*tensors: Tensor) -> Tensor:
    """A bool scalar on the device of the first tensor: whether no value of any is NaN or infinite."""
    device = tensors[0].device
    return torch.stack([tensor.isfinite().all().to(device) for tensor in tensors]).all()


def number_or_none(value: float | None) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


class Finiteness:
    """Watches what a run is given and computes, and names the first evaluation that is not finite in the run's record.

    `see` leaves a flag on the device. It comes to the host with numbers that come there anyway: the heatmap and the
    forecast's error of the same evaluation (`told`), or else the sigma of the next one (`sigma_of`), which the host has to
    wait for as it is. So no evaluation has one transfer more, and nothing that was computed from a prediction is used
    before it is known whether that was finite. Where nothing took a flag along, as at the end of a run or where a sampler's
    sigmas are no tensors, `settle` reads it.
    """

    def __init__(self, record: RunRecord):
        self.record = record
        self.pending: tuple[Evaluation, Tensor] | None = None
        self.latent_is_finite = True

    @property
    def lost(self) -> str | None:
        """Why nothing may be saved any more, or None while everything was finite."""
        if self.record.not_finite is not None:
            return f"evaluation {self.record.not_finite + 1} was not finite"
        return None if self.latent_is_finite else "the latent that the sampler asks about is not finite"

    def see(self, evaluation: Evaluation, *tensors: Tensor) -> Tensor:
        """Take note of what an evaluation was given and computed; returns whether it is finite, a bool on the device."""
        flag = all_finite(*tensors)
        if self.record.not_finite is None:
            self.pending = evaluation, flag
        return flag

    def sigma_of(self, timestep: Tensor, x: Tensor) -> float:
        """The sigma of an evaluation (of the first picture), read together with whether x and the evaluation before are
        finite."""
        sigma = timestep.flatten()[0]
        flags = [all_finite(x), *([self.pending[1]] if self.pending else [])]
        number, latent, *before = torch.stack([sigma, *(flag.to(sigma) for flag in flags)]).tolist()
        if before:
            self._learned(bool(before[0]))
        self.latent_is_finite = bool(latent)
        return float(number)

    def told(self, measured: Sequence[Tensor]) -> Tensor | None:
        """What was measured in the evaluation last seen, flat and on the CPU, in one transfer with its flag; None where the
        evaluation was not finite, so that nothing of it counts. Without measurements nothing is read."""
        if not measured:
            return torch.empty(0)
        flat = [m.flatten() for m in measured]
        if self.pending is not None:
            flat.append(self.pending[1].to(flat[0])[None])
        told = torch.cat(flat).cpu()
        if self.pending is None:
            return told
        return told[:-1] if self._learned(bool(told[-1])) else None

    def settle(self) -> None:
        """Read the flag that nothing else has taken along, which waits for the device where it is still at work."""
        if self.pending is not None:
            self._learned(bool(self.pending[1]))

    def _learned(self, finite: bool) -> bool:
        evaluation = self.pending[0] if self.pending is not None else None
        self.pending = None
        if evaluation is not None and not finite:
            what = "its prediction" if self.latent_is_finite else "the latent it was given"
            evaluation.reason += f"; {what} is not finite"
            self.record.not_finite = evaluation.index
        return finite
