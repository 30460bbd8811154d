"""The tests' own tensors on another device and in another precision: HIGHLIGHT_DEVICE and HIGHLIGHT_PRECISION say which.

What tests and demo models make without naming a device goes there; what the engine makes stays where it asked for it, so that a
tensor which the engine forgets to move is an error there as it is for a user.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

PACK = Path(__file__).resolve().parent.parent
DEVICE = torch.device(os.environ.get("HIGHLIGHT_DEVICE", "cpu"))
PRECISION = os.environ.get("HIGHLIGHT_PRECISION", "fp32")
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DRAWN = {torch.rand, torch.randn}
MADE = DRAWN | {
    torch.arange, torch.empty, torch.eye, torch.from_numpy, torch.full, torch.linspace, torch.logspace, torch.meshgrid,
    torch.ones, torch.randint, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip
READ = {torch.Tensor.numpy, torch.Tensor.__array__}


def _asked_by_a_test() -> bool:
    """Whether the innermost line of the pack that is at work is one of the tests' or of the demo models'."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and path.is_relative_to(PACK) and "site-packages" not in path.parts:
            return path.relative_to(PACK).parts[0] in ("tests", "demo")
        frame = frame.f_back
    return False


class Inputs(TorchFunctionMode):
    """Draws and makes what tests ask for on the CPU, so that the numbers are those of every device, and moves it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in READ and _asked_by_a_test():
            own = args[0].detach().cpu()
            return func(own.float() if own.dtype == torch.bfloat16 else own, *args[1:], **kwargs)
        made = func(*args, **kwargs)
        if func not in MADE or kwargs.get("device") is not None or not isinstance(made, torch.Tensor) or not _asked_by_a_test():
            return made
        drawn = func in DRAWN and kwargs.get("dtype") is None
        return made.to(DEVICE, TYPES[PRECISION] if drawn else None)


@cache
def move() -> None:
    """From now on, where tensors are asked for on another device or in another precision; for folders of tests that import no
    ComfyUI, which moves its own."""
    if DEVICE.type != "cpu" or PRECISION != "fp32":
        Inputs().__enter__()
