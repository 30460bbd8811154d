"""Everything a sampler does, on transformers: every sampler on one family, the must-accelerate rows and odd shapes on more."""

from collections.abc import Callable

import comfy.samplers
import pytest
import torch
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord

from . import tiny
from .sampling import POSITIVES, two_prompts

CONFIG = HighlightConfig(max_area=1.0, pace=PACES["balanced"], correct="always")
FAMILIES = ("sd3", "flux", "qwen_image")
MUST = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "uni_pc", "ddim", "lcm", "res_multistep")
ON = "transformers"


@pytest.fixture
def check_masked(check) -> Callable[..., RunRecord]:
    """`check`, with a part of the frame as the highlight."""

    def checked(model: tiny.Tiny, config=CONFIG, size=(16, 24), **kwargs) -> RunRecord:
        mask = torch.zeros(1, *size)
        mask[:, size[0] // 4 : size[0] // 2, : size[1] // 2] = 1
        return check(model, config=config, given=UserMasks(mask), **{"size": size, "steps": 14, **kwargs})

    return checked


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> tiny.Tiny:
    return tiny.TRANSFORMERS[request.param]()


@pytest.fixture(scope="module")
def sd3() -> tiny.Tiny:
    return tiny.sd3()


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
@pytest.mark.compatibility("Samplers", "{sampler}", on=ON)
def test_every_sampler_is_accelerated(check_masked, sd3, sampler):
    run = check_masked(sd3, sampler=sampler)
    assert run.completed and run.mean_active < 0.95


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.compatibility("Schedules", "{scheduler}", on=ON)
def test_every_scheduler_is_accelerated(check_masked, sd3, scheduler):
    assert check_masked(sd3, scheduler=scheduler).mean_active < 0.95


@pytest.mark.parametrize("sampler", MUST)
def test_what_must_be_accelerated_is(check_masked, model, sampler):
    assert check_masked(model, sampler=sampler, again=False).mean_active < 0.9


@pytest.mark.parametrize("size", [(16, 40), (18, 14), (17, 23)], ids=str)
@pytest.mark.compatibility("Latents", "sizes that are not square, and odd ones", on=ON)
def test_other_shapes(check_masked, model, size):
    run = check_masked(model, size=size)
    assert run.count("partial"), [(e.kind, e.reason) for e in run.evaluations]


@pytest.mark.parametrize("name", POSITIVES)
@pytest.mark.compatibility("Conditioning", "{name}", on=ON)
def test_every_way_of_conditioning_is_accelerated(check_masked, model, name):
    check_masked(model, positive=POSITIVES[name](model), steps=16)


@pytest.mark.compatibility("Latents", "image to image", on=ON)
def test_image_to_image(check_masked, model):
    check_masked(model, denoise=0.6, steps=20)


@pytest.mark.compatibility("Guidance", "CFG 1", on=ON)
def test_without_guidance(check_masked, model):
    check_masked(model, cfg=1.0)


@pytest.mark.compatibility("Schedules", "a part of one (KSampler Advanced)", on=ON)
def test_a_part_of_a_schedule(check_masked, model):
    check_masked(model, steps=30, start_step=10, last_step=26, force_full_denoise=False)


@pytest.mark.compatibility("Latents", "inpainting by noise mask", on=ON)
def test_inpainting_by_noise_mask(check_masked, model):
    frames = [] if model.frames is None else [1]
    mask = torch.zeros(1, 1, *frames, 16, 24)
    mask[..., 4:12, 4:12] = 1
    check_masked(model, noise_mask=mask)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_an_adaptive_interval_goes_by_the_forecasts_error(check_masked, model, sampler):
    config = HighlightConfig(max_area=1.0, interval="adaptive", pace=20.0, correct="always")
    run = check_masked(model, config, sampler=sampler, steps=20, again=False)
    assert run.count("dense") < len(run.evaluations)


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
@pytest.mark.compatibility("Samplers", "{sampler}", on="SDTM")
def test_tokens_are_merged_under_every_sampler(check_merging, sd3, sampler):
    assert any(e.merged is not None for e in check_merging(sd3, sampler=sampler, size=(8, 12)).evaluations)


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.compatibility("Schedules", "{scheduler}", on="SDTM")
def test_tokens_are_merged_under_every_scheduler(check_merging, sd3, scheduler):
    assert any(e.merged is not None for e in check_merging(sd3, scheduler=scheduler, size=(8, 12)).evaluations)


@pytest.mark.parametrize("name", POSITIVES)
@pytest.mark.compatibility("Conditioning", "{name}", on="SDTM")
def test_tokens_are_merged_under_every_conditioning(check_merging, sd3, name):
    check_merging(sd3, positive=POSITIVES[name](sd3))


@pytest.mark.compatibility("Latents", "a batch of different prompts", on="SDTM")
def test_tokens_of_a_batch_are_merged(check_merging, sd3):
    check_merging(sd3, positive=two_prompts(sd3), batch=2)
