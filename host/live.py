"""Shows a run in the browser while it samples.

The sampler's thread only hands over slices of the denoised latent; a thread of ours turns them into messages and gives
those to ComfyUI's own queue. What comes too fast is dropped: pictures when ours is behind, messages when the client is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ..engine.report.latent_rgb import pictures, sample
from ..engine.report.messages import Messages
from ..engine.trace import Evaluation, LatentColours, RunRecord

EVENT = "highlight_diffusion.run"
INTERVAL = 0.05  # seconds between messages, at least
WAITING = 4  # pictures that may wait to be drawn
BACKLOG = 16  # messages waiting in ComfyUI's queue above which a client is late
PATIENCE = 2.0  # seconds the last message waits for a late client


def watch(run: RunRecord) -> Live | None:
    """A `Live` for the client that queued what is running, or None where none is connected."""
    module = sys.modules.get("server")  # not there where no server runs: a script
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    client = getattr(server, "client_id", None)
    if server is None or client is None or client not in server.sockets:
        return None
    return Live(run, server, client)


def latent_colours(latent_format: Any) -> LatentColours:
    """What ComfyUI's own previews know of a latent format."""
    known = {
        "factors": getattr(latent_format, "latent_rgb_factors", None),
        "bias": getattr(latent_format, "latent_rgb_factors_bias", None),
        "reshape": getattr(latent_format, "latent_rgb_factors_reshape", None),
    }
    for name in ("factors", "bias"):
        if known[name] is not None:
            known[name] = tuple(tuple(row) if isinstance(row, list | tuple) else float(row) for row in known[name])
    return LatentColours(**{name: value for name, value in known.items() if value is not None}, scale=latent_format.process_in)


class Live:
    """One run's way to one client. `show` and `close` are for the sampler's thread and never wait."""

    def __init__(self, run: RunRecord, server: Any, client: str):
        self.run, self.server, self.client = run, server, client
        self.messages = Messages(run, latest=True)
        self.waiting: deque[tuple[Evaluation, Tensor, Any]] = deque()
        self.news = threading.Condition()
        self.closed = False
        run.drawn.clear()
        self.thread = threading.Thread(target=self._work, name="highlight-live", daemon=True)
        self.thread.start()

    def show(self, denoised: Tensor) -> None:
        """Take up the newest evaluation, with the denoised latent it led to."""
        started = time.perf_counter()
        if self.run.evaluations and len(self.waiting) < WAITING:  # some guiders answer without asking the model
            latent, copied = _to_cpu(sample(denoised))
            with self.news:
                self.waiting.append((self.run.evaluations[-1], latent, copied))
                self.news.notify()
        self.run.preview_seconds += time.perf_counter() - started

    def close(self) -> None:
        """The run has ended, in whatever way: draw what waits, say so and stop."""
        with self.news:
            self.closed = True
            self.news.notify()

    # -- on our own thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._tell_while_it_runs()
            self._draw()
        finally:
            self.run.drawn.set()
        end = time.monotonic() + PATIENCE
        while self._listens() and self._late() and time.monotonic() < end:
            time.sleep(INTERVAL)
        self._send(done=True)

    def _tell_while_it_runs(self) -> None:
        """Draw every picture as it comes, and send a message when one is due and the client has taken the others."""
        sent, unsent = 0.0, False
        while not self.closed:
            due = max(sent + INTERVAL - time.monotonic(), INTERVAL / 4) if unsent else None
            with self.news:
                self.news.wait_for(lambda: self.waiting or self.closed, timeout=due)
            unsent = self._draw() or unsent
            if unsent and time.monotonic() >= sent + INTERVAL and not self._late():
                self._send(done=False)
                sent, unsent = time.monotonic(), False

    def _draw(self) -> bool:
        """Draw the pictures that wait; whether there was one."""
        drawn = bool(self.waiting)
        while self.waiting:
            evaluation, latent, copied = self.waiting[0]
            if copied is not None:
                copied.synchronize()
            evaluation.picture = pictures(latent, self.run.colours)
            self.waiting.popleft()
        return drawn

    def _late(self) -> bool:
        return self.server.messages.qsize() > BACKLOG

    def _listens(self) -> bool:
        return self.client in self.server.sockets

    def _send(self, done: bool) -> None:
        if self._listens():
            self.server.send_sync(EVENT, self.messages.next(done), self.client)


def _to_cpu(latent: Tensor) -> tuple[Tensor, Any]:
    """A copy on the CPU, and what to wait for until it is there: a CUDA event, or None where it is. On other devices this
    waits for the evaluation, as ComfyUI's own previews do."""
    if latent.device.type == "cpu":
        return latent.clone(), None
    if latent.device.type != "cuda":
        return latent.cpu(), None
    copy = latent.contiguous().to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(latent.device))
    return copy, copied
