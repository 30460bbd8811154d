"""Token merging on every family of transformers, as tiny real models in the real host."""

import gc

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.merging.sites import ATTENTION, MLP
from highlight_diffusion.engine.merging.stages import MergingRun
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.families import FAMILIES, family_of
from highlight_diffusion.nodes.sdtm import HighlightSDTM

from . import nets, tiny

MERGING = SDTMConfig(r=0.5, protect_steps=3, switch=0.6)  # 6 steps: whole, whole, structure, structure, whole, detail
PURE = SDTMConfig(r=0.5, mcw=1, protect_steps=0)
ODD = {"pixart": (50, 42)}  # its latents need room for a table of positions


@pytest.fixture(scope="module", params=tiny.TRANSFORMERS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> tiny.Tiny:
    return tiny.TRANSFORMERS[name]()


@pytest.fixture(scope="module")
def vanilla(model) -> torch.Tensor:
    return tiny.sample(model, steps=6)


def sampled(model, config: SDTMConfig, **kwargs) -> tuple[torch.Tensor, Trace]:
    trace = Trace()
    return tiny.sample(model, attach_merging(model.patcher, config, trace), **{"steps": 6, **kwargs}), trace


def merged(trace: Trace) -> list:
    return [e for e in trace.last.evaluations if e.merged is not None]


@pytest.fixture(scope="module")
def once(model) -> tuple[torch.Tensor, Trace]:
    return sampled(model, MERGING)


def test_every_family_says_where_attention_and_mlp_are(model):
    network, family = model.patcher.model.diffusion_model, family_of(model.patcher)
    for block in family.blocks(network):
        sites = list(family.sites(block))
        assert {part for site in sites for part in site.parts} == {ATTENTION, MLP}
        assert len({site.input_module for site in sites}) == len(sites)


@pytest.mark.parametrize("settings", [{"enabled": False}, {"r": 0.0, "delta": 0.0}], ids=["disabled", "ratio 0"])
def test_off_is_off(model, vanilla, settings):
    latent, trace = sampled(model, SDTMConfig(**settings))
    assert torch.equal(latent, vanilla) and not merged(trace)


@pytest.mark.compatibility("Models", "{name}", on="SDTM")
def test_tokens_are_merged_and_the_trace_says_so(observe, model, vanilla, once):
    latent, trace = once
    observe(trace.last)
    assert torch.isfinite(latent).all() and not torch.equal(latent, vanilla)
    stages = [e.reason.split(":")[0] for e in trace.last.evaluations]
    assert stages == ["whole", "whole", "structure", "structure", "whole", "detail"]
    assert all(0.4 < e.active < 0.7 and e.merged.shape[0] == 1 and 0 < e.merged.mean() < 1 for e in merged(trace))
    assert trace.last.cache_bytes > 0 and trace.last.completed and "3 with merged tokens" in trace.last.summary()


def test_blocks_really_compute_fewer_tokens(model):
    """What enters the linear layers inside the MLPs is counted, in a vanilla run and in a merged one."""
    network, family, seen = model.patcher.model.diffusion_model, family_of(model.patcher), []
    sites = [s for block in family.blocks(network) for s in family.sites(block) if MLP in s.parts]
    inside = [
        m
        for s in sites
        for m in s.input_module.modules()
        if m is not s.input_module and hasattr(m, "weight") and m.weight.ndim == 2
    ]
    inside = inside or [s.output_module for s in sites]  # Flux's single blocks: one layer after both
    hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2])) for m in inside]
    try:
        tiny.sample(model, steps=2)
        whole, most = len(seen), max(seen)
        sampled(model, PURE, steps=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == 2 * whole and max(seen[-len(inside) :]) < most


def test_a_second_run_is_the_first_and_the_next_one_is_vanilla(model, once, vanilla):
    trace = Trace()
    patcher = attach_merging(model.patcher, MERGING, trace)
    assert torch.equal(tiny.sample(model, patcher, steps=6), once[0])
    assert torch.equal(tiny.sample(model, patcher, steps=6), once[0]) and len(trace.runs) == 2
    assert torch.equal(tiny.sample(model, steps=6), vanilla)
    assert not any("forward" in m.__dict__ for m in model.patcher.model.diffusion_model.modules())


def test_nothing_leaks_into_another_run_on_the_same_model(model):
    used, change = attach_merging(model.patcher, MERGING, Trace()), {"steps": 4, "seed": 7, "prompt": 5, "batch": 2}
    tiny.sample(model, used, steps=4)
    fresh = attach_merging(model.patcher, MERGING, Trace())
    assert torch.equal(tiny.sample(model, used, **change), tiny.sample(model, fresh, **change))


@pytest.mark.parametrize("change", [{"batch": 2}, {"size": (18, 26)}, {"sampler": "heun"}, {"cfg": 1.0}], ids=str)
def test_batches_odd_grids_and_other_samplers(model, name, change):
    if "size" in change:
        change = {"size": ODD.get(name, change["size"])}
    latent, trace = sampled(model, MERGING, **change)
    assert torch.isfinite(latent).all() and merged(trace)
    assert all(e.merged.shape[0] == change.get("batch", 1) for e in merged(trace))


def test_after_an_error_the_next_run_is_vanilla(model, vanilla):
    def callback(step, *_):
        if step == 3:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sampled(model, MERGING, callback=callback)
    assert torch.equal(tiny.sample(model, steps=6), vanilla)


@pytest.mark.compatibility("Nodes that change the model", "Highlight Diffusion, in either order", on="SDTM")
def test_with_the_highlight_in_either_order(observe, model):
    """One run, told in both traces, and the same latent whichever node comes first."""
    config, merging = HighlightConfig(interval=(2,), warmup=2, threshold=0.9), SDTMConfig(r=0.5, mcw=1, protect_steps=0)
    first, second, latents = Trace(), Trace(), []
    for order in ("highlight first", "merging first"):
        highlight, tokens = Trace(), Trace()
        if order == "highlight first":
            patcher = attach_merging(attach(model.patcher, config, highlight), merging, tokens)
        else:
            patcher = attach(attach_merging(model.patcher, merging, tokens), config, highlight)
        latents.append(tiny.sample(model, patcher, steps=8))
        assert highlight.last is tokens.last and highlight.last.count("skipped") and merged(highlight)
        first, second = second, highlight
    assert torch.equal(*latents)
    observe(first.last)
    assert [(e.kind, e.reason) for e in first.last.evaluations] == [(e.kind, e.reason) for e in second.last.evaluations]


# -- of single models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd35() -> tiny.Tiny:
    return tiny.sd3(dual=True)


def test_a_batch_gives_each_image_what_it_gets_alone(sd35):
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    positive, negative = tiny.cond(sd35, 1), tiny.cond(sd35, 2)

    def run(noise):
        patcher = attach_merging(sd35.patcher, MERGING, Trace())
        return comfy.sample.sample(
            patcher, noise, 6, 4.0, "euler", "normal", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=1
        )

    both = run(noise)
    assert all(torch.allclose(both[i : i + 1], run(noise[i : i + 1]), rtol=1e-3, atol=1e-3) for i in (0, 1))


@pytest.mark.parametrize("config", [PURE, MERGING], ids=["merging alone", "detail remembered"])
def test_skip_layer_guidance_runs_beside_it(sd35, config):
    """Its third pass of the same prompt, in the same evaluation, neither records detail nor is given any."""
    from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3

    def guided(patcher):
        return SkipLayerGuidanceSD3.execute(patcher, layers="1", scale=3.0, start_percent=0.0, end_percent=1.0).args[0]

    patcher = guided(attach_merging(sd35.patcher, config, trace := Trace()))
    latent = tiny.sample(sd35, patcher, steps=6)
    assert torch.isfinite(latent).all() and merged(trace) and len(trace.last.evaluations) == 6
    assert torch.equal(tiny.sample(sd35, patcher, steps=6), latent)
    off = guided(attach_merging(sd35.patcher, SDTMConfig(enabled=False), Trace()))
    assert torch.equal(tiny.sample(sd35, off, steps=6), tiny.sample(sd35, guided(sd35.patcher), steps=6))


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_has_merged_evaluations(sd35, scheduler):
    latent, trace = sampled(sd35, MERGING, scheduler=scheduler)
    assert torch.isfinite(latent).all() and merged(trace) and trace.last.mean_active < 1


def test_nothing_of_a_run_outlives_it(sd35):
    sampled(sd35, MERGING)
    gc.collect()
    assert not any(isinstance(held, MergingRun) for held in gc.get_objects())


def test_a_foreign_block_replacement_rules_it_out_and_the_trace_says_why(sd35):
    patcher = sd35.patcher.clone()
    patcher.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    trace = Trace()
    latent = tiny.sample(sd35, attach_merging(patcher, MERGING, trace), steps=4)
    assert torch.equal(latent, tiny.sample(sd35, steps=4))
    assert {e.reason for e in trace.last.evaluations} == {"not merged: another node patches dit"}


def test_a_foreign_attention_override_sees_fewer_tokens(sd35):
    lengths = []

    def override(function, q, *args, **kwargs):
        lengths.append(q.shape[-2])
        return function(q, *args, **kwargs)

    patcher = sd35.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    latent = tiny.sample(sd35, attach_merging(patcher, MERGING, Trace()), steps=6)
    assert torch.equal(latent, sampled(sd35, MERGING)[0]) and min(lengths) < 64 < max(lengths)


@pytest.mark.parametrize(("unet", "make"), [("SD1.x", tiny.sd15), ("SD2.x", tiny.sd21), ("SDXL", tiny.sdxl)])
@pytest.mark.compatibility("Models", "{unet}", on="SDTM")
def test_a_unet_is_left_dense_with_what_to_use_instead(observe, unet, make):
    model, trace = make(), Trace()
    latent = tiny.sample(model, attach_merging(model.patcher, SDTMConfig(), trace), steps=3)
    assert torch.equal(latent, tiny.sample(model, steps=3)) and "TomePatchModel" in trace.last.limits[0]
    observe(trace.last)


def test_highlight_diffusion_works_on_a_unet_beside_it():
    model, trace = tiny.sd15(), Trace()
    plain = tiny.sample(model, attach(model.patcher, HighlightConfig(), Trace()), steps=9)
    both = attach_merging(attach(model.patcher, HighlightConfig(), trace), SDTMConfig(), trace)
    assert torch.equal(tiny.sample(model, both, steps=9), plain) and trace.last.count("skipped")


@pytest.mark.parametrize("net", [name for name in nets.NETS if nets.on(name) == "transformers"])
@pytest.mark.compatibility("Control nets", "{net}", on="SDTM")
def test_control_nets_run_beside_it(check_merging, net):
    kind = nets.NETS[net]
    model = kind.model()
    image, prompts = nets.picture((16, 24)), (tiny.cond(model, 1), tiny.cond(model, 2))
    positive, negative = nets.applied(kind.make(model), *prompts, image, vae=kind.vae)
    run = check_merging(model, positive=positive, negative=negative)
    assert all(e.control == "computed" for e in run.evaluations)
    assert any(e.merged is not None for e in run.evaluations)


def test_applied_twice_it_is_the_last_one(sd35):
    twice = attach_merging(attach_merging(sd35.patcher, PURE, Trace()), MERGING, trace := Trace())
    assert torch.equal(tiny.sample(sd35, twice, steps=6), sampled(sd35, MERGING)[0]) and len(trace.runs) == 1


def test_every_family_has_been_merged():
    found = {family_of(make().patcher).title for make in tiny.TRANSFORMERS.values()}
    assert found <= {family.title for family in FAMILIES}, "the others are in test_more_families.py"


# -- the node ----------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "enabled": True, "preset": "balanced", "r": -1.0, "delta": -1.0, "switch": -1.0, "mcw": -1.0, "protect_steps": -1,
    "protect_blocks": "", "threshold": 0.0, "window": 2, "a_s": 0.05, "a_d": 0.05, "proportional": True, "a_p": 0.0, "reuse": 4,
    "detail_attention": True, "memory": "device", "start_percent": 0.0, "end_percent": 1.0,
}  # fmt: skip


