"""Seconds of calls, measured in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def timed(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device, warm: bool = True) -> dict[str, float]:
    """Median seconds of each call, all in turn; with `warm` after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warm):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn or not warm:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Clock:
    """Adds up the seconds that some functions take."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def of(self, function: Callable) -> Callable:
        """The function, timed."""

        def run(*args, **kwargs):
            started = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self._now() - started

        return run

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds_of(self, call: Callable[[], object], repeats: int = 3) -> float:
        """The median of what a call spends in those functions."""
        spent = []
        for _ in range(repeats):
            self.seconds = 0.0
            call()
            spent.append(self.seconds)
        return statistics.median(spent)
