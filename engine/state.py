"""What is known in the course of one sampling run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .config import HighlightConfig
from .finite import Finiteness
from .method import Method
from .partial.cache import ActivationCache
from .placement.plan import Plan
from .prediction.forecast import Forecasts
from .region.tracking import RegionTracker
from .trace import Evaluation, RunRecord

LatentKind = tuple[torch.dtype, torch.device]


@dataclass
class RunState:
    """The state of one run; `setup.start_run` makes it.

    record: what is kept of the run. plan: what each step is to do. forecasts: what is known of each branch. region: where the
    prompt looks. shallow: what shallow evaluations lack, None where a model has none. methods: what takes part in dense
    evaluations. signature: what was evaluated last. latent_kind: dtype and device of the latent that was asked about last.
    exhausted: how memory ran out, once it did. picture: gives the latent that the record is of, where several are sampled in
    one tensor. finite: which evaluation first was not finite.
    """

    config: HighlightConfig
    record: RunRecord
    plan: Plan
    forecasts: Forecasts
    region: RegionTracker
    shallow: ActivationCache | None = None
    methods: tuple[Method, ...] = ()
    signature: object = None
    latent_kind: LatentKind | None = None
    exhausted: str | None = None
    picture: Callable[[torch.Tensor], torch.Tensor] = lambda latent: latent  # noqa: E731
    finite: Finiteness = field(init=False)

    def __post_init__(self) -> None:
        self.finite = Finiteness(self.record)

    @property
    def caches(self) -> tuple[ActivationCache, ...]:
        """All caches of the run."""
        return (*self.region.caches, *(() if self.shallow is None else (self.shallow,)))

    @property
    def bytes(self) -> int:
        """What recordings take on the model's device."""
        return sum(cache.bytes for cache in self.caches) + sum(method.bytes for method in self.methods)

    @property
    def holds_recordings(self) -> bool:
        """Whether dropping recordings would give memory back."""
        return any(cache.entries for cache in self.caches) or any(method.bytes for method in self.methods)

    def forget(self) -> None:
        """Drop every forecast and recording; the highlight stays."""
        self.forecasts.clear()
        self._clear_caches()
        for method in self.methods:
            method.forget()

    def begin_anew(self) -> None:
        """Forget, and drop what methods learnt of the predictions: they are of another latent, or must not be used."""
        self.forget()
        for method in self.methods:
            method.begin_anew()

    def latent_changed(self, latent: torch.Tensor) -> str | None:
        """How this latent is of another dtype or device than that of the evaluation before, or None."""
        before, self.latent_kind = self.latent_kind, (latent.dtype, latent.device)
        if before in (None, self.latent_kind):
            return None
        return f"the latent went from {_named(before)} to {_named(self.latent_kind)}"

    def do_without_recordings(self, evaluation: Evaluation) -> None:
        """Memory ran out: drop what is recorded, record no more, and make a dense evaluation of the one under way."""
        computed = evaluation.kind in ("partial", "shallow")
        where = f"in a {evaluation.kind} evaluation" if computed else "beside what is recorded for partial ones"
        if evaluation.listening and not self.holds_recordings:
            where = "while the highlight was looked for"
        for method in (method for method in self.methods if method.bytes):
            where = f"beside what {method.held_as}"
            method.forget()
        self.exhausted = f"memory ran out {where}"
        self._clear_caches()
        evaluation.kind, evaluation.reason, evaluation.active = "dense", f"{self.exhausted}: computed without", 1.0
        evaluation.boxes, evaluation.windows, evaluation.merged, evaluation.listening = (), (), None, False

    def _clear_caches(self) -> None:
        for cache in self.caches:
            cache.clear()


def _named(kind: LatentKind) -> str:
    dtype, device = kind
    return f"{str(dtype).removeprefix('torch.')} on {device}"
