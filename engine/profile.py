"""The profile of a model: how its predictions bend along the schedule, as sketches of a few dense runs.

A sketch is a random projection of a prediction to a few numbers, whose differences are on average as large as those of the
predictions themselves (a count sketch: Charikar, Chen and Farach-Colton 2002). Forecasts are linear in predictions, so that
how wrong they would have been is read off the sketches, whatever the sampler, the scheduler and the number of steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.interpolate import CubicSpline
from torch import Tensor

from .extrapolation import PredictionType
from .time_axis import DIFFUSION, FLOW, TimeAxis

KIND, VERSION = "highlight diffusion profile", 1
FEATURES = 64  # numbers that a prediction is projected to; differences of one run are then right within about 9%
LARGEST = 256 * 1024  # bytes of a file
HEADER = 8192  # of them, at most
FEWEST_POINTS = 4  # of a run, for a cubic interpolation
SEED = 19
PARTS = ("sigmas", "weights", "eps", "x0")
BUNDLED = Path(__file__).parent / "profiles"  # of the demo models; written by python run.py profiles


class ProfileError(ValueError):
    """A file is no profile that can be used here; the message says why and what to do."""


class Sketcher:
    """Projects tensors of one shape to `FEATURES` numbers each. Every cell is added to one of them, with a sign of its own,
    so that the mean square of a tensor is on average the sum of the squares of its sketch."""

    def __init__(self, cells: int, device: torch.device | str = "cpu"):
        generator = torch.Generator().manual_seed(SEED)
        self.cells = cells
        self._into = torch.randint(FEATURES, (cells,), generator=generator).to(device)
        self._signs = ((torch.randint(2, (cells,), generator=generator) * 2 - 1) / cells**0.5).to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """Sketches (rows, FEATURES) of values (rows, ...), in float32 on their device."""
        flat = values.detach().float().flatten(1) * self._signs
        return torch.zeros(len(flat), FEATURES, device=flat.device).index_add_(1, self._into, flat)


@dataclass(frozen=True)
class ProfiledRun:
    """The sketches of one picture's dense run.

    sigmas: (points,), descending. weights: (branches,), whose sum of branches the sampler was given, as (CFG, 1 - CFG) for
    positive and negative. eps, x0: sketches (branches, points, FEATURES) of the noise and of the denoised image predicted.
    """

    sigmas: np.ndarray
    weights: np.ndarray
    eps: np.ndarray
    x0: np.ndarray

    @property
    def result(self) -> np.ndarray:
        """The sketch (FEATURES,) of the denoised image that the run ends at, as the sampler is given it."""
        return np.tensordot(self.weights, self.x0[:, -1], axes=1)

    def at(self, sigmas: Sequence[float], prediction: PredictionType, axis: TimeAxis) -> np.ndarray:
        """The sketches (len(sigmas), FEATURES) of what the sampler is given at other sigmas: cubic splines along the time
        axis, and beyond the run's ends straight lines."""
        guided = np.tensordot(self.weights, self.eps if prediction == "eps" else self.x0, axes=1)
        known = np.array([axis.half_log_snr(sigma) for sigma in self.sigmas])
        wanted = np.array([axis.half_log_snr(sigma) for sigma in sigmas])
        within = np.clip(wanted, known[0], known[-1])
        spline = CubicSpline(known, guided)
        beyond = wanted - within
        return spline(within) + np.where(beyond[:, None] == 0, 0, beyond[:, None] * spline(within, 1))


@dataclass(frozen=True)
class Profile:
    """Dense runs of one model. axis: the model's time axis. name: of the model, for people. bundled: whether it stands for
    models that have none of their own."""

    runs: tuple[ProfiledRun, ...]
    axis: TimeAxis
    name: str = ""
    bundled: bool = False

    def at(self, sigmas: Sequence[float], prediction: PredictionType) -> np.ndarray:
        """Sketches (runs, len(sigmas), FEATURES) of what the sampler is given at these sigmas."""
        return np.stack([run.at(sigmas, prediction, self.axis) for run in self.runs])

    def joined(self, others: Sequence[ProfiledRun]) -> Profile:
        """This profile with further runs; where all are more than a file may hold, without its oldest ones. Raises ValueError
        for a run that is too long for a file of its own."""
        runs, left, size = [], [*self.runs, *others], HEADER
        for run in others:
            if HEADER + _bytes(run) > LARGEST:
                raise ValueError(
                    f"a run of {len(run.sigmas)} steps is too long for a profile; take fewer, 30 serve all schedules"
                )
        while left and size + _bytes(left[-1]) <= LARGEST:
            size += _bytes(left[-1])
            runs.insert(0, left.pop())
        return Profile(tuple(runs), self.axis, self.name)


