"""Dense runs that are made anyway, taken down for the model's own profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import numpy as np
from torch import Tensor

from ..engine.profile import ProfiledRun, ProfileError, Recorder, write_profile
from ..engine.time_axis import TimeAxis
from ..engine.trace import RunRecord
from .profiles import begun, path_of
from .sampler import sampler_noise

LEAST_POINTS = 8  # of a run that says how predictions bend between its steps too
FROM_NOISE = 0.9  # of the model's highest sigma: a run that starts lower says nothing of what is above
SAME = 1e-2  # relative difference of sketches, which are kept in half precision, up to which two runs are one


class Learner:
    """Takes one run down as it is sampled. guider, sampler, sigmas: ComfyUI's. record: the run's. axis: the model's. masked:
    whether the sampler puts something back behind a noise mask."""

    def __init__(self, guider: Any, sampler: Any, sigmas: Tensor, record: RunRecord, axis: TimeAxis, masked: bool = False):
        self.guider, self.sampler, self.sigmas, self.record = guider, sampler, sigmas, record
        self.axis, self.masked = axis, masked
        cfg = float(getattr(guider, "cfg", 1.0))
        self.recorder = Recorder((cfg, 1 - cfg))

    def add(self, x: Tensor, outputs: Sequence[Tensor], sigma: float) -> None:
        """Take down the denoised images (B, C, ...) of both branches at x."""
        if len(outputs) == len(self.recorder.weights):
            self.recorder.add(x, outputs, sigma)

    def keep(self) -> str:
        """Add the run to the model's profile, after it has ended; returns what is to be told of that."""
        try:
            why = self._unfit_because()
            if why is None:
                return self._keep()
        except (ProfileError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            why = str(error)
        return f"not added to the model's profile: {why}"

    def _unfit_because(self) -> str | None:
        """Why nothing can be learnt from the run, or None."""
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        if why := _not_whole(self.record):
            return why
        if type(self.guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
            return f"{type(self.guider).__name__} is not ComfyUI's own guider, whose CFG is known"
        if len(self.recorder.sigmas) < LEAST_POINTS:
            return f"the run has {len(self.recorder.sigmas)} steps, and {LEAST_POINTS} are the fewest to learn from"
        if self.recorder.sigmas[0] < FROM_NOISE * float(sampling.sigma_max):
            return "the run does not start from noise alone"
        if float(self.sigmas[-1]) > 0:
            return "the run does not go on until no noise is left"
        if self.masked:
            return "what is outside of the noise mask was put back at every step"
        noise = sampler_noise(self.sampler, self.guider.model_patcher, self.sigmas)
        return "the sampler adds noise of its own" if noise is not None and any(noise) else None

    def _keep(self) -> str:
        model = self.guider.model_patcher
        path = path_of(model)
        profile = begun(model, path, self.axis)
        fresh = [own for own in self.recorder.runs() if not any(_same(own, known) for known in profile.runs)]
        if not fresh:
            return f"already in the model's profile, {path}"
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = profile.joined(fresh)
        write_profile(profile, path)
        return f"added to the model's profile, which has {len(profile.runs)} pictures now: {path}"


def _same(one: ProfiledRun, other: ProfiledRun) -> bool:
    """Whether two runs are of the same picture, sampled alike."""
    if one.x0.shape != other.x0.shape or not np.allclose(one.sigmas, other.sigmas, rtol=1e-4):
        return False
    return bool(np.abs(one.x0 - other.x0).max() <= SAME * np.abs(other.x0).max())


def _not_whole(record: RunRecord) -> str | None:
    """What a run lacks, or None."""
    if not record.completed:
        return "the run was interrupted"
    if any(e.kind != "dense" or e.merged is not None for e in record.evaluations):
        return "not every step was computed in full; turn enabled off for that"
    return None if record.not_finite is None else "its predictions are not finite"
