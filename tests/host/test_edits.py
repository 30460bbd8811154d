"""The highlight of models that edit a picture: what differs from the reference they were given."""

import pytest
import torch
from highlight_diffusion.engine.region.regions import BY_REFERENCE
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach

from . import tiny
from .test_references import CASES, CONFIG, settings_of


@pytest.mark.parametrize("name", ["flux, None", "qwen, None", "omnigen"])
def test_the_highlight_is_what_differs_from_the_reference(name):
    """The model's own picture with something else in one place: what it makes of that differs from it there above all."""
    case = CASES[name]
    model, trace = case.model(), Trace()
    settings = settings_of(model, case, steps=12, cfg=1.0)
    latent = tiny.sample(model, model.patcher, **settings)
    asked = latent.clone()
    asked[..., 2:8, 6:12] += 4 * torch.randn(asked[..., 2:8, 6:12].shape, generator=torch.Generator().manual_seed(3))
    settings["positive"][0][1]["reference_latents"] = [asked]
    tiny.sample(model, attach(model.patcher, CONFIG, trace), **settings)
    run = trace.last
    assert run.highlight_reason == BY_REFERENCE, run.highlight_reason
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:8, 6:12] = True
    assert run.highlight[0][inside].float().mean() > 0.7 and run.highlight[0][~inside].float().mean() < 0.2
    assert run.count("partial") and run.count("skipped")
