"""Control nets beside partial evaluations: their residuals for a region, and the runs of the nets that are saved.

ComfyUI runs control nets before it calls the model, over the whole frame whatever is computed of it. For a partial
evaluation the residuals inside the region can instead be taken from the last two dense evaluations, extrapolated like
everything else that is recorded there. The conds then carry a stand-in, so that no net runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ..engine.config import Control
from ..engine.partial.cache import ActivationCache, Key, Keys

Residuals = dict[str, Any]  # "input", "middle", "output" -> a list of tensors or None
Crop = Callable[[Residuals], Residuals]
Conds = Sequence[list[dict] | None]


def in_effect(conds: Conds, sigma: float) -> list[list[dict] | None]:
    """The conds of each group that count at this sigma."""

    def counts(cond: dict) -> bool:
        return cond.get("timestep_end", sigma) <= sigma <= cond.get("timestep_start", sigma)

    return [None if group is None else [cond for cond in group if counts(cond)] for group in conds]


def chain(control: Any) -> Iterator[Any]:
    """A control net and those chained before it."""
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def active_net(net: Any, sigma: float) -> bool:
    """Whether a control net runs at this sigma: by the range of the schedule it was applied to."""
    reach = getattr(net, "timestep_range", None)
    return reach is None or reach[1] <= sigma <= reach[0]


def nets_at(conds: Conds, sigma: float) -> list[Any]:
    """The control nets that run at this sigma, each once."""
    carried = [cond.get("control") for group in in_effect(conds, sigma) if group for cond in group]
    nets = {id(net): net for control in carried for net in chain(control) if active_net(net, sigma)}
    return list(nets.values())


def reuses(wanted: Control, nets: Sequence[Any]) -> bool:
    """Whether residuals are reused in partial evaluations. Packs' own nets may change theirs abruptly, ComfyUI's do not."""
    return wanted == "reuse" or wanted == "auto" and all(type(net).__module__ == "comfy.controlnet" for net in nets)


class StandIn:
    """In place of a cond's control nets. One stands for one chain, since ComfyUI batches conds that share theirs."""

    def get_control(self, *args: Any) -> Residuals:
        return {}


def without_nets(conds: Conds, sigma: float) -> list[list[dict] | None]:
    """The conds with stand-ins for the control nets that would run at this sigma."""
    standing: dict[int, StandIn] = {}

    def replaced(cond: dict) -> dict:
        control = cond.get("control")
        runs = any(active_net(net, sigma) for net in chain(control))
        return {**cond, "control": standing.setdefault(id(control), StandIn())} if runs else cond

    return [None if group is None else [replaced(cond) for cond in group] for group in conds]


def mapped(control: Residuals, change: Callable[[Tensor], Tensor]) -> Residuals:
    """Residuals, each changed, and once where a net gives one tensor to many blocks. The lists are new: models pop from
    them."""
    changed: dict[int, Tensor] = {}

    def once(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in changed:
            changed[id(value)] = change(value)
        return changed[id(value)]

    return {name: [once(v) for v in values] if isinstance(values, list) else values for name, values in control.items()}


class RecordedControl:
    """Residuals of a run's control nets, kept with what else is recorded for each region."""

    def __init__(self) -> None:
        self.places: dict[Key, Residuals] = {}  # of each stream: its lists, with a number for each tensor of its own

    def keep(self, region: ActivationCache, keys: Keys, residuals: Residuals, rows: int) -> None:
        """Add a region's residuals to its newest recording. Call it after the model's, whose streams are all there. rows: of
        the call; residuals of one row serve all of those that are the region's."""
        numbers: dict[int, int] = {}

        def number(value: Any) -> int | None:
            if not isinstance(value, Tensor):
                return None
            if id(value) not in numbers:
                numbers[id(value)] = len(numbers)
                part = value.expand(rows // region.rows.images, *value.shape[1:])
                region.put(("control", numbers[id(value)]), keys, part, tokens=value.ndim == 3)
            return numbers[id(value)]

        places = {name: [number(v) for v in values] for name, values in residuals.items()}
        self.places.update(dict.fromkeys(keys, places))

    def at(self, region: ActivationCache, keys: Keys, sigma: float) -> Residuals | None:
        """A region's residuals extrapolated to sigma, None where the nets of these streams gave none."""
        places = self.places.get(keys[0])
        if places is None:
            return None
        count = 1 + max((n for values in places.values() for n in values if n is not None), default=-1)
        parts = [region.get(("control", n), keys, sigma) for n in range(count)]
        return {name: [None if n is None else parts[n] for n in values] for name, values in places.items()}
