"""Every family of transformers, and on two of them what others attach; the rest is in test_family_sampling.py."""

import threading

import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.families import family_of
from highlight_diffusion.host.run import is_unguided

from . import tiny
from .sampling import SIZE, guided, on_two_devices, reasons, two_prompts, with_lora

CONFIG = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
ON = "transformers"


@pytest.fixture(scope="module")
def sd3() -> tiny.Tiny:
    return tiny.sd3()


@pytest.fixture(scope="module", params=["sd3", "flux"])
def model(request, sd3) -> tiny.Tiny:
    return sd3 if request.param == "sd3" else tiny.flux()


@pytest.fixture
def check_masked(check):
    """`check`, with the upper left of the frame as the highlight."""

    def checked(model, patched=None, **kwargs):
        height, width = kwargs.get("size", SIZE)
        mask = torch.zeros(1, height, width)
        mask[:, : height // 2, : width // 2] = 1
        return check(model, patched, **{"config": CONFIG, "given": UserMasks(mask), "steps": 10, "size": SIZE, **kwargs})

    return checked


@pytest.mark.parametrize("family", tiny.TRANSFORMERS)
@pytest.mark.compatibility("Models", "{family}", on=ON)
def test_every_family_is_accelerated_by_its_prompt_and_by_a_mask(check_masked, family):
    """Two prompts of different lengths, a batch of two, a size that is not square."""
    model = tiny.TRANSFORMERS[family]()
    height, width = model.size
    length = 77 if family == "hunyuan_dit" else 40  # whose text has a length of its own
    prompts = tiny.cond(model, 1) + tiny.cond(model, 6, length)
    run = check_masked(model, size=(height, width + 8), batch=2, positive=prompts, steps=8)
    assert run.count("partial") and family_of(model.patcher).title


@pytest.mark.compatibility("Conditioning", "reference images (Flux Kontext)", on=ON)
def test_beside_reference_images(check_masked):
    model = tiny.flux()
    positive, negative = tiny.cond(model, 1), tiny.cond(model, 2)
    for conditioning in (positive, negative):
        conditioning[0][1]["reference_latents"] = [torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))]
    run = check_masked(model, positive=positive, negative=negative)
    assert run.count("partial") and run.count("skipped")


@pytest.mark.compatibility("Latents", "a batch of different prompts", on=ON)
def test_a_batch_of_different_prompts_is_accelerated(check_masked, model):
    check_masked(model, positive=two_prompts(model), batch=2)


@pytest.mark.compatibility("Latents", "videos", on=ON)
def test_a_video(check_masked):
    run = check_masked(tiny.wan(), size=(8, 12))
    assert run.count("partial") and len(run.shape) == 5


@pytest.mark.parametrize("cfg", [1.0, 0.0])
@pytest.mark.compatibility("Guidance", "CFG {cfg:g}", on=ON)
def test_without_guidance(check_masked, sd3, cfg):
    check_masked(sd3, cfg=cfg)


def test_in_few_steps_at_cfg_1_presets_forecast_more_than_with_guidance(sd3):
    """As turbo models are sampled; each preset by itself."""
    forecast: dict[float, list[int]] = {1.0: [], 3.0: []}
    for cfg, counts in forecast.items():
        for pace in PACES.values():
            trace = Trace()
            tiny.sample(sd3, attach(sd3.patcher, HighlightConfig(pace=pace), trace), steps=8, cfg=cfg, size=SIZE)
            counts.append(trace.last.count("skipped"))
    assert forecast[1.0] == [2, 3, 4] and max(forecast[3.0]) == 2, forecast


@pytest.mark.parametrize("sdtm", [False, True], ids=["alone", "beside SDTM"])
def test_in_few_steps_at_cfg_1_a_dense_evaluation_between_gaps_is_merged(model, sdtm):
    """In one plan with SDTM where that is on the same MODEL; each run is the first, and CFG is none of it."""
    traces = [Trace() for _ in range(3)]

    def attached(trace: Trace):
        patcher = attach_merging(model.patcher, SDTMConfig(r=0.4), Trace()) if sdtm else model.patcher
        return attach(patcher, HighlightConfig(pace=PACES["fast"]), trace)

    used, settings = attached(traces[0]), {"steps": 8, "cfg": 1.0, "size": SIZE}
    latents = [tiny.sample(model, patcher, **settings) for patcher in (used, used, attached(traces[1]))]
    assert all(torch.equal(latents[0], other) for other in latents[1:])
    run = traces[0].last
    computed = run.letters.replace(".", "")
    assert computed.count("M") == 1 and computed[2] == "M" and run.letters.index("M") > run.letters.index("."), run.letters
    merged = next(e for e in run.evaluations if e.merged is not None)
    assert 0.4 < merged.active < 0.75 and "tokens saved in attention and MLP" in merged.reason
    assert not any("merged" in e.reason or "whole" in e.reason for e in run.evaluations if e.kind == "skipped")
    tiny.sample(model, attached(traces[2]), **{**settings, "cfg": 4.0})
    assert sdtm or not any(e.merged is not None for e in traces[2].last.evaluations)


