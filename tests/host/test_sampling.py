"""Everything a sampler does, in the real host: each row saves, equals a fresh MODEL's result, and says what it did."""

import threading
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tomesd import TomePatchModel
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.context_windows import IN_USE

from . import tiny
from .sampling import CONFIG, POSITIVES, SIZE, guided, on_two_devices, reasons, run_thrice, sampled_by, two_prompts, with_lora


@pytest.fixture(scope="module")
def sd15() -> tiny.Tiny:
    return tiny.sd15()


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
@pytest.mark.compatibility("Samplers", "{sampler}")
def test_every_sampler_is_accelerated(check, sd15, sampler):
    run = check(sd15, sampler=sampler)
    assert run.completed and run.mean_active < 0.9


@pytest.mark.compatibility("Samplers", "a change of the latent's size (SamplerLCMUpscale)")
def test_a_sampler_that_changes_the_size_runs_dense(check, sd15):
    def upscaled(model, patcher, size, steps):
        return sampled_by(model, patcher, SamplerLCMUpscale.execute(1.5, -1, "bislerp").args[0], steps)

    run = check(sd15, sampled=upscaled, steps=4, saves=False)
    assert any("the frame is" in reason for reason in reasons(run))


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.compatibility("Schedules", "{scheduler}")
def test_every_scheduler_is_accelerated(check, sd15, scheduler):
    run = check(sd15, scheduler=scheduler)
    assert run.mean_active < 0.85


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpm_adaptive"])
def test_an_adaptive_interval_goes_by_the_forecasts_error(sd15, sampler):
    paces = [
        run_thrice(sd15, sampler=sampler, steps=24, config=replace(CONFIG, interval="adaptive", pace=p)) for p in (5.0, 30.0)
    ]
    slow, fast = (run.count("dense") / len(run.evaluations) for run in paces)
    assert fast < slow < 1
    measured = [e.forecast_error for e in paces[0].evaluations if e.kind == "dense" and e.index > 3]
    assert all(error is not None and error > 0 for error in measured)


@pytest.mark.parametrize("name", POSITIVES)
@pytest.mark.compatibility("Conditioning", "{name}")
def test_every_way_of_conditioning_is_accelerated(check, sd15, name):
    check(sd15, positive=POSITIVES[name](sd15))


@pytest.mark.compatibility("Latents", "a batch of different prompts")
def test_a_batch_of_different_prompts_is_accelerated(check, sd15):
    check(sd15, positive=two_prompts(sd15), batch=2)


@pytest.mark.parametrize("cfg", [1.0, 0.0])
@pytest.mark.compatibility("Guidance", "CFG {cfg:g}")
def test_without_guidance(check, sd15, cfg):
    check(sd15, cfg=cfg)


@pytest.mark.compatibility("Latents", "inpainting by noise mask")
def test_inpainting_by_noise_mask(check, sd15):
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 4:12, 4:12] = 1
    check(sd15, noise_mask=mask)


@pytest.mark.compatibility("Latents", "an inpainting model")
def test_an_inpainting_model(check):
    model = tiny.inpaint()
    positive, negative = tiny.cond(model, 1), tiny.cond(model, 2)
    generator = torch.Generator().manual_seed(4)
    mask = torch.zeros(1, 1, *(8 * side for side in SIZE))
    mask[..., 32:96, 32:96] = 1
    for conditioning in (positive, negative):
        image = torch.randn(1, 4, *SIZE, generator=generator)
        conditioning[0][1].update(concat_latent_image=image, concat_mask=mask)
    check(model, positive=positive, negative=negative, noise_mask=mask)


@pytest.mark.compatibility("Latents", "image to image")
def test_image_to_image(check, sd15):
    run = check(sd15, steps=20, denoise=0.6)
    assert len(run.evaluations) == 20


