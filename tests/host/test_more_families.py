"""The laws on the families whose models are in classes.py: parts are exact, merged tokens are fewer, nothing leaks."""

import importlib
import inspect
from dataclasses import replace

import pytest
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.merging.sites import ATTENTION, MLP
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.families import FAMILIES, family_of

from . import tiny
from .classes import CLASSES
from .test_families import PARTIAL, ROUNDING, errors_of_a_subset, given_mask

MERGED_ALONE = ("LTXAV",)  # no part of which can be computed by itself
NAMES = (
    "Krea2", "LTXV", *MERGED_ALONE, "Anima", "CosmosT2IPredict2", "CosmosI2VPredict2", "Boogu", "Ideogram4", "ErnieImage",
    "WAN21_I2V", "WAN22_T2V", "WAN21_Vace", "WAN21_Camera", "WAN21_HuMo", "WAN21_SCAIL", "WAN21_SCAIL2", "HunyuanVideo15",
    "HunyuanImage21", "Kandinsky5", "Kandinsky5Image", "Omnigen2", "ChromaRadiance", "ZImagePixelSpace", "LongCatImage", "Lens",
    "JoyImage", "MageFlow", "GenmoMochi",
)  # fmt: skip
OLD = "flipped_img_txt" in inspect.signature(DoubleStreamBlock).parameters  # HunyuanVideo's, which no part is computed of
MODELS = {name: CLASSES[name] for name in NAMES if name in CLASSES and not (OLD and name.startswith("Hunyuan"))}
MERGING = SDTMConfig(r=0.5, protect_steps=3, switch=0.6)  # 6 steps: whole, whole, structure, structure, whole, detail


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> tiny.Tiny:
    return MODELS[name]()


def sampled(model: tiny.Tiny, patcher, **kwargs) -> torch.Tensor:
    latent = tiny.sample(model, patcher, **{"cfg": 1.0, **kwargs})
    return torch.cat([part.flatten() for part in latent.unbind()]) if latent.is_nested else latent


def test_every_family_has_been_run():
    makers = [*tiny.TRANSFORMERS.values(), *MODELS.values()]
    families = [family_of(make().patcher) for make in makers]
    there = {family.title for family in FAMILIES if any(is_there(path) for path in family.network)}
    run = {family.title for family in families if family}
    assert run == there - ({"HunyuanVideo"} if OLD else set()), (
        "name a class of each family in NAMES, and its maker in classes.py"
    )


def is_there(path: str) -> bool:
    """Whether this ComfyUI has a network."""
    module, _, name = path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def test_a_subset_equals_dense_where_it_was_recorded(model, name):
    if name in MERGED_ALONE:
        return  # the next test but one says what is done instead
    exact, wiped = errors_of_a_subset(model, 1)
    assert len(exact) >= 3 and max(exact) <= ROUNDING
    assert max(wiped) > 1e-4 and min(wiped) > 0


def test_the_second_run_with_parts_is_the_first(model, name):
    trace = Trace()
    patched = attach(model.patcher, PARTIAL, trace, given=given_mask(model))
    first = sampled(model, patched, steps=9)
    run = trace.last
    assert torch.isfinite(first).all() and run.count("skipped") and any(e.heatmap is not None for e in run.evaluations)
    assert bool(run.count("partial")) != (name in MERGED_ALONE), [(e.kind, e.reason) for e in run.evaluations]
    assert torch.equal(sampled(model, patched, steps=9), first)


@pytest.mark.parametrize("name", MERGED_ALONE)
def test_why_no_part_is_computed_stands_in_the_trace(name):
    if name not in MODELS:
        return  # a newer ComfyUI's
    model, trace = MODELS[name](), Trace()
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1
    from highlight_diffusion.engine.region.regions import UserMasks

    sampled(model, attach(model.patcher, PARTIAL, trace, given=UserMasks(mask)), steps=9)
    assert "forecast only: the sound looks at the whole video in every block" in {e.reason for e in trace.last.evaluations}


def merged(model: tiny.Tiny, config=MERGING, steps: int = 6) -> tuple[torch.Tensor, RunRecord]:
    trace = Trace()
    return sampled(model, attach_merging(model.patcher, config, trace), steps=steps), trace.last


