"""Everything a sampler does, in the real host: each row saves, equals a fresh MODEL's result, and says what it did."""

from dataclasses import replace

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tomesd import TomePatchModel
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.trace import Run, Trace
from highlight_diffusion.host.attach import attach

from . import tiny

SIZE = (16, 24)
CONFIG = HighlightConfig(threshold=0.5, max_area=1.0, pace=PACES["balanced"], correct="always")


@pytest.fixture(scope="module")
def sd15() -> tiny.Tiny:
    return tiny.sd15()


def check(model: tiny.Tiny, patched=None, sampled=tiny.sample, saves: bool = True, config=CONFIG, **kwargs) -> Run:
    """Run twice on one MODEL and once on a fresh one; returns the last trace of the first."""
    kwargs = {"size": SIZE, "steps": 16, **kwargs}
    patched = model.patcher if patched is None else patched
    trace = Trace()
    used, fresh = attach(patched, config, trace), attach(patched, config, Trace())
    first, again, other = (sampled(model, patcher, **kwargs) for patcher in (used, used, fresh))
    run = trace.last
    assert torch.isfinite(first).all()
    assert torch.equal(first, again) and torch.equal(first, other)
    assert run.evaluations and all(e.reason for e in run.evaluations)
    assert (run.count("skipped") + run.count("partial") > 0) == saves, [(e.kind, e.reason) for e in run.evaluations]
    return run


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_is_accelerated(sd15, sampler):
    run = check(sd15, sampler=sampler)
    assert run.completed and run.mean_active < 0.9


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_is_accelerated(sd15, scheduler):
    run = check(sd15, scheduler=scheduler)
    assert run.mean_active < 0.85


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpm_adaptive"])
def test_an_adaptive_interval_goes_by_the_forecasts_error(sd15, sampler):
    paces = [check(sd15, sampler=sampler, steps=24, config=replace(CONFIG, interval="adaptive", pace=p)) for p in (5.0, 30.0)]
    slow, fast = (run.count("dense") / len(run.evaluations) for run in paces)
    assert fast < slow < 1
    measured = [e.forecast_error for e in paces[0].evaluations if e.kind == "dense" and e.index > 3]
    assert all(error is not None and error > 0 for error in measured)


def with_mask(model):
    masked = tiny.cond(model, 3)
    masked[0][1].update(mask=torch.ones(1, *SIZE), mask_strength=0.7)
    return tiny.cond(model, 1) + masked


def with_area(model):
    region = tiny.cond(model, 3)
    region[0][1].update(area=(8, 8, 0, 8), strength=1.0)
    return tiny.cond(model, 1) + region


def ranged(model):
    early, late = tiny.cond(model, 1), tiny.cond(model, 5)
    early[0][1].update(start_percent=0.0, end_percent=0.3)
    late[0][1].update(start_percent=0.3, end_percent=1.0)
    return early + late


def hooked(model):
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    width = model.patcher.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, width), (width, 2)))
    lora = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": 0.1 * up}
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    conditioning = tiny.cond(model, 1)
    conditioning[0][1]["hooks"] = hooks
    return conditioning


def two_prompts(model):
    first, second = tiny.cond(model, 1)[0][0], tiny.cond(model, 8)[0][0]
    return [[torch.cat([first, second]), {}]]


POSITIVES = {
    "several": lambda model: tiny.cond(model, 1) + tiny.cond(model, 6),
    "area": with_area, "mask": with_mask, "timestep range": ranged, "hooks": hooked,
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIVES)
def test_every_way_of_conditioning_is_accelerated(sd15, name):
    check(sd15, positive=POSITIVES[name](sd15))


def test_a_batch_of_different_prompts_is_accelerated(sd15):
    check(sd15, positive=two_prompts(sd15), batch=2)


@pytest.mark.parametrize("cfg", [1.0, 0.0])
def test_without_guidance(sd15, cfg):
    check(sd15, cfg=cfg)


def test_inpainting_by_noise_mask(sd15):
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 4:12, 4:12] = 1
    check(sd15, noise_mask=mask)