@pytest.mark.compatibility("Schedules", "a part of one (KSampler Advanced)")
def test_the_second_half_of_a_schedule(check, sd15):
    """KSampler (Advanced) from a middle step on, with noise left over."""
    check(sd15, steps=30, start_step=10, last_step=26, force_full_denoise=False)


UNETS = [("SD1.x", tiny.sd15), ("SD2.x", tiny.sd21), ("SDXL", tiny.sdxl), ("Koala, without a middle block", tiny.koala)]


@pytest.mark.parametrize(("name", "make"), UNETS)
@pytest.mark.compatibility("Models", "{name}")
def test_every_kind_of_unet_is_accelerated(check, name, make):
    check(make())


@pytest.mark.parametrize("size", [(8, 30), (14, 10), (15, 17)])
@pytest.mark.compatibility("Latents", "sizes that are not square, and odd ones")
def test_sizes_that_are_not_square(check, sd15, size):
    check(sd15, size=size)


@pytest.mark.compatibility("The host", "interruption, and the run after it")
def test_the_run_after_an_interruption(check, sd15):
    used = attach(sd15.patcher, CONFIG, Trace())

    def interrupt(step, *_):
        if step == 6:
            raise comfy.model_management.InterruptProcessingException

    def interrupted_before(model, patcher, **kwargs):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            tiny.sample(model, used, callback=interrupt, **kwargs)
        return tiny.sample(model, patcher, **kwargs)

    check(sd15, sampled=interrupted_before)


