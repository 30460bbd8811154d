"""Guided predictions that runs on one prompt and seed have in common, as those of a warm-up are the dense run's."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor


class Shared:
    """The predictions of one prompt, seed and schedule, by sigma and latent. calls: how many were asked for so far."""

    def __init__(self) -> None:
        self.calls = 0
        self._known: dict[tuple[float, bytes], Tensor] = {}

    def forget(self) -> None:
        """Begin with another prompt, seed or schedule."""
        self._known = {}

    def attached(self, model: Any) -> Any:
        """A clone of a MODEL that asks here before it computes. What else is attached to it has to leave predictions whole."""
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "shared", self._predict)
        return clone

    def _predict(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None) -> Tensor:
        self.calls += 1
        key = (float(timestep.flatten()[0]), x.detach().float().cpu().numpy().tobytes())
        if key not in self._known:
            self._known[key] = executor(x, timestep, model_options, seed)
        return self._known[key].clone()
