"""How often the host waits for the device: transfers from it and synchronisations, and whose line asked for each."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...engine.trace import Trace
from ...tools.server import PACK
from .models import Subject, methods
from .setup import Row, Rows, Setup

CALLS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal, torch.ops.aten.masked_select,
         torch.ops.aten._unique2, torch.ops.aten.unique_dim, torch.ops.aten.is_nonzero)  # fmt: skip
INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put)
COPYING = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
COPIES = ("Memcpy DtoH",)
BLOCKING = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
OTHERS = "others'"


def owner() -> str:
    """The innermost line of the pack or of ComfyUI that is at work: "host/unet.py:12", or OTHERS where that is not the pack's.

    The measurement's own lines are neither.
    """
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACK) and path.relative_to(PACK).parts[0] in ("engine", "host", "demo", "nodes"):
            return f"{path.relative_to(PACK).as_posix()}:{frame.f_lineno}"
        if "comfy" in path.parts and "site-packages" not in path.parts:
            return OTHERS
        frame = frame.f_back
    return OTHERS


class Waits(TorchDispatchMode):
    """Counts the operations on a device's tensors whose result the host needs before it goes on, copies to the host among them.

    On a CPU, which waits for nothing, they are those that would wait if all tensors were on a GPU, so more than there: what the
    pack reads on the CPU on purpose counts too, and copies, which are none, do not.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.lines = device.type, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with self:  # in inference mode what is made of other operations arrives whole
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0] if args else None
        if isinstance(source, torch.Tensor) and source.device.type == self.device and self._waits(func, args, result):
            self.lines[owner()] += 1
        return result

    def _waits(self, func: Any, args: tuple, result: Any) -> bool:
        packet = func.overloadpacket
        if packet in INDEXING:
            return any(isinstance(own, torch.Tensor) and own.dtype == torch.bool for own in args[1])
        if packet in COPYING:
            return self.device != "cpu" and result.device.type == "cpu"
        return packet in CALLS


@contextmanager
def warned(lines: Counter[str]) -> Iterator[None]:
    """Count CUDA's own warnings of synchronising operations, by the line that asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def take(message: Any, *args: Any, **kwargs: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                lines[owner()] += 1

        warnings.showwarning = take
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted(device: torch.device, lines: Counter[str]) -> Iterator[None]:
    """Count waits: by CUDA's own warnings on a GPU, else by operations."""
    if device.type == "cuda":
        with warned(lines):
            yield
    else:
        with Waits(device) as waits:
            yield
        lines.update(waits.lines)


def profiled(call: Callable[[], object]) -> tuple[int, int]:
    """Copies from the GPU to the host in a call, and calls of CUDA that block, both as its profiler saw them."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        call()
    names = Counter(event.name for event in profiler.events())
    return tuple(sum(n for name, n in names.items() if name.startswith(own)) for own in (COPIES, BLOCKING))


def waits(setup: Setup, families: tuple[str, ...], precision: str) -> Rows:
    """Waits of each method beside those of the MODEL alone, and the pack's own for each evaluation; in the last column the
    lines that asked."""
    for family in families:
        subject = setup.subject(family, precision)
        alone: dict[str, int] = {}
        for method in ("vanilla", "forecast", "partial", "merged" if subject.transformer else "shallow", "balanced"):
            lines, trace = Counter(), Trace()
            made = methods(subject)[method](subject.model, trace)
            subject.sample(made, setup.steps)  # warms up
            with counted(setup.device, lines):
                subject.sample(made, setup.steps)
            row = _row(setup, subject, made, lines)
            alone = alone or {name: row[name] for name in ("waits", "copies", "blocking calls")}
            count = len(trace.last.evaluations) if trace.last else setup.steps
            own = sum(n for line, n in lines.items() if line != OTHERS)
            yield {
                "model": family, "precision": precision, "method": method, "evaluations": count, **row,
                "copies added an evaluation": None if row["copies"] is None else (row["copies"] - alone["copies"]) / count,
                "the pack's own waits an evaluation": own / count,
                "asked by": ", ".join(f"{line} {n}" for line, n in lines.most_common(8) if line != OTHERS) or None,
            }  # fmt: skip


def _row(setup: Setup, subject: Subject, made: Any, lines: Counter[str]) -> Row:
    copies, blocking = (None, None) if setup.device.type != "cuda" else profiled(lambda: subject.sample(made, setup.steps))
    return {"waits": lines.total(), "copies": copies, "blocking calls": blocking}
