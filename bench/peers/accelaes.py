"""AccelAes: Yin et al., "AccelAes: Accelerating Diffusion Transformers for Training-Free Aesthetic-Enhanced Image
Generation", ECCV 2026 (arXiv 2603.12575). On SD3 its speed comes from skipping whole evaluations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .whole import Step, at_prediction

WARMUP = 5


class AccelAes:
    """One run; the guided velocities of the last two computed steps."""

    def __init__(self, every: int):
        self.every = every
        self.history: list[tuple[int, Tensor]] = []

    def skips(self, at: Step) -> bool:
        return at.index > WARMUP and (at.index - WARMUP) % self.every != 0 and len(self.history) > 1

    def forecast(self, at: Step) -> Tensor:
        (i, older), (j, newer) = self.history
        return at.x - at.sigma * (newer + (newer - older) * ((at.index - j) / (j - i)))

    def observe(self, at: Step, value: Tensor, computed: bool) -> None:
        if computed:
            self.history = [*self.history, (at.index, (at.x - value) / at.sigma)][-2:]


def apply(model: Any, every: int) -> Any:
    """After a warm-up of 5 steps only each `every`th is computed (published: 2); the others' guided velocity is
    extrapolated linearly over steps from the last two computed ones. Its guidance map, which changes pictures on
    purpose and saves nothing here, is left out."""
    return at_prediction(model, "accelaes", lambda: AccelAes(every))
