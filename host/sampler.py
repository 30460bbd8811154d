"""The impulse response of ComfyUI's samplers."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..engine.extrapolation import PredictionType
from ..engine.prediction.response import ImpulseResponse, impulse_response

# What a sampler that wants more of a model than predictions may raise: numbers have no second branch.
UNSUITED = (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError, ZeroDivisionError, NotImplementedError)


class _Numbers:
    """Stands where a sampler has the model: the same attributes, and `answer` for predictions."""

    def __init__(self, model: ModelPatcher, answer):
        sampling = model.get_model_object("model_sampling")
        self.inner_model = SimpleNamespace(model_patcher=model, inner_model=SimpleNamespace(model_sampling=sampling))
        self.answer = answer

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict, **_: Any) -> Tensor:
        if "sampler_post_cfg_function" in model_options:
            raise NotImplementedError("this sampler reads the negative prediction apart")
        return self.answer(x, float(sigma.flatten()[0]))


def sampler_response(sampler: Any, model: ModelPatcher, sigmas: Tensor, prediction: PredictionType) -> ImpulseResponse | None:
    """How `sampler` (a KSAMPLER) passes predictions on over `sigmas`; None where it is not linear or cannot be asked.

    Noise of the sampler's own is left out, and the random generators stay as they are.
    """
    function = getattr(sampler, "sampler_function", None)
    if function is None:
        return None
    noisy = "noise_sampler" in inspect.signature(function).parameters
    sigmas = sigmas.detach().cpu()

    def run(answer, x: Tensor) -> Tensor:
        options = {**sampler.extra_options, **({"noise_sampler": lambda *_: torch.zeros_like(x)} if noisy else {})}
        extra = {"seed": 0, "model_options": {}}
        return function(_Numbers(model, answer), x, sigmas, extra_args=extra, callback=None, disable=True, **options)

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return impulse_response(run, prediction)
    except UNSUITED:
        return None
