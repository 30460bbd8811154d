"""Everything a sampler does, on transformers: every sampler on one family, the must-accelerate rows and odd shapes on more."""

import comfy.samplers
import pytest
import torch
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.highlight import Given
from highlight_diffusion.engine.trace import Run, Trace
from highlight_diffusion.host.attach import attach

from . import tiny
from .sampling import ranged, with_area, with_mask

CONFIG = HighlightConfig(max_area=1.0, pace=PACES["balanced"], correct="always")
FAMILIES = ("sd3", "flux", "qwen_image")
MUST = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "uni_pc", "ddim", "lcm", "res_multistep")


def check(model: tiny.Tiny, config=CONFIG, size=(16, 24), again: bool = True, **kwargs) -> Run:
    """Sample on a MODEL, twice and on a fresh one where `again`; returns the trace."""
    mask = torch.zeros(1, *size)
    mask[:, size[0] // 4 : size[0] // 2, : size[1] // 2] = 1
    trace, settings = Trace(), {"size": size, "steps": 14, **kwargs}
    used = attach(model.patcher, config, trace, given=Given(mask))
    latent = tiny.sample(model, used, **settings)
    run = trace.last
    if again:
        fresh = attach(model.patcher, config, Trace(), given=Given(mask))
        assert torch.equal(tiny.sample(model, used, **settings), latent)
        assert torch.equal(tiny.sample(model, fresh, **settings), latent)
    assert torch.isfinite(latent).all() and all(e.reason for e in run.evaluations)
    assert run.count("skipped") + run.count("partial"), [(e.kind, e.reason) for e in run.evaluations]
    return run


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> tiny.Tiny:
    return tiny.TRANSFORMERS[request.param]()


@pytest.fixture(scope="module")
def sd3() -> tiny.Tiny:
    return tiny.sd3()


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_is_accelerated(sd3, sampler):
    run = check(sd3, sampler=sampler, again=False)
    assert run.completed and run.mean_active < 0.95


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_is_accelerated(sd3, scheduler):
    assert check(sd3, scheduler=scheduler, again=False).mean_active < 0.95


@pytest.mark.parametrize("sampler", MUST)
def test_what_must_be_accelerated_is(model, sampler):
    assert check(model, sampler=sampler, again=sampler in ("euler", "dpmpp_2m")).mean_active < 0.9


@pytest.mark.parametrize("size", [(16, 40), (18, 14), (17, 23)], ids=str)
def test_other_shapes(model, size):
    run = check(model, size=size, again=False)
    assert run.count("partial"), [(e.kind, e.reason) for e in run.evaluations]


def several(model):
    return tiny.cond(model, 1) + tiny.cond(model, 6)


POSITIVES = {
    "several": several, "mask": with_mask, "area": with_area, "timestep range": ranged,
    "another length": lambda model: tiny.cond(model, 1, tokens=154),
}  # fmt: skip


@pytest.mark.parametrize("way", POSITIVES)
def test_every_way_of_conditioning_is_accelerated(model, way):
    check(model, positive=POSITIVES[way](model), steps=16, again=False)


SETTINGS = {
    "batch": {"batch": 2}, "no guidance": {"cfg": 1.0}, "image to image": {"denoise": 0.6, "steps": 20},
    "second half": {"steps": 30, "start_step": 10, "last_step": 26, "force_full_denoise": False},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_every_way_of_sampling_is_accelerated(model, name):
    check(model, **SETTINGS[name])


def test_inpainting_by_noise_mask(model):
    frames = [] if model.frames is None else [1]
    mask = torch.zeros(1, 1, *frames, 16, 24)
    mask[..., 4:12, 4:12] = 1
    check(model, noise_mask=mask, again=False)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_an_adaptive_interval_goes_by_the_forecasts_error(model, sampler):
    config = HighlightConfig(max_area=1.0, interval="adaptive", pace=20.0, correct="always")
    run = check(model, config, sampler=sampler, steps=20, again=False)
    assert run.count("dense") < len(run.evaluations)