def test_an_inpainting_model():
    model = tiny.inpaint()
    positive, negative = tiny.cond(model, 1), tiny.cond(model, 2)
    generator = torch.Generator().manual_seed(4)
    mask = torch.zeros(1, 1, *(8 * side for side in SIZE))
    mask[..., 32:96, 32:96] = 1
    for conditioning in (positive, negative):
        image = torch.randn(1, 4, *SIZE, generator=generator)
        conditioning[0][1].update(concat_latent_image=image, concat_mask=mask)
    check(model, positive=positive, negative=negative, noise_mask=mask)


def test_image_to_image(sd15):
    run = check(sd15, steps=20, denoise=0.6)
    assert len(run.evaluations) == 20


def test_the_second_half_of_a_schedule(sd15):
    """KSampler (Advanced) from a middle step on, with noise left over."""
    check(sd15, steps=30, start_step=10, last_step=26, force_full_denoise=False)


def test_the_refiner():
    check(tiny.refiner())


def guided(make):
    """Sample with a guider that a node makes of the patcher and the model."""

    def sampled(model, patcher, size, steps):
        guider = make(model, patcher)
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps)
        noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    return sampled


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_guidance(sd15, style):
    first, second, negative = (tiny.cond(sd15, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: DualCFGGuider.execute(patcher, first, second, negative, 4.0, 2.0, style).args[0]  # noqa: E731
    run = check(sd15, sampled=guided(make))
    assert run.highlight is not None


def test_perpendicular_negative_guidance(sd15):
    positive, negative, empty = (tiny.cond(sd15, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: PerpNegGuider.execute(patcher, positive, negative, empty, 4.0, 1.0).args[0]  # noqa: E731
    check(sd15, sampled=guided(make))


def with_lora(model):
    clone = model.patcher.clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = model.patcher.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight
    clone.add_patches({key: ("diff", (torch.full_like(weight, 0.05),))}, 1.0)
    return clone


ATTACHED = {
    "LoRA": with_lora,
    "FreeU": lambda model: FreeU_V2.execute(model.patcher, 1.3, 1.4, 0.9, 0.2).args[0],
    "ToMe": lambda model: TomePatchModel.execute(model.patcher, 0.4).args[0],
    "HyperTile": lambda model: HyperTile.execute(model.patcher, 64, 2, 0, False)[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model.patcher, 3.0).args[0],
    "SAG": lambda model: SelfAttentionGuidance.execute(model.patcher, 0.5, 2.0).args[0],
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model.patcher, 3.0, 0.01, 0.6, "1", "1").args[0],
}


@pytest.mark.parametrize("name", ATTACHED)
def test_beside_other_nodes(sd15, name):
    check(sd15, ATTACHED[name](sd15))


def reasons(run: Run) -> set[str]:
    return {evaluation.reason for evaluation in run.evaluations}


def test_context_windows_run_dense(sd15):
    """A window of two pictures of a batch of four at a time: the model sees another batch at every call."""
    settings = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 0, "freenoise": False}  # fmt: skip
    patched = ContextWindowsManualNode.execute(sd15.patcher, **settings).args[0]
    run = check(sd15, patched, batch=4, steps=6, saves=False)
    assert reasons(run) == {"context windows are in use"}


def test_several_gpus_run_dense(sd15):
    """ComfyUI's own path for several devices, here with one in the list."""
    patched = sd15.patcher.clone()
    patched.model_options["multigpu_clones"] = {patched.load_device: patched}
    run = check(sd15, patched, steps=6, saves=False)
    assert reasons(run) == {"several GPUs share the work"}


def test_a_compiled_model_is_forecast_without_windows(sd15):
    patched = sd15.patcher.clone()
    set_torch_compile_wrapper(patched, backend="eager")
    run = check(sd15, patched)
    assert run.count("skipped") and not run.count("partial")
    assert any("torch.compile" in reason for reason in reasons(run))


def test_live_previews_change_nothing(sd15):
    seen = []

    def previewed(model, patcher, **kwargs):
        return tiny.sample(model, patcher, callback=lambda step, x0, x, total: seen.append(x0.clone()), **kwargs)

    run = check(sd15, sampled=previewed)
    plain = tiny.sample(sd15, attach(sd15.patcher, CONFIG, Trace()), size=SIZE, steps=16)
    assert torch.equal(previewed(sd15, attach(sd15.patcher, CONFIG, Trace()), size=SIZE, steps=16), plain)
    assert len(seen) == 4 * len(run.evaluations)
