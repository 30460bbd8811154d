"""The impulse response of the host's own samplers."""

import comfy.samplers
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.placement.traits import SamplerTraits
from highlight_diffusion.engine.prediction.forecast import prediction_type
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.sampler import sampler_noise, sampler_response

from . import tiny

GUIDED = [name for name in comfy.samplers.KSampler.SAMPLERS if "cfg_pp" in name]  # read the negative prediction apart
WITHOUT = [*GUIDED, "dpm_adaptive"]
LINEAR = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in WITHOUT]
FORGETTING = ["euler", "ddim", "euler_ancestral", "ddpm", "lcm"]


@pytest.fixture(scope="module")
def sd15() -> tiny.Tiny:
    return tiny.sd15()


def response(model: tiny.Tiny, name: str, prediction=None):
    sampling = model.patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 10)
    prediction = prediction or prediction_type(SamplerTraits.of(name).noisy)
    return sampler_response(
        comfy.samplers.sampler_object(name), model.patcher, sigmas, prediction or prediction_type(SamplerTraits.of(name).noisy)
    )


@pytest.mark.parametrize("name", LINEAR)
def test_linear_samplers_have_a_response(sd15, name):
    measured = response(sd15, name)
    assert measured is not None and len(measured.sigmas) >= 10
    assert measured.one_step == (name in FORGETTING)


@pytest.mark.parametrize("name", WITHOUT)
def test_samplers_that_want_more_than_predictions_have_none(sd15, name):
    assert response(sd15, name) is None


@pytest.mark.parametrize("name", comfy.samplers.KSampler.SAMPLERS)
def test_measuring_leaves_the_random_generator_alone(sd15, name):
    torch.manual_seed(4)
    expected = torch.rand(4)
    torch.manual_seed(4)
    response(sd15, name)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun"])
def test_revised_forecasts_end_nearer_to_dense(sd15, name):
    def sampled(config):
        trace = Trace()
        return tiny.sample(sd15, attach(sd15.patcher, config, trace), sampler=name, steps=24, size=(16, 16)), trace.last

    dense = tiny.sample(sd15, sampler=name, steps=24, size=(16, 16))
    (left, off), (revised, on) = (sampled(HighlightConfig(pace=3.0, correct="never", revise=r)) for r in (False, True))
    assert not off.revises and on.revises and off.count("skipped") == on.count("skipped") > 6
    assert (revised - dense).square().mean() < (left - dense).square().mean()


EXACT = ["ancestral", "dpmpp_sde", "2m_sde", "3m_sde", "ddpm", "seeds", "exp_heun_2_x0_sde"]  # as much noise as the SDE has


# Those that draw noise; CFG++ renews it in every sampler, and draws some in the ancestral ones alone.
DRAWING = [
    name for name in comfy.samplers.KSampler.SAMPLERS
    if SamplerTraits.of(name).noisy and (name not in GUIDED or "ancestral" in name)
]  # fmt: skip


@pytest.mark.parametrize("name", DRAWING)
def test_fresh_noise_of_the_hosts_samplers_is_measured(sd15, name):
    sigmas = comfy.samplers.calculate_sigmas(sd15.patcher.get_model_object("model_sampling"), "normal", 12)
    fresh = sampler_noise(comfy.samplers.sampler_object(name), sd15.patcher, sigmas)
    steps = sigmas[:-1].tolist()
    exact = [1 - (b / a) ** 2 for a, b in zip(steps, steps[1:], strict=False)]
    if any(word in name for word in EXACT):
        assert fresh == pytest.approx(exact, abs=1e-3)
    elif name == "lcm":
        assert min(fresh) > 0.99
    else:  # er_sde adds less, sa_solver adds it in the middle of the way only
        assert 0 < sum(fresh) < 0.7 * sum(exact)
        assert name == "er_sde" or (max(fresh[0], fresh[-1]) < 1e-9 and fresh[4] == pytest.approx(exact[4], abs=1e-3))


def test_samplers_without_noise_have_no_fresh_noise(sd15):
    sigmas = comfy.samplers.calculate_sigmas(sd15.patcher.get_model_object("model_sampling"), "normal", 12)
    for name in (name for name in comfy.samplers.KSampler.SAMPLERS if name not in DRAWING):
        assert not any(sampler_noise(comfy.samplers.sampler_object(name), sd15.patcher, sigmas) or ()), name
