"""What every part of the measurement is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .models import SHAPES, TINY, Shape, Subject, published

Row = dict[str, Any]  # of a table: text, or numbers, by column; None is shown as a dash
Rows = Iterator[Row]


@dataclass(frozen=True)
class Setup:
    """Where to measure.

    tiny: at small shapes and in few steps, which tries the program and measures nothing. seconds: those that a part has.
    """

    device: torch.device
    tiny: bool
    seconds: float

    @property
    def steps(self) -> int:
        return 12 if self.tiny else 20

    def repeats_of(self, subject: Subject) -> int:
        """Runs of each method that are timed: fewer without guidance, as the largest networks are sampled."""
        return 1 if self.tiny or subject.cfg == 1.0 else 3

    @property
    def halves(self) -> tuple[str, ...]:
        """Precisions in which everything is done; one on a CPU, where fp16 is slow."""
        return ("bf16",) if self.tiny else ("fp16", "bf16")

    @property
    def shapes(self) -> dict[str, Shape]:
        return TINY if self.tiny else SHAPES

    def missing(self, family: str, precision: str) -> str:
        """Why a family cannot be measured in a precision here; empty where it can."""
        if self.device.type != "cuda":
            return ""
        need = self.shapes[family].gigabytes / (2 if precision.startswith("fp8") else 1)
        there = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return f"needs {need:.0f} GB and there are {there:.0f}" if 1.3 * need > there else ""

    def subject(self, family: str, precision: str) -> Subject:
        return published(self.shapes[family], precision, self.device)