def test_the_nodes_inputs_are_what_saved_workflows_rely_on():
    """Renaming an input breaks saved workflows: change this list only together with a NodeReplace."""
    info = HighlightSDTM.GET_NODE_INFO_V1()["input"]["required"]
    assert list(info) == ["model", *DEFAULTS]
    assert {k: v[1].get("default", v[0][0]) for k, v in info.items() if k not in ("model", "preset")} == {
        k: v for k, v in DEFAULTS.items() if k != "preset"
    }
    assert {k for k, v in info.items() if len(v) > 1 and v[1].get("advanced")} == set(DEFAULTS) - {"enabled", "preset"}


def test_the_nodes_preset_fills_what_is_left_to_it(sd35):
    out = HighlightSDTM.execute(model=sd35.patcher, **{**DEFAULTS, "r": 0.3})
    latent = tiny.sample(sd35, out.args[0], steps=6)
    from highlight_diffusion.engine.merging.config import PRESETS

    assert torch.equal(latent, sampled(sd35, SDTMConfig(**{**PRESETS["balanced"], "r": 0.3}))[0])
    assert out.args[1].last.evaluations


def test_bad_input_is_a_clear_error(sd35):
    assert HighlightSDTM.validate_inputs(protect_blocks="0,-1") is True
    assert 'protect_blocks is "all"' in HighlightSDTM.validate_inputs(protect_blocks="all")
    with pytest.raises(ValueError, match="start_percent 0.9 is not below"):
        HighlightSDTM.execute(model=sd35.patcher, **{**DEFAULTS, "start_percent": 0.9, "end_percent": 0.1})


def test_the_log_names_the_node_that_was_used(sd35, caplog):
    with caplog.at_level("INFO", "highlight_diffusion"):
        tiny.sample(sd35, attach_merging(sd35.patcher, SDTMConfig(), Trace()), steps=3)
    assert [record.message.split(":")[0] for record in caplog.records] == ["SDTM Token Merging"]