@pytest.mark.compatibility("Models", "SDXL refiner")
def test_the_refiner(check):
    check(tiny.refiner())


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.compatibility("Guidance", "DualCFGGuider, {style}")
def test_dual_guidance(check, sd15, style):
    first, second, negative = (tiny.cond(sd15, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: DualCFGGuider.execute(patcher, first, second, negative, 4.0, 2.0, style).args[0]  # noqa: E731
    run = check(sd15, sampled=guided(make))
    assert run.highlight is not None


@pytest.mark.compatibility("Guidance", "PerpNegGuider")
def test_perpendicular_negative_guidance(check, sd15):
    positive, negative, empty = (tiny.cond(sd15, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: PerpNegGuider.execute(patcher, positive, negative, empty, 4.0, 1.0).args[0]  # noqa: E731
    check(sd15, sampled=guided(make))


ATTACHED = {
    "LoRA": with_lora,
    "FreeU": lambda model: FreeU_V2.execute(model.patcher, 1.3, 1.4, 0.9, 0.2).args[0],
    "ToMe": lambda model: TomePatchModel.execute(model.patcher, 0.4).args[0],
    "HyperTile": lambda model: HyperTile.execute(model.patcher, 64, 2, 0, False)[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model.patcher, 3.0).args[0],
    "SAG": lambda model: SelfAttentionGuidance.execute(model.patcher, 0.5, 2.0).args[0],
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model.patcher, 3.0, 0.01, 0.6, "1", "1").args[0],
    "EasyCache": lambda model: EasyCacheNode.execute(model.patcher, 0.2, 0.15, 0.95, False).args[0],
    "LazyCache": lambda model: LazyCacheNode.execute(model.patcher, 0.2, 0.15, 0.95, False).args[0],
}


@pytest.mark.parametrize("name", ATTACHED)
@pytest.mark.compatibility("Nodes that change the model", "{name}")
def test_beside_other_nodes(check, sd15, name):
    check(sd15, ATTACHED[name](sd15))


@pytest.mark.compatibility("The host", "a prediction that is not finite, and what follows it")
def test_what_follows_a_prediction_that_is_not_finite_is_dense(observe, sd15):
    trace, spoilt = Trace(), []

    def spoil(module, args, output):
        if len(trace.last.evaluations) < 8 or spoilt:
            return output
        spoilt.append(1)
        return output * torch.nan

    patcher = attach(sd15.patcher, CONFIG, trace)
    hook = sd15.patcher.model.diffusion_model.register_forward_hook(spoil)
    tiny.sample(sd15, patcher, size=SIZE, steps=16)
    hook.remove()
    run = trace.last
    observe(run)
    assert run.not_finite is not None and all(e.kind == "dense" for e in run.evaluations[run.not_finite + 1 :])
    tiny.sample(sd15, patcher, size=SIZE, steps=16)
    assert trace.last.not_finite is None and trace.last.count("skipped")


@pytest.mark.compatibility("The host", "context windows")
def test_context_windows_are_forecast_as_a_whole(check, sd15):
    """A window of two pictures of a batch of four at a time: the model sees another batch at every call."""
    settings = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 0, "freenoise": False}  # fmt: skip
    patched = ContextWindowsManualNode.execute(sd15.patcher, **settings).args[0]
    run = check(sd15, patched, batch=4, steps=10)
    assert not run.count("partial") and "forecast only: context windows are in use" in reasons(run)
    assert len(run.evaluations) == 10, "one for all windows of a step"


def test_beside_context_windows_off_is_off_and_every_window_is_computed(sd15):
    """Windows that are others in each step. The handler that was there is back afterwards."""
    settings = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_uniform", "context_stride": 2,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 0, "freenoise": True}  # fmt: skip
    patched = ContextWindowsManualNode.execute(sd15.patcher, **settings).args[0]
    handler = patched.model_options["context_handler"]
    off, on = (attach(patched, config, Trace()) for config in (HighlightConfig(enabled=False), HighlightConfig()))
    vanilla, same, saved = (tiny.sample(sd15, p, batch=5, steps=6) for p in (patched, off, on))
    assert torch.equal(vanilla, same) and torch.isfinite(saved).all()
    assert patched.model_options["context_handler"] is handler


def test_a_video_shorter_than_a_window_is_computed_as_without_one(sd15):
    settings = {"context_length": 8, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 0, "freenoise": False}  # fmt: skip
    patched = ContextWindowsManualNode.execute(sd15.patcher, **settings).args[0]
    config = HighlightConfig(max_area=1.0, correct="always")
    latents = [tiny.sample(sd15, attach(p, config, trace := Trace()), steps=9) for p in (sd15.patcher, patched)]
    assert torch.equal(*latents) and IN_USE not in "".join(reasons(trace.last))


@pytest.mark.compatibility("The host", "several GPUs (MultiGPU work units)")
@pytest.mark.skipif(not hasattr(comfy.model_patcher.ModelPatcher, "match_multigpu_clones"), reason="this ComfyUI has none")
def test_several_gpus_are_forecast(check, sd15):
    """ComfyUI's own path for several devices: the calls of a step in a thread each, which are made as they are."""
    patched, threads = on_two_devices(sd15, tiny.sd15())
    run = check(sd15, patched, steps=10)
    assert not run.count("partial") and "forecast only: several GPUs share the work" in reasons(run)
    assert threads and threading.get_ident() not in threads


@pytest.mark.compatibility("The host", "torch.compile (TorchCompileModel)")
def test_a_compiled_model_is_forecast_without_windows(check, sd15):
    patched = sd15.patcher.clone()
    set_torch_compile_wrapper(patched, backend="eager")
    run = check(sd15, patched)
    assert run.count("skipped") and not run.count("partial")
    assert any("torch.compile" in reason for reason in reasons(run))


@pytest.mark.compatibility("The host", "live previews")
def test_live_previews_change_nothing(check, sd15):
    seen = []

    def previewed(model, patcher, **kwargs):
        return tiny.sample(model, patcher, callback=lambda step, x0, x, total: seen.append(x0.clone()), **kwargs)

    run = check(sd15, sampled=previewed)
    plain = tiny.sample(sd15, attach(sd15.patcher, CONFIG, Trace()), size=SIZE, steps=16)
    assert torch.equal(previewed(sd15, attach(sd15.patcher, CONFIG, Trace()), size=SIZE, steps=16), plain)
    assert len(seen) == 4 * len(run.evaluations)
