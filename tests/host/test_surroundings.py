"""Beside other nodes: what they attach survives, and where windows or forecasts are ruled out the trace says why."""

import logging
from dataclasses import replace

import comfy.controlnet
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach

from . import tiny

pytestmark = pytest.mark.beside

CONFIG = HighlightConfig(interval=(4,), warmup=3, threshold=0.9, halo=0, max_area=1.0, correct="always")
SIZE = (24, 32)


@pytest.fixture(scope="module")
def model() -> tiny.Tiny:
    return tiny.sd15()


def sample(model, patcher, config=CONFIG, **kwargs):
    trace = Trace()
    attached = attach(patcher, config, trace)
    return tiny.sample(model, attached, size=SIZE, steps=14, **kwargs), trace.last


def reasons(run, kind="skipped") -> set[str]:
    return {e.reason for e in run.evaluations if e.kind == kind}


class Attn2Replace:
    """In the manner of IPAdapter_plus: owns a slot, ignores transformer_options, and is added to by its kind."""

    calls = 0  # of all copies: ComfyUI 0.8 copies patches with the model

    def add(self, other):
        raise AssertionError("nothing may be added here")

    def __call__(self, q, k, v, extra):
        Attn2Replace.calls += 1
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"]) + 0.3 * torch.tanh(q)


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_foreign_attn2_slot_survives_in_either_order(model, ours_first):
    foreign, before = Attn2Replace(), Attn2Replace.calls

    def patched(patcher):
        clone = patcher.clone()
        for key in (("input", 1), ("input", 3), ("output", 3)):
            clone.set_model_patch_replace(foreign, "attn2", *key)
        return clone

    vanilla = tiny.sample(model, patched(model.patcher), size=SIZE, steps=14)
    calls = foreign.calls
    # everything dense but listened to: a plan whose only saving comes after the last step it is allowed in
    config = HighlightConfig(interval=(4,), warmup=14, correct="always")
    trace = Trace()
    ours = patched(attach(model.patcher, config, trace)) if ours_first else attach(patched(model.patcher), config, trace)
    assert torch.equal(tiny.sample(model, ours, size=SIZE, steps=14), vanilla)
    assert foreign.calls - calls == calls - before > 0
    _, run = sample(model, patched(model.patcher))
    assert any("another node patches patches_replace" in r or "attn2" in r for r in reasons(run))


def test_listening_to_attention_changes_no_bit(model):
    """Windows are never reached (warm-up covers the run up to the last gap), heatmaps are taken all along."""
    vanilla = tiny.sample(model, size=SIZE, steps=14)
    trace = Trace()
    patcher = attach(model.patcher, HighlightConfig(interval=(3,), warmup=11, correct="always"), trace)
    latents = []
    tiny.sample(model, patcher, size=SIZE, steps=14, callback=lambda step, x0, x, total: latents.append(x.clone()))
    reference = []
    tiny.sample(model, size=SIZE, steps=14, callback=lambda step, x0, x, total: reference.append(x.clone()))
    assert all(torch.equal(a, b) for a, b in zip(latents[:11], reference[:11], strict=True))
    assert [e.heatmap is not None for e in trace.last.evaluations[:11]] == [False] + [True] * 10
    assert vanilla is not None


class Residuals(comfy.controlnet.ControlBase):
    """A control net that returns residuals depending on position, so that a wrong crop shows."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.calls += 1
        height, width = x_noisy.shape[-2:]
        fine = torch.linspace(-1, 1, height * width).reshape(1, 1, height, width).expand(len(x_noisy), 32, -1, -1)
        coarse = torch.nn.functional.avg_pool2d(fine, 4).repeat(1, 2, 1, 1)  # the UNet pops from the lists' ends
        return {"input": [fine.clone()], "middle": [coarse.clone()], "output": [fine.clone(), fine.clone()] + [None] * 4}

    def copy(self):
        return self

    def get_models(self):
        return []


def controlled(model, net):
    conditioning = tiny.cond(model, 1)
    conditioning[0][1].update(control=net, control_apply_to_uncond=True)
    return conditioning


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_control_residuals_are_cropped_with_the_window(model, caplog, levels):
    caplog.set_level(logging.WARNING)  # ComfyUI only logs that a residual does not fit
    net = Residuals()
    plain = tiny.sample(model, size=SIZE, steps=14)
    vanilla = tiny.sample(model, size=SIZE, steps=14, positive=controlled(model, net))
    assert not torch.equal(plain, vanilla)
    net.calls = 0
    _, run = sample(model, model.patcher, replace(CONFIG, levels=levels), positive=controlled(model, net))
    assert run.count("partial") and "could not be applied" not in caplog.text
    assert net.calls == run.count("dense") + run.count("partial"), "a skipped evaluation runs no control net"


def test_an_ending_control_net_voids_the_forecast(model):
    net = Residuals()
    net.set_cond_hint(torch.zeros(1, 3, 8, 8), 1.0, (0.0, 0.5))
    _, run = sample(model, model.patcher, positive=controlled(model, net))
    assert "the conditioning changed" in reasons(run, "dense")


def test_a_cond_that_ends_voids_the_forecast(model):
    first, second = tiny.cond(model, 1), tiny.cond(model, 5)
    first[0][1].update(start_percent=0.0, end_percent=0.5)
    second[0][1].update(start_percent=0.5, end_percent=1.0)
    _, run = sample(model, model.patcher, positive=first + second)
    assert "the conditioning changed" in reasons(run, "dense") and run.count("skipped")


def test_area_conditioning_keeps_the_forecast_and_says_why_no_windows(model):
    region = tiny.cond(model, 3)
    region[0][1].update(area=(16, 16, 0, 8), strength=1.0)
    _, run = sample(model, model.patcher, positive=tiny.cond(model, 1) + region)
    assert run.count("partial") == 0 and run.count("skipped")
    assert "forecast only: area conditioning is in use" in reasons(run)


def test_conds_of_other_lengths_run_apart_and_still_share_windows(model):
    runs = (
        sample(model, model.patcher, positive=tiny.cond(model, seed, 77 * 5), negative=tiny.cond(model, 2, 77))[1]
        for seed in range(1, 9)
    )
    assert any(run.count("partial") for run in runs)


def test_perturbed_attention_guidance_is_computed_apart(model):
    patched = PerturbedAttentionGuidance.execute(model.patcher, 3.0).result[0]
    vanilla = tiny.sample(model, patched, size=SIZE, steps=14)
    off, _ = sample(model, patched, HighlightConfig(enabled=False))
    assert torch.equal(off, vanilla)
    latent, run = sample(model, patched)
    assert run.count("skipped") and torch.isfinite(latent).all() and len(run.evaluations) == 14


def test_a_guider_reused_with_the_same_conds_starts_afresh(model):
    trace = Trace()
    patcher = attach(model.patcher, CONFIG, trace)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(tiny.cond(model, 1), tiny.cond(model, 2))
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", 10)
    sampler = comfy.samplers.sampler_object("euler")
    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(3))
    first, second = (guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True) for _ in range(2))
    assert torch.equal(first, second) and len(trace.runs) == 2
    assert [e.kind for e in trace.runs[0].evaluations] == [e.kind for e in trace.runs[1].evaluations]


def test_a_latent_that_not_every_level_divides_has_shallower_windows(model):
    trace = Trace()
    tiny.sample(model, attach(model.patcher, CONFIG, trace), size=(17, 31), steps=14)
    assert trace.last.count("partial") and trace.last.depth == 2  # of the tiny UNet's six blocks: the finest level
