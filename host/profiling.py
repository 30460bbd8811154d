"""Makes profiles of the user's own models, by sampling a few pictures densely."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..engine.placement.errors import ErrorModel
from ..engine.placement.path import cheapest, dense_steps
from ..engine.prediction.forecast import prediction_type
from ..engine.profile import Profile, Recorder, write_profile
from ..engine.tuning import PATH_WARMUP
from .attach import detached
from .profiles import begun, path_of
from .run import time_axis_of
from .sampler import sampler_response

RECORDING = "highlight_diffusion_profile"  # key of the wrapper that takes a dense run down
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0)  # of which a report tells the expected error


@dataclass(frozen=True)
class Pictures:
    """What is sampled for a profile: conditioning, latent (B, C, ...) of which the first is sampled, the seed of the first
    picture, CFG, ComfyUI's sampler and sigmas, and how many pictures, each with the next seed. downscale: how many pixels and
    frames a cell of an empty latent stands for, where its node says so, by which ComfyUI fits it to the model."""

    positive: Any
    negative: Any
    latent: Tensor
    seed: int
    cfg: float
    sampler: Any
    sigmas: Tensor
    count: int
    downscale: tuple[float | None, ...] = ()


def downscale_of(latent: dict) -> tuple[float | None, ...]:
    """What an empty latent says of its scale, as ComfyUI's samplers read it; nothing where no scale is known to ComfyUI."""
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    return tuple(latent.get(name) for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if name in known)


def euler() -> Any:
    """ComfyUI's sampler of Euler's method."""
    return comfy.samplers.sampler_object("euler")


def default_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """A schedule of the scheduler that is usual for the kind of model."""
    scheduler = "simple" if time_axis_of(model).is_flow else "normal"
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def _recorded(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """A clone of `model` without the pack's methods, whose next dense run `recorder` takes down."""

    def record(executor: Any, own: Any, conds: Any, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        outputs = executor(own, conds, x, timestep, options)
        recorder.add(x, outputs, float(timestep.flatten()[0]))
        return outputs

    clone = detached(model)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, RECORDING, record)
    return clone


def with_picture(profile: Profile, model: ModelPatcher, cfg: float, sample: Callable[[ModelPatcher], object]) -> Profile:
    """The profile with one more dense run. sample: samples a MODEL at this CFG."""
    recorder = Recorder((cfg, 1 - cfg))
    sample(_recorded(model, recorder))
    return profile.joined(recorder.runs())


def make_profile(model: ModelPatcher, pictures: Pictures, path: Path) -> Profile:
    """Sample pictures densely and add them to the model's profile, which is kept at `path`, after each of them, so that an
    interrupt loses only the one under way. Returns the profile. Raises ProfileError for a file that cannot be read."""
    profile = begun(model, path, time_axis_of(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = len(pictures.sigmas) - 1
    bar = comfy.utils.ProgressBar(pictures.count * steps)
    latent = comfy.sample.fix_empty_latent_channels(model, pictures.latent[:1], *pictures.downscale)
    for i in range(pictures.count):
        seed = pictures.seed + i
        progress: Callable = lambda step, *_, done=i: bar.update_absolute(done * steps + step + 1)  # noqa: E731
        sample = partial(
            comfy.sample.sample_custom, noise=comfy.sample.prepare_noise(latent, seed), cfg=pictures.cfg,
            sampler=pictures.sampler, sigmas=pictures.sigmas, positive=pictures.positive, negative=pictures.negative,
            latent_image=latent, callback=progress, disable_pbar=True, seed=seed,
        )  # fmt: skip
        profile = with_picture(profile, model, pictures.cfg, sample)
        write_profile(profile, path)
    return profile


def expectations(model: ModelPatcher, profile: Profile, sampler: Any, sigmas: Tensor) -> list[str]:
    """What is expected of a model at some speeds, in lines of text."""
    prediction = prediction_type(False, axis=profile.axis)
    response = sampler_response(sampler, model, sigmas, prediction)
    errors = ErrorModel(tuple(float(s) for s in sigmas[:-1]), profile, prediction, response)
    paths = cheapest(errors.costs, PATH_WARMUP - 1, errors.steps)
    lines = []
    for speed in SPEEDS:
        least = dense_steps(errors.steps, speed) - PATH_WARMUP
        fitting = [e for dense, e in zip(paths.dense, paths.errors, strict=True) if len(dense) >= least]
        if fitting:
            lines.append(f"  {speed:g} times fewer evaluations: {errors.decibels(fitting[0]):.1f} dB")
    return lines


@torch.no_grad()
def profile_model(model: ModelPatcher, pictures: Pictures) -> str:
    """Make or extend a model's profile; returns what is to be told of it."""
    path = path_of(model)
    profile = make_profile(model, pictures, path)
    size = path.stat().st_size / 1024
    return "\n".join([
        f"{pictures.count} pictures profiled, {len(profile.runs)} in all, {size:.0f} KiB in {path}",
        f"expected signal-to-noise ratio to the dense latent, in {len(pictures.sigmas) - 1} steps:",
        *expectations(model, profile, pictures.sampler, pictures.sigmas),
    ])  # fmt: skip
