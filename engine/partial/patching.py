"""The one way in which modules are patched: another `forward` for the length of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def patched_forward(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """While this holds, each module has the `forward` given here; afterwards it has the one it had before, also where that
    was another node's, and also after an exception."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward
