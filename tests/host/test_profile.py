"""Profile a Model, on real models of ComfyUI: what it writes, who finds it, and what becomes of files that are no profile."""

import logging

import comfy.model_management
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.profile import ProfileError, bundled, read_profile
from highlight_diffusion.engine.time_axis import DIFFUSION, FLOW
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.profiles import fingerprint, path_of, profile_of
from highlight_diffusion.nodes.profile import HighlightProfile

from . import tiny

pytestmark = pytest.mark.usefixtures("user")
MODELS = {"sd15": tiny.sd15, "v-prediction": tiny.sd21, "sd3": tiny.sd3}


def profiled(model: tiny.Tiny, patcher=None, **kwargs) -> tuple:
    latent = {"samples": torch.zeros(2, model.channels, *model.size)}
    given = {"seed": 5, "cfg": 4.0, "pictures": 2, "steps": 8, **kwargs}
    made = HighlightProfile.execute(patcher or model.patcher, tiny.cond(model, 1), tiny.cond(model, 2), latent, **given)
    return made.args


def run_of(model: tiny.Tiny, config: HighlightConfig, **kwargs) -> tuple:
    trace = Trace()
    latent = tiny.sample(model, attach(model.patcher, config, trace), **kwargs)
    return latent, trace.last


@pytest.mark.parametrize("name", MODELS)
def test_a_profile_is_made_and_found_by_the_next_run(name, user):
    model = MODELS[name]()
    _, before = run_of(model, HighlightConfig(speed=2.0), steps=12)
    out, told = profiled(model)
    assert out is model.patcher
    path = path_of(model.patcher)
    profile = read_profile(path)
    assert path.is_relative_to(user) and str(path) in told and "2 times fewer evaluations" in told
    assert len(profile.runs) == 2 and profile.axis is (FLOW if name == "sd3" else DIFFUSION)
    assert profile.runs[0].weights.tolist() == [4.0, -3.0] and profile.runs[0].eps.shape == (2, 8, 64)
    latent, after = run_of(model, HighlightConfig(speed=2.0), steps=12)
    assert torch.isfinite(latent).all() and after.count("dense") == 6 == before.count("dense")
    assert after.expected_error != before.expected_error


def test_in_few_steps_a_model_without_a_profile_is_planned_with_care_and_one_with_its_own_is_not():
    model, config = tiny.sd3(), HighlightConfig(speed=2.0)
    (_, before), _, (_, after) = run_of(model, config, steps=8), profiled(model), run_of(model, config, steps=8)
    assert any(limit.startswith("planned with care") for limit in before.limits) and not after.limits
    assert ".." not in before.letters and "." in before.letters


def test_two_runs_of_it_add_up_and_a_run_with_highlight_before_it_is_dense():
    model = tiny.sd15()
    profiled(model)
    first = read_profile(path_of(model.patcher)).runs
    profiled(model, attach(model.patcher, HighlightConfig(speed=3.0), Trace()))
    runs = read_profile(path_of(model.patcher)).runs
    assert len(runs) == 4
    for i in range(2):
        assert (runs[i + 2].eps == first[i].eps).all() and (runs[i].x0 == first[i].x0).all()


def test_a_sampler_and_sigmas_can_be_given():
    model = tiny.sd15()
    import comfy.samplers

    sampling = model.patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 6)
    profiled(model, sampler=comfy.samplers.sampler_object("heun"), sigmas=sigmas, cfg=1.0, pictures=1)
    (run,) = read_profile(path_of(model.patcher)).runs
    assert run.sigmas == pytest.approx(sigmas[:-1].tolist()) and run.weights.tolist() == [1.0, 0.0]


def test_finetunes_have_profiles_of_their_own_and_loras_have_not():
    model, again = tiny.sd15(), tiny.sd15()
    assert fingerprint(model.patcher) == fingerprint(again.patcher) == fingerprint(model.patcher.clone())
    lora = model.patcher.clone()
    name = next(n for n, _ in model.patcher.model.named_parameters() if n.endswith("attn1.to_q.weight"))
    lora.add_patches({name: ("diff", (torch.ones(model.patcher.model.get_parameter(name).shape),))})
    comfy.model_management.load_models_gpu([lora])
    assert fingerprint(lora) == fingerprint(again.patcher)
    tiny.randomise(again.patcher.model.diffusion_model, seed=1)
    assert fingerprint(model.patcher) != fingerprint(again.patcher) != fingerprint(tiny.sdxl().patcher)


def test_a_damaged_profile_is_named_and_nothing_else_fails(caplog):
    model = tiny.sd15()
    profiled(model, pictures=1)
    path = path_of(model.patcher)
    path.write_bytes(path.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        assert profile_of(model.patcher, DIFFUSION) is bundled(DIFFUSION)
        latent, run = run_of(model, HighlightConfig(speed=2.0))
    assert torch.isfinite(latent).all() and run.count("skipped") and path.name in caplog.text
    with pytest.raises(ProfileError, match=path.name):
        profiled(model, pictures=1)


def test_an_interrupt_keeps_the_pictures_that_are_done(monkeypatch):
    model = tiny.sd15()
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise comfy.model_management.InterruptProcessingException

    model.patcher.set_model_sampler_cfg_function(lambda args: (check(), args["input"] - args["cond"])[1])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        profiled(model, pictures=3)
    assert len(read_profile(path_of(model.patcher)).runs) == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("sampler", "scheduler"), [
    ("euler", "simple"), ("dpmpp_2m", "karras"), ("dpmpp_2m_sde", "normal"), ("euler_ancestral", "beta"), ("heun", "normal"),
    ("res_multistep", "simple"), ("dpm_adaptive", "normal"), ("uni_pc", "exponential"),
])  # fmt: skip
def test_every_kind_of_sampler_gets_a_path(name, sampler, scheduler):
    model = MODELS[name]()
    latent, run = run_of(model, HighlightConfig(speed=1.7), steps=9, sampler=sampler, scheduler=scheduler)
    assert torch.isfinite(latent).all()
    assert all(e.reason for e in run.evaluations)
    if sampler in ("euler", "dpmpp_2m", "res_multistep"):
        assert run.count("dense") <= 6 and run.expected_error < 100


def test_halves_of_a_ksampler_and_a_part_of_the_schedule_get_paths():
    model = tiny.sd15()
    for kwargs in (
        {"start_step": 0, "last_step": 5},
        {"start_step": 5, "last_step": 12, "disable_noise": True},
        {"denoise": 0.5},
    ):
        latent, run = run_of(model, HighlightConfig(speed=1.6), steps=12, **kwargs)
        assert torch.isfinite(latent).all() and run.evaluations
    latent, run = run_of(model, HighlightConfig(fidelity=20.0, start_percent=0.3, end_percent=0.8), steps=20)
    assert torch.isfinite(latent).all() and {e.kind for e in run.evaluations[:5]} == {"dense"}


def test_what_leaves_nothing_to_the_path_is_refused():
    for change in ({"interval": (2,)}, {"interval": "adaptive"}, {"shallow": "always"}, {"predictor": "no such"}):
        with pytest.raises(ValueError, match=r"speed is 2\.0, but"):
            HighlightConfig(speed=2.0, **change)
    for change in ({"speed": 0.5}, {"fidelity": -1.0}, {"speed": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(change))):
            HighlightConfig(**change)


def test_a_speed_of_one_is_dense():
    model = tiny.sd15()
    assert torch.equal(run_of(model, HighlightConfig(speed=1.0))[0], tiny.sample(model))