def test_tokens_are_merged_and_nothing_stays_patched(model):
    vanilla = sampled(model, model.patcher, steps=6)
    latent, run = merged(model)
    assert torch.isfinite(latent).all() and not torch.equal(latent, vanilla)
    stages = [e.reason.split(":")[0] for e in run.evaluations]
    assert stages == ["whole", "whole", "structure", "structure", "whole", "detail"]
    assert all(0.4 < e.active < 0.7 for e in run.evaluations if e.merged is not None)
    assert torch.equal(merged(model)[0], latent)
    assert not any("forward" in module.__dict__ for module in model.patcher.model.diffusion_model.modules())


def test_blocks_really_compute_fewer_tokens(model):
    """What enters the layers within attention, or that after it, is counted, and so for the MLP."""
    network, family = model.patcher.model.diffusion_model, family_of(model.patcher)
    sites = [site for block in family.blocks(network) for site in family.sites(block)]
    assert len({site.input_module for site in sites}) == len(sites)
    seen: dict[str, list[int]] = {ATTENTION: [], MLP: []}

    def count(part: str):
        return lambda _, args: seen[part].append(args[0].shape[1:-1].numel())

    inside = [(part, m) for site in sites for part in site.parts for m in _within(site)]
    hooks = [module.register_forward_pre_hook(count(part)) for part, module in inside]
    try:
        merged(model, SDTMConfig(r=0.5, mcw=1, protect_steps=0), steps=2)
    finally:
        for hook in hooks:
            hook.remove()
    for counts in seen.values():  # of two evaluations, the first without merging
        half = len(counts) // 2
        assert half and sum(counts[half:]) < sum(counts[:half])


def _within(site) -> list[torch.nn.Module]:
    layers = [m for m in site.input_module.modules() if m is not site.input_module and getattr(m, "weight", None) is not None]
    return [m for m in layers if m.weight.ndim == 2] or [site.output_module]


def filled_up(g: torch.Generator, tokens: int) -> dict:
    """Text of which the last tokens are filling."""
    mask = torch.ones(1, tokens, dtype=torch.long)
    mask[:, -9:] = 0
    return {"attention_mask": mask}


@pytest.mark.parametrize("name", ("Ideogram4", "Lens", "MageFlow"))
def test_parts_and_merged_tokens_beside_text_that_is_filled_up(name):
    if name not in MODELS:
        return  # a newer ComfyUI's
    model = replace(MODELS[name](), extra=filled_up)
    exact, wiped = errors_of_a_subset(model, 1)
    assert max(exact) <= ROUNDING and min(wiped) > 1e-4
    latent, run = merged(model)
    assert torch.isfinite(latent).all() and any(e.merged is not None for e in run.evaluations)


@pytest.mark.parametrize("name", ("LTXV", "LTXAV"))
def test_guiding_frames_leave_it_to_the_forecast(name):
    """They may leave tokens out, so that what is left of the sequence is not known."""
    if name not in MODELS:
        return  # a newer ComfyUI's
    model = MODELS[name]()
    width = model.latent().unbind()[0].shape[-1] if model.shapes else model.size[1]
    made = model.extra or (lambda g, tokens: {})
    guided = replace(model, extra=lambda g, tokens: made(g, tokens) | {"keyframe_idxs": torch.zeros(1, 3, width * width, 2)})
    mask = torch.ones(1, 1, 2, width, width)
    mask[:, :, 1] = 0
    patched = attach_merging(attach(model.patcher, PARTIAL, trace := Trace()), MERGING, trace)
    latent = sampled(guided, patched, steps=9, noise_mask=mask)
    assert torch.isfinite(latent).all() and trace.last.count("skipped")
    assert not trace.last.count("partial") and not any(e.merged is not None for e in trace.last.evaluations)
    assert any("does not add up to what is known of this model: no order of tokens" in e.reason for e in trace.last.evaluations)


@pytest.mark.parametrize("name", ("LTXV",))
def test_tokens_that_have_timesteps_of_their_own(name):
    """Beside a start image: its tokens have timestep 0, the others that of the step. Parts are exact, and tokens merged."""
    if name not in MODELS:
        return  # a newer ComfyUI's
    model = MODELS[name]()
    mask = torch.ones(1, 1, 2, *model.size)
    mask[:, :, 0] = 0
    exact, wiped = errors_of_a_subset(model, 1, noise_mask=mask)
    assert max(exact) <= ROUNDING and min(wiped) > 1e-4
    patched = attach_merging(attach(model.patcher, HighlightConfig(), trace := Trace()), MERGING, trace)
    first = sampled(model, patched, steps=9, noise_mask=mask)
    assert torch.isfinite(first).all() and torch.equal(first, sampled(model, patched, steps=9, noise_mask=mask))
    assert trace.last.count("skipped") and any(e.merged is not None for e in trace.last.evaluations)
