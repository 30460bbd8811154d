"""How long work took on the device it ran on."""

from __future__ import annotations

import time

import torch

from .trace import Evaluation


class Stopwatch:
    """Started when made. On a CUDA device it is two events in the stream, since calls return before their work is done."""

    def __init__(self, device: torch.device):
        self._events = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._stream = torch.cuda.current_stream(device)
            self._events[0].record(self._stream)
        else:
            self._started = time.perf_counter()
            self._elapsed: float | None = None

    def stop(self) -> None:
        if self._events:
            self._events[1].record(self._stream)
        else:
            self._elapsed = time.perf_counter() - self._started

    @property
    def done(self) -> bool:
        """Whether `seconds` is known without waiting."""
        return self._events[1].query() if self._events else self._elapsed is not None

    @property
    def seconds(self) -> float:
        """Seconds between start and stop; waits for the device."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1000
        if self._elapsed is None:
            raise RuntimeError("the stopwatch still runs; stop it first")
        return self._elapsed


class Watches:
    """The stopwatches of a run's evaluations, read as soon as that needs no waiting."""

    def __init__(self) -> None:
        self._running: list[tuple[Evaluation, Stopwatch]] = []

    def stop(self, watch: Stopwatch, evaluation: Evaluation) -> None:
        """Stop the watch of an evaluation."""
        watch.stop()
        self._running.append((evaluation, watch))
        if watch.done:
            self.settle()

    def settle(self) -> None:
        """Fill in the seconds of all evaluations, waiting for the device where it is still at work."""
        for evaluation, watch in self._running:
            evaluation.seconds = watch.seconds
        self._running.clear()
