"""Profiles of the user's own models: where they are kept, how a model finds its own, and how one is made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..engine.placement.errors import ErrorModel
from ..engine.placement.path import cheapest
from ..engine.prediction.forecast import prediction_type
from ..engine.profile import Profile, ProfileError, Recorder, bundled, read_profile, write_profile
from ..engine.time_axis import DIFFUSION, FLOW, TimeAxis
from .run import KEY
from .sampler import sampler_response

log = logging.getLogger("highlight_diffusion")
RECORDING = "highlight_diffusion_profile"  # key of the wrapper that takes a dense run down
HASHED, VALUES = 16, 1024  # how many vectors of a model its fingerprint is made of, and how many numbers of each
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0)  # of which a report tells the expected error
SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


def fingerprint(model: ModelPatcher) -> str:
    """What tells a model from others, whatever its file is called: its class, and a hash over some of its norms and biases,
    which LoRAs leave as they are and finetunes do not."""
    network = model.get_model_object("diffusion_model")
    vectors = [p for _, p in sorted(network.named_parameters()) if p.ndim == 1 and p.is_floating_point() and not p.is_meta]
    chosen = vectors[:: max(1, len(vectors) // HASHED)][:HASHED]
    digest = hashlib.sha256(type(model.model).__name__.encode())
    for vector in chosen:
        digest.update(vector.detach()[:VALUES].float().cpu().numpy().tobytes())
    return f"{type(model.model).__name__.lower()}-{digest.hexdigest()[:16]}"


def path_of(model: ModelPatcher) -> Path:
    """Where the profile of a model is kept, in ComfyUI's user directory, whether it has one or not."""
    folder = Path(folder_paths.get_user_directory()) / "highlight_diffusion" / "profiles"
    return folder / f"{fingerprint(model)}.safetensors"


def own_profile(model: ModelPatcher) -> Profile | None:
    """The profile that was made of this model, None where there is none. Raises ProfileError for a file that cannot be read."""
    path = path_of(model)
    return _read(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Profile:
    return read_profile(path)


def profile_of(model: ModelPatcher, axis: TimeAxis) -> Profile | None:
    """The model's own profile, or else the bundled one of its kind; one that cannot be read is named in the console."""
    try:
        own = own_profile(model)
    except (ProfileError, OSError) as error:
        log.warning("%s; the bundled profile is used", error)
        own = None
    return own if own is not None and own.axis == axis else bundled(axis)


def axis_of(model: ModelPatcher) -> TimeAxis:
    """How a model mixes signal and noise."""
    return FLOW if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST) else DIFFUSION


def _recorded(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """A clone of `model` without the pack's methods, whose next dense run `recorder` takes down."""

    def record(executor: Any, own: Any, conds: Any, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        outputs = executor(own, conds, x, timestep, options)
        recorder.add(x, outputs, float(timestep.flatten()[0]))
        return outputs

    clone = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL):
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, RECORDING, record)
    return clone


def make_profile(
    model: ModelPatcher, positive: Any, negative: Any, latent: Tensor, seed: int, steps: int, cfg: float, sampler: str,
    scheduler: str, pictures: int,
) -> tuple[Profile, Path]:  # fmt: skip
    """Sample pictures densely, from one seed after the other, and add them to the model's profile, after each of them, so that
    an interrupt loses only the one under way. Returns the profile and its file.

    latent: (B, C, ...), of which the first is sampled. Raises ProfileError where the model has a file that cannot be read.
    """
    path, profile = path_of(model), own_profile(model) or Profile((), axis_of(model), type(model.model).__name__)
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = comfy.utils.ProgressBar(pictures * steps)
    latent = comfy.sample.fix_empty_latent_channels(model, latent[:1])
    for i in range(pictures):
        recorder = Recorder((cfg, 1 - cfg))
        progress: Callable = lambda step, *_, done=i: bar.update_absolute(done * steps + step + 1)  # noqa: E731
        comfy.sample.sample(
            _recorded(model, recorder), comfy.sample.prepare_noise(latent, seed + i), steps, cfg, sampler, scheduler, positive,
            negative, latent, callback=progress, disable_pbar=True, seed=seed + i,
        )  # fmt: skip
        profile = profile.joined(recorder.runs())
        write_profile(profile, path)
    return profile, path


def expectations(model: ModelPatcher, profile: Profile, steps: int, sampler: str, scheduler: str) -> list[str]:
    """What is expected of a model at some speeds, in lines of text."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    prediction = prediction_type(False, axis=profile.axis)
    response = sampler_response(comfy.samplers.sampler_object(sampler), model, sigmas, prediction)
    errors = ErrorModel(tuple(float(s) for s in sigmas[:-1]), profile, prediction, response)
    if errors.steps < 3:
        return []
    paths = cheapest(errors.costs, 1, errors.steps)
    lines = []
    for speed in SPEEDS:
        fitting = [e for dense, e in zip(paths.dense, paths.errors, strict=True) if len(dense) + 2 >= errors.steps / speed]
        if fitting:
            lines.append(f"  {speed:g} times fewer evaluations: {errors.decibels(fitting[0]):.1f} dB")
    return lines


@torch.no_grad()
def profile_model(model: ModelPatcher, *settings: Any) -> str:
    """Make or extend a model's profile, with the settings of `make_profile`; returns what is to be told of it."""
    profile, path = make_profile(model, *settings)
    *_, steps, _, sampler, scheduler, pictures = settings
    head = f"{pictures} pictures profiled, {len(profile.runs)} in all, {path.stat().st_size / 1024:.0f} KiB in {path}"
    told = expectations(model, profile, steps, sampler, scheduler)
    return "\n".join([head, f"expected signal-to-noise ratio to the dense run, {sampler}, {steps} steps:", *told])