def _bytes(run: ProfiledRun) -> int:
    return 4 * (run.sigmas.size + run.weights.size) + 2 * (run.eps.size + run.x0.size)


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as safetensors, replacing a file of that name at once. Raises ValueError for one too large, OSError where
    it cannot be written."""
    tensors: dict[str, Tensor] = {}
    for i, run in enumerate(profile.runs):
        for part in PARTS:
            kept = torch.float32 if part in ("sigmas", "weights") else torch.float16
            tensors[f"{i}.{part}"] = torch.from_numpy(np.ascontiguousarray(getattr(run, part))).to(kept, copy=True)
    axis = "flow" if profile.axis.is_flow else "diffusion"
    fresh = path.with_suffix(".new")
    try:
        save_file(tensors, fresh, {"kind": KIND, "version": str(VERSION), "axis": axis, "name": profile.name})
    except SafetensorError as error:
        raise OSError(f"{fresh} cannot be written: {error}") from error
    if (size := fresh.stat().st_size) > LARGEST:
        fresh.unlink()
        raise ValueError(f"the profile has {size} bytes, and {LARGEST} are the most; profile fewer pictures or steps")
    os.replace(fresh, path)


def read_profile(path: Path) -> Profile:
    """Read a profile. Raises ProfileError, which names the file, where it is damaged, not a profile, or of a newer version."""
    if path.stat().st_size > LARGEST:
        raise ProfileError(f"{path} is no profile: it has {path.stat().st_size} bytes, and a profile at most {LARGEST}")
    try:
        with safe_open(path, framework="pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ProfileError(f"{path} is damaged ({error}); delete it and profile the model again") from error
    if about.get("kind") != KIND:
        raise ProfileError(f"{path} is no profile of Highlight Diffusion; remove it from the folder of profiles")
    if (version := about.get("version", "")) != str(VERSION):
        raise ProfileError(f'{path} has version "{version}", and this pack reads {VERSION}; update the pack, or profile again')
    axis = FLOW if about.get("axis") == "flow" else DIFFUSION
    return Profile(_runs(path, tensors, axis), axis, about.get("name", ""))


@lru_cache(maxsize=2)
def bundled(axis: TimeAxis) -> Profile:
    """The profile for models that have none of their own: of the demo UNet, or in flows of the demo transformer."""
    return replace(read_profile(BUNDLED / f"{'flow' if axis.is_flow else 'diffusion'}.safetensors"), bundled=True)


def _runs(path: Path, tensors: dict[str, Tensor], axis: TimeAxis) -> tuple[ProfiledRun, ...]:
    """The runs that a file's tensors hold. Raises ProfileError where they do not fit together."""
    count = len(tensors) // len(PARTS)
    if not count or set(tensors) != {f"{i}.{part}" for i in range(count) for part in PARTS}:
        raise ProfileError(f"{path} is damaged: its runs are not complete; delete it and profile the model again")
    runs = tuple(ProfiledRun(*(tensors[f"{i}.{part}"].double().numpy() for part in PARTS)) for i in range(count))
    highest = 1.0 if axis.is_flow else np.inf
    if not all(_sound(run) and run.sigmas[0] <= highest for run in runs):
        raise ProfileError(f"{path} is damaged: its numbers make no sense; delete it and profile the model again")
    return runs


def _sound(run: ProfiledRun) -> bool:
    """Whether the parts of a run have fitting shapes and finite numbers, at sigmas that fall."""
    shape = (*run.weights.shape, *run.sigmas.shape, FEATURES)
    fits = run.eps.shape == run.x0.shape == shape and len(shape) == 3 and min(shape) > 0 and shape[1] >= FEWEST_POINTS
    finite = all(np.isfinite(getattr(run, part)).all() for part in PARTS)
    return bool(fits and finite and (np.diff(run.sigmas) < 0).all() and (run.sigmas > 0).all())


class Recorder:
    """Takes a dense run down as it goes, for a profile: one run for each picture of the batch.

    weights: as of `ProfiledRun`.
    """

    def __init__(self, weights: Sequence[float]):
        self.weights = np.array(weights, dtype=np.float64)
        self.sigmas: list[float] = []
        self._rows: list[Tensor] = []  # (2, branches, pictures, FEATURES) a point, on the model's device
        self._sketcher: Sketcher | None = None

    def add(self, x: Tensor, branches: Sequence[Tensor], sigma: float) -> None:
        """Take down the denoised images (B, C, ...) of all branches at x and sigma; one not below the last is left out."""
        if self.sigmas and sigma >= self.sigmas[-1]:
            return
        cells = x[0].numel()
        if self._sketcher is None or self._sketcher.cells != cells:
            self._sketcher = Sketcher(cells, x.device)
        state = self._sketcher(x)
        x0 = torch.stack([self._sketcher(own) for own in branches])
        self._rows.append(torch.stack([(state - x0) / sigma, x0]))
        self.sigmas.append(sigma)

    def runs(self) -> tuple[ProfiledRun, ...]:
        """What was taken down. Raises ValueError for a run of too few points."""
        if len(self.sigmas) < FEWEST_POINTS:
            raise ValueError(f"the run has {len(self.sigmas)} points and a profile needs {FEWEST_POINTS}; take more steps")
        rows = torch.stack(self._rows).cpu().double().numpy()  # (points, 2, branches, pictures, FEATURES)
        if not np.isfinite(rows).all():
            raise ValueError("the model's predictions are not finite; a profile of them would say nothing")
        sigmas = np.array(self.sigmas)
        both = [np.moveaxis(rows[:, i], (0, 1, 2), (1, 0, 2)) for i in range(2)]  # (branches, points, pictures, FEATURES)
        pictures = rows.shape[3]
        return tuple(ProfiledRun(sigmas, self.weights, both[0][:, :, i], both[1][:, :, i]) for i in range(pictures))