def test_only_comfyuis_own_guidance_is_known_to_be_none(sd3):
    """Others keep the CFG of 1 that they inherit, and guide by numbers of their own."""
    assert is_unguided(nodes_custom_sampler.Guider_Basic(sd3.patcher))
    assert not is_unguided(nodes_custom_sampler.Guider_DualCFG(sd3.patcher))
    guider = comfy.samplers.CFGGuider(sd3.patcher)
    guider.set_cfg(1.5)
    assert not is_unguided(guider)


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.compatibility("Guidance", "DualCFGGuider, {style}", on=ON)
def test_dual_guidance(check_masked, model, style):
    first, second, negative = (tiny.cond(model, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: DualCFGGuider.execute(patcher, first, second, negative, 4.0, 2.0, style).args[0]  # noqa: E731
    check_masked(model, sampled=guided(make))


@pytest.mark.compatibility("Guidance", "PerpNegGuider", on=ON)
def test_perpendicular_negative_guidance(check_masked, model):
    positive, negative, empty = (tiny.cond(model, seed) for seed in (1, 3, 2))
    make = lambda model, patcher: PerpNegGuider.execute(patcher, positive, negative, empty, 4.0, 1.0).args[0]  # noqa: E731
    check_masked(model, sampled=guided(make))


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "CFGOverride"), reason="this ComfyUI has none")
@pytest.mark.compatibility("Guidance", "CFGOverride, from step to step", on=ON)
def test_guidance_that_is_switched_by_step(check_masked, sd3):
    """Without guidance there is no negative prediction, so that what was predicted before is void."""
    patched = nodes_custom_sampler.CFGOverride.execute(sd3.patcher, 1.0, 0.4, 1.0).args[0]
    run = check_masked(sd3, patched, steps=14)
    changed = [e.index for e in run.evaluations if e.reason == "the conditioning changed"]
    assert len(changed) == 1, "once, where it is switched off"
    before, after = run.evaluations[: changed[0]], run.evaluations[changed[0] :]
    assert all("skipped" in {e.kind for e in part} for part in (before, after))


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "DualModelGuider"), reason="this ComfyUI has none")
@pytest.mark.compatibility("Guidance", "DualModelGuider", on=ON)
def test_guidance_by_another_model_is_computed_and_its_own_prediction_forecast(check_masked, sd3):
    other, calls = tiny.sd3(), []
    hook = other.patcher.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    positive, negative = tiny.cond(sd3, 1), tiny.cond(sd3, 2)
    run = check_masked(
        sd3, sampled=guided(lambda model, patcher: nodes_custom_sampler.DualModelGuider.execute(
            patcher, positive, 4.0, other.patcher, negative).args[0])
    )  # fmt: skip
    hook.remove()
    assert run.count("skipped") and len(calls) == 3 * len(run.evaluations), "check samples three times"


def with_block_patch(model):
    clone = model.patcher.clone()
    clone.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    return clone


ATTACHED = {
    "LoRA": with_lora,
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model.patcher, 3.0, 0.01, 0.6, "1", "1").args[0],
    "a replaced block (patches_replace)": with_block_patch,
    "EasyCache": lambda model: EasyCacheNode.execute(model.patcher, 0.2, 0.15, 0.95, False).args[0],
    "LazyCache": lambda model: LazyCacheNode.execute(model.patcher, 0.2, 0.15, 0.95, False).args[0],
}


@pytest.mark.parametrize("name", ATTACHED)
@pytest.mark.compatibility("Nodes that change the model", "{name}", on=ON)
def test_beside_other_nodes(check_masked, model, name):
    check_masked(model, ATTACHED[name](model))


@pytest.mark.parametrize("name", ATTACHED)
@pytest.mark.compatibility("Nodes that change the model", "{name}", on="SDTM")
def test_merging_beside_other_nodes(check_merging, model, name):
    check_merging(model, ATTACHED[name](model))


@pytest.mark.compatibility("The host", "context windows", on=ON)
def test_context_windows_are_forecast_as_a_whole_and_computed_in_part_by_window(check_masked):
    """Two frames of three at a time; the laws of it are in test_context_windows.py."""
    settings = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False}  # fmt: skip
    model = tiny.wan()
    patched = ContextWindowsManualNode.execute(model.patcher, **settings).args[0]
    run = check_masked(model, patched, size=(8, 8), steps=10)
    assert run.count("partial") and run.count("skipped") and len(run.evaluations) == 10, "one for all windows of a step"
    assert not any("context windows" in reason for reason in reasons(run))


@pytest.mark.compatibility("The host", "several GPUs (MultiGPU work units)", on=ON)
@pytest.mark.skipif(not hasattr(comfy.model_patcher.ModelPatcher, "match_multigpu_clones"), reason="this ComfyUI has none")
def test_several_gpus_are_forecast(check_masked, sd3):
    patched, threads = on_two_devices(sd3, tiny.sd3())
    run = check_masked(sd3, patched)
    assert not run.count("partial") and "forecast only: several GPUs share the work" in reasons(run)
    assert threads and threading.get_ident() not in threads


@pytest.mark.compatibility("The host", "torch.compile (TorchCompileModel)", on=ON)
def test_a_compiled_model_is_forecast_without_subsets(check_masked, sd3):
    patched = sd3.patcher.clone()
    set_torch_compile_wrapper(patched, backend="eager")
    run = check_masked(sd3, patched)
    assert run.count("skipped") and not run.count("partial")
