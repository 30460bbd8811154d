"""What runs of any method execute, in multiply-accumulates, without torch's counter around all of them, which takes twice their
time: a call of the model is known by the layers it ran and the shapes they were given, and is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from .cost import CPU_ATTENTION


class Meter:
    """Counts the calls of one network, and nothing around them, as a LoRA's patches. `known` has the multiply-accumulates of
    each kind of call met so far."""

    def __init__(self, network: nn.Module):
        self.network, self.known = network, {}
        self._layers = {id(m): i for i, m in enumerate(network.modules()) if not list(m.children())}

    def of(self, sample: Callable[[], object]) -> int:
        """The multiply-accumulates that `sample`, which is done once or, with calls not met before, twice, executes in the
        network. It has to do the same every time, and to leave the attention between layers as it is."""
        with self._calls() as calls:
            sample()
        if not {kind for kind, _ in calls} <= set(self.known):
            with self._calls(count=True) as counted:
                sample()
            self.known.update(counted)
        return sum(self.known[kind] for kind, _ in calls)

    def exactly(self, sample: Callable[[], object]) -> int:
        """The same by torch's counter around every call, for methods that change the attention between layers."""
        with self._calls(count=True) as calls:
            sample()
        return sum(executed for _, executed in calls)

    @contextmanager
    def _calls(self, count: bool = False) -> Iterator[list[tuple[int, int]]]:
        """The calls made meanwhile, each as a hash, with the multiply-accumulates it executed, 0 where none are counted."""
        calls: list[tuple[int, int]] = []
        inside: list[int] = []
        counters: list[FlopCounterMode] = []

        def layer(module: nn.Module, inputs: tuple) -> None:
            if inside and (number := self._layers.get(id(module))) is not None:
                inside[-1] = hash((inside[-1], number, *(tuple(v.shape) for v in inputs if isinstance(v, Tensor))))

        def enter(module: nn.Module, inputs: Any) -> None:
            inside.append(0)
            if count:
                counters.append(FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION))
                counters[-1].__enter__()

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            executed = 0
            if count:
                (counter := counters.pop()).__exit__(None, None, None)
                executed = counter.get_total_flops() // 2
            calls.append((inside.pop(), executed))

        hooks = (
            register_module_forward_pre_hook(layer), self.network.register_forward_pre_hook(enter),
            self.network.register_forward_hook(leave),
        )  # fmt: skip
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()
