"""What really happened in a sampling run: small CPU data that outlives the run, read by preview, report and bench."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from threading import Event
from typing import Literal, get_args

from torch import Tensor

Kind = Literal["dense", "partial", "shallow", "skipped"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LETTERS: dict[Kind, str] = {"dense": "D", "partial": "P", "shallow": "h", "skipped": "."}
ControlUse = Literal["", "computed", "reused"]
Box = tuple[int, int, int, int]  # y0, y1, x0, x1 in latent cells
Boxes = tuple[tuple[Box, ...], ...]  # those of each image of a batch


def _same(latent: Tensor) -> Tensor:
    return latent


@dataclass(frozen=True)
class LatentColours:
    """What a model's latent format knows of colours, for previews.

    factors: a row of R, G, B in -1..1 for each channel of the latent the model sees; without any, its mean is shown in
    grey. reshape: what the latent passes before them. scale: takes a latent from outside the sampler to the model's.
    """

    factors: tuple[tuple[float, ...], ...] = ()
    bias: tuple[float, ...] = (0.0, 0.0, 0.0)
    reshape: Callable[[Tensor], Tensor] = _same
    scale: Callable[[Tensor], Tensor] = _same


def inside(boxes: Boxes) -> Iterator[tuple]:
    """Indices into a tensor (B, ..., H, W), one a box."""
    for image, own in enumerate(boxes):
        for y0, y1, x0, x1 in own:
            yield slice(image, image + 1), ..., slice(y0, y1), slice(x0, x1)


def _set() -> Event:
    event = Event()
    event.set()
    return event


def in_words(counts: Mapping[str, int]) -> str:
    """How many evaluations there were of each kind; shallow ones, which most runs have none of, only where there were."""
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind != "shallow")


@dataclass
class Evaluation:
    """One call of the model by the sampler.

    step: index of the schedule interval whose upper sigma brackets this evaluation (two share one under Heun).
    kind: dense computes everything, partial the highlight, shallow the whole frame but only by the UNet's outermost blocks,
    skipped nothing.
    active: share of the frame computed in depth: 1.0 dense, or the share of tokens left where some were merged; 0.0 shallow
    and skipped.
    boxes: where the computed values count, for each image; windows: what was computed for that, halo included. Both are
    empty unless partial.
    heatmap: float (B, 1, h, w) in 0..1 on the CPU, where one was captured.
    merged: float (B, h, w) on the token grid, on the CPU: how much of each token was computed together with others, 1 where
    attention and MLP of every block were, 0.5 where the MLP alone. None where nothing was.
    tokens_saved: how many of the batch's image tokens that left out of each of parts_merged, "attention" and "mlp".
    forecast_error: rms(computed - forecast) / rms(computed) of what is forecast: inside the windows of a partial
    evaluation; under an adaptive interval also of a dense one.
    control: what was done about control nets: computed, reused from dense evaluations, or nothing.
    seconds: wall clock of the evaluation, control nets included; on a GPU its time there, known when the run has ended.
    planned: what the plan wanted, before anything got in the way. recording: whether it also recorded surroundings.
    listening: whether its attention was captured.
    words: float (B, n, h, w) in 0..1, a heatmap for each of the run's words. picture: the denoised latent, see
    `report.latent_rgb`.
    """

    index: int
    step: int
    sigma: float
    kind: Kind
    reason: str
    active: float
    boxes: Boxes = ()
    windows: Boxes = ()
    heatmap: Tensor | None = None
    merged: Tensor | None = None
    forecast_error: float | None = None
    control: ControlUse = ""
    seconds: float = 0.0
    planned: Kind | None = None
    recording: bool = False
    words: Tensor | None = None
    picture: Tensor | None = None
    tokens_saved: int = 0
    parts_merged: tuple[str, ...] = ()
    listening: bool = False


@dataclass
class RunRecord:
    """One sampling run.

    shape: the latent's (B, C, H, W). sigmas: the full schedule, the final 0 included. highlight: bool (B, h, w) or None,
    with the reason why there is one or none. node_ids: the nodes whose traces hold this run. colours: the model's
    latent-to-RGB table, for rough pictures.
    depth: how many of the UNet's outermost blocks partial evaluations computed, None for all.
    revises: whether computed evaluations make up for the forecasts before them, as they can under a linear sampler.
    cache_bytes: the most that recorded surroundings took, on the model's device.
    expected_error: signal-to-noise ratio, in decibels, that the plan's result is expected to have to the dense one, None where
    that is not known. asked_error: what it had to be at least, by preset or fidelity, None where nothing was asked for.
    words: those that have heatmaps of their own. key: names this run and no other. preview_seconds: what showing it took
    of the sampler's thread. not_finite: index of the first evaluation whose latent or prediction was not finite, None where all
    were; from there on everything was computed. limits: what cannot be saved on this model, and why. learnt: what became of the
    run in the model's profile, empty where none was asked for. drawn: cleared while
    pictures of its evaluations are still being drawn.
    """

    shape: tuple[int, ...]
    sampler: str
    sigmas: tuple[float, ...]
    node_ids: tuple[str, ...] = ()
    colours: LatentColours = field(default_factory=LatentColours)
    evaluations: list[Evaluation] = field(default_factory=list)
    highlight: Tensor | None = None
    highlight_reason: str = "no highlight was looked for"
    depth: int | None = None
    revises: bool = False
    expected_error: float | None = None
    asked_error: float | None = None
    cache_bytes: int = 0
    seconds: float = 0.0
    completed: bool = False
    started: float = field(default_factory=time.time)
    words: tuple[str, ...] = ()
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    preview_seconds: float = 0.0
    not_finite: int | None = None
    limits: tuple[str, ...] = ()
    learnt: str = ""
    drawn: Event = field(default_factory=_set)

    @property
    def frame(self) -> tuple[int, int]:
        """The latent's (H, W)."""
        return self.shape[-2], self.shape[-1]

    def count(self, kind: Kind) -> int:
        return sum(e.kind == kind for e in self.evaluations)

    @property
    def letters(self) -> str:
        """One letter for each evaluation: those of LETTERS, and M for a dense one with merged tokens."""
        return "".join("M" if e.merged is not None else LETTERS[e.kind] for e in self.evaluations)

    @property
    def mean_active(self) -> float:
        """Mean share of the frame computed per evaluation."""
        return sum(e.active for e in self.evaluations) / max(len(self.evaluations), 1)

    @property
    def not_finite_in_words(self) -> str:
        """Which evaluation first was not finite, counted from 1; empty where all were finite."""
        if self.not_finite is None:
            return ""
        first = self.evaluations[self.not_finite]
        return (
            f"evaluation {first.index + 1} of {len(self.evaluations)} is the first that was not finite "
            f"({first.kind}, step {first.step}, sigma {first.sigma:.4g})"
        )

    def summary(self) -> str:
        total = len(self.evaluations)
        parts = in_words({kind: self.count(kind) for kind in KINDS})
        controls = [e.control for e in self.evaluations]
        nets = f"; control nets ran in {controls.count('computed')}" if any(controls) else ""
        nets += f", reused in {controls.count('reused')}" if "reused" in controls else ""
        merged = sum(e.merged is not None for e in self.evaluations)
        parts += f"; {merged} with merged tokens" if merged else ""
        parts += f"; {self.not_finite_in_words}" if self.not_finite is not None else ""
        state = "" if self.completed else " (interrupted)"
        return f"{total} evaluations: {parts}; mean active area {self.mean_active:.0%}{nets}; {self.seconds:.2f} s{state}"

    def as_dict(self) -> dict:
        """The run without its tensors, for JSON; of heatmaps and merge maps only whether there are any."""
        left_out = ("evaluations", "highlight", "colours", "drawn")
        run = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        plain = [f.name for f in fields(Evaluation) if f.name not in ("words", "picture")]
        run["evaluations"] = [
            {n: getattr(e, n) for n in plain} | {n: getattr(e, n) is not None for n in ("heatmap", "merged")}
            for e in self.evaluations
        ]
        return run


class Trace:
    """The last few runs of one node, newest last. Empty when ComfyUI served the sampler from its cache."""

    def __init__(self, keep: int = 8):
        self.runs: deque[RunRecord] = deque(maxlen=keep)

    @property
    def last(self) -> RunRecord | None:
        return self.runs[-1] if self.runs else None

    def before_last(self, back: int) -> RunRecord | None:
        """The run so many before the last, None for an empty trace. Raises ValueError when there are not so many."""
        if not self.runs:
            return None
        if back >= len(self.runs):
            raise ValueError(f"run is {back}, but this trace has {len(self.runs)} runs; the earliest is {len(self.runs) - 1}")
        return self.runs[-1 - back]
