"""Dense runs that go into the model's own profile because the user said so, on real models of ComfyUI."""

import comfy.model_management
import numpy as np
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.profile import read_profile
from highlight_diffusion.engine.report.numbers import as_line, as_text, report
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.profiles import path_of
from highlight_diffusion.nodes.profile import HighlightProfile

from . import tiny

OFF = HighlightConfig(enabled=False)
pytestmark = pytest.mark.usefixtures("user")
MODELS = {"sd15": tiny.sd15, "sd3": tiny.sd3}


def run_of(model: tiny.Tiny, config: HighlightConfig = OFF, learns: bool = True, steps: int = 10, **kwargs):
    trace = Trace()
    latent = tiny.sample(model, attach(model.patcher, config, trace, learns=learns), steps=steps, **kwargs)
    return latent, trace.last


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_off_is_learnt_from_as_profile_a_model_does(name):
    model = MODELS[name]()
    latent, run = run_of(model, scheduler="simple", sampler="euler", cfg=4.0, seed=5)
    assert torch.equal(latent, tiny.sample(model, steps=10, scheduler="simple", sampler="euler", cfg=4.0, seed=5))
    assert run.learnt.startswith("added to the model's profile, which has ")
    learnt = read_profile(path_of(model.patcher)).runs
    told = report(run)
    assert run.learnt in as_text(told) and run.learnt in as_line(run) and told["learnt"] == run.learnt
    path_of(model.patcher).unlink()
    empty = {"samples": torch.zeros(1, model.channels, *model.size)}
    HighlightProfile.execute(
        model.patcher, tiny.cond(model, 1), tiny.cond(model, 2), empty, seed=5, cfg=4.0, pictures=1, steps=10
    )
    assert learnt[0].weights.tolist() == [4.0, -3.0] == read_profile(path_of(model.patcher)).runs[0].weights.tolist()
    assert learnt[0].eps.shape == (2, 10, 64) and np.isfinite(learnt[0].eps).all()


def test_nothing_is_written_unless_it_is_asked_for():
    model = tiny.sd15()
    _, run = run_of(model, learns=False)
    assert not run.learnt and not path_of(model.patcher).exists() and "profile" not in as_line(run)


def test_the_same_picture_again_is_not_learnt_twice_and_another_is():
    model = tiny.sd15()
    run_of(model, seed=1)
    before = len(read_profile(path_of(model.patcher)).runs)
    assert run_of(model, seed=1)[1].learnt.startswith("already in the model's profile")
    assert len(read_profile(path_of(model.patcher)).runs) == before
    run_of(model, seed=2)
    assert len(read_profile(path_of(model.patcher)).runs) == 2 * before


def test_a_highlighted_run_in_which_nothing_is_saved_is_learnt_from():
    model = tiny.sd15()
    _, run = run_of(model, HighlightConfig(interval=(1,)))
    assert run.learnt.startswith("added"), run.learnt


@pytest.mark.parametrize(("kwargs", "why"), [
    ({"config": HighlightConfig()}, "not every step was computed in full"),
    ({"steps": 6}, "the run has 6 steps"),
    ({"denoise": 0.5}, "does not start from noise alone"),
    ({"sampler": "euler_ancestral"}, "adds noise of its own"),
    ({"steps": 20, "last_step": 12}, "does not go on until no noise is left"),
    ({"noise_mask": torch.ones(1, 1, 8, 8).triu()}, "put back at every step"),
])  # fmt: skip
def test_a_run_that_says_nothing_is_left_out_and_the_report_says_why(kwargs, why):
    model = tiny.sd15()
    _, run = run_of(model, **{"sampler": "euler", **kwargs})
    assert run.learnt.startswith("not added to the model's profile: ") and why in run.learnt
    assert not path_of(model.patcher).exists()


def test_a_damaged_profile_is_named_and_the_picture_is_made():
    model = tiny.sd15()
    run_of(model)
    path = path_of(model.patcher)
    path.write_bytes(path.read_bytes()[:300])
    latent, run = run_of(model, seed=3)
    assert torch.isfinite(latent).all() and "not added" in run.learnt and path.name in run.learnt


def test_bug_a_profile_that_cannot_be_written_lost_the_picture():
    model = tiny.sd15()
    blocked = path_of(model.patcher).with_suffix(".new")
    blocked.mkdir(parents=True)  # stands where the file is written first
    latent, run = run_of(model)
    assert torch.equal(latent, tiny.sample(model, steps=10))
    assert run.learnt.startswith("not added") and "cannot be written" in run.learnt and run.seconds > 0


def test_an_interrupted_run_is_left_out():
    model, trace = tiny.sd15(), Trace()
    attached = attach(model.patcher, OFF, trace, learns=True)
    calls = iter(range(100))

    def answer(args):
        if next(calls) == 4:
            raise comfy.model_management.InterruptProcessingException
        return args["input"] - args["cond"]

    attached.set_model_sampler_cfg_function(answer)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, attached, steps=10)
    assert trace.last.learnt.endswith("the run was interrupted") and not path_of(model.patcher).exists()
