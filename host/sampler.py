"""What ComfyUI's samplers do with predictions and with noise, measured by running them on numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..engine.extrapolation import PredictionType
from ..engine.prediction.response import ImpulseResponse, fresh_noise, impulse_response

# What a sampler that wants more of a model than predictions may raise: numbers have no second branch.
UNSUITED = (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError, ZeroDivisionError, NotImplementedError)


class _Numbers:
    """Stands where a sampler has the model: the same attributes, and `answer` for predictions."""

    def __init__(self, model: ModelPatcher, answer: Callable, guided: bool):
        sampling = model.get_model_object("model_sampling")
        self.inner_model = SimpleNamespace(model_patcher=model, inner_model=SimpleNamespace(model_sampling=sampling))
        self.answer, self.guided = answer, guided

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict, **_: Any) -> Tensor:
        listeners = model_options.get("sampler_post_cfg_function", ())
        if listeners and not self.guided:
            raise NotImplementedError("this sampler reads the negative prediction apart")
        denoised = self.answer(x, float(sigma.flatten()[0]))
        for listener in listeners:
            listener({"denoised": denoised, "uncond_denoised": denoised, "cond_denoised": denoised, "input": x, "sigma": sigma})
        return denoised


def sampler_response(sampler: Any, model: ModelPatcher, sigmas: Tensor, prediction: PredictionType) -> ImpulseResponse | None:
    """How `sampler` (a KSAMPLER) passes predictions on over `sigmas`; None where it is not linear or cannot be asked.

    Noise of the sampler's own is left out, and the random generators stay as they are.
    """
    if (run := _on_numbers(sampler, model, sigmas, guided=False)) is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return impulse_response(lambda answer, x: run(answer, lambda: torch.zeros_like(x), x), prediction)
    except UNSUITED:
        return None


def sampler_noise(sampler: Any, model: ModelPatcher, sigmas: Tensor) -> tuple[float, ...] | None:
    """How much of the noise `sampler` (a KSAMPLER) makes anew in each step over `sigmas`, as `fresh_noise` says; None where
    it cannot be asked, as where it draws its noise by itself."""
    run = _on_numbers(sampler, model, sigmas, guided=True)
    if run is None or not _takes_noise(sampler):
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return fresh_noise(run, [float(sigma) for sigma in sigmas[:-1]])
    except UNSUITED:
        return None


def _takes_noise(sampler: Any) -> bool:
    return "noise_sampler" in inspect.signature(sampler.sampler_function).parameters


def _on_numbers(sampler: Any, model: ModelPatcher, sigmas: Tensor, guided: bool) -> Callable | None:
    """Runs `sampler` over `sigmas` with answers, a source of noise and a start that are all numbers; None where it is no
    function. guided: whether samplers that read the negative prediction apart get the same number for it."""
    function = getattr(sampler, "sampler_function", None)
    if function is None:
        return None
    sigmas = sigmas.detach().cpu()

    def run(answer: Callable, noise: Callable[[], Tensor], x: Tensor) -> Tensor:
        options = {**sampler.extra_options, **({"noise_sampler": lambda *_: noise()} if _takes_noise(sampler) else {})}
        extra = {"seed": 0, "model_options": {}}
        return function(_Numbers(model, answer, guided), x, sigmas, extra_args=extra, callback=None, disable=True, **options)

    return run
