"""Samplers that change the latent within a run: its size, number of pictures or frames, dtype."""

import itertools

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.nodes.preview import HighlightMaskPreview

from . import tiny
from .sampling import sampled_by

pytestmark = pytest.mark.beside
PACED = HighlightConfig(threshold=0.9, max_area=1.0, correct="always", interval=(3,), warmup=3)
MERGED = SDTMConfig(r=0.5, protect_steps=3)
SETUPS = {
    "UNet": (tiny.sd15, PACED, None), "transformer": (tiny.flux, PACED, None), "merging": (tiny.flux, None, MERGED),
    "both": (tiny.flux, PACED, MERGED), "pure merging": (tiny.sd3, None, SDTMConfig(r=0.5, mcw=1, protect_steps=0)),
    "video": (tiny.wan, PACED, MERGED),
}  # fmt: skip


@pytest.fixture(scope="module", params=SETUPS)
def setup(request):
    make, highlight, merging = SETUPS[request.param]
    return make(), highlight, merging


def prepared(setup, trace: Trace):
    model, highlight, merging = setup
    patcher = attach(model.patcher, highlight, trace) if highlight else model.patcher
    return attach_merging(patcher, merging, trace) if merging else patcher


def euler_but(change):
    """Euler's method with `change(i, x)` of the latent after step i, as a SAMPLER."""

    def sample_changing(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, sigma in enumerate(sigmas[:-1]):
            denoised = model(x, sigma * x.new_ones([len(x)]), **(extra_args or {}))
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = change(i, denoised + (x - denoised) * (sigmas[i + 1] / sigma))
        return x

    return comfy.samplers.KSAMPLER(sample_changing)


def check(setup, sampler, steps: int, batch: int = 1) -> tuple[torch.Tensor, RunRecord]:
    """Twice on one MODEL and once on a fresh one, all the same; the latent and its run, every evaluation with its reason."""
    model, *_ = setup
    patcher = prepared(setup, trace := Trace())
    first, again = (sampled_by(model, patcher, sampler, steps, batch) for _ in range(2))
    fresh = sampled_by(model, prepared(setup, Trace()), sampler, steps, batch)
    assert torch.isfinite(first).all() and torch.equal(first, again) and torch.equal(first, fresh)
    assert len(trace.last.evaluations) == steps and all(e.reason for e in trace.last.evaluations)
    shown = HighlightMaskPreview.execute(trace, 0, 1, samples={"samples": first.float()})
    assert len(shown.args[0]) == steps
    return first, trace.last


@pytest.mark.parametrize(("steps", "ratio"), [(4, 1.5), (8, 2.0), (20, 0.6)])
def test_lcm_upscale_samples_at_every_size(setup, steps, ratio):
    """Computing everything, since no two evaluations that could help each other have one size before the second half."""
    sampler = SamplerLCMUpscale.execute(ratio, -1, "bislerp").args[0]
    latent, run = check(setup, sampler, steps)
    assert latent.shape[-2:] == (round(16 * ratio), round(24 * ratio))
    assert all("the frame is" in e.reason for e in run.evaluations[1:])
    assert torch.equal(latent, sampled_by(setup[0], setup[0].patcher, sampler, steps))


CHANGES = {
    "size": (lambda x: torch.nn.functional.pad(x, (0, 4) if x.ndim == 4 else (0, 4, 0, 0)), "the frame is (16, 28)"),
    "fewer pictures": (lambda x: x[:1], "1 of 2 pictures"),
    "more pictures": (lambda x: torch.cat([x, x]), "4 of 2 pictures"),
    "fewer frames": (lambda x: x[:, :, :2] if x.ndim == 5 else x, "the latent is (2, 16, 2, 16, 24), not (2, 16, 3, 16, 24)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_latent_in_the_middle_is_computed_as_it_is_and_the_trace_says_so(setup, change):
    """For two evaluations; then the latent is as before, and what was kept of it is no longer used."""
    changed, reason = CHANGES[change]
    model, *_ = setup
    if change == "fewer frames" and model.frames is None:
        changed, reason = CHANGES["fewer pictures"]
    held = {}

    def at(i: int, x: torch.Tensor) -> torch.Tensor:
        if i == 4:
            held["x"] = x
            return changed(x)
        return held["x"] if i == 6 else x

    _, run = check(setup, euler_but(at), 14, batch=2)
    said = [(e.kind, e.reason) for e in run.evaluations]
    assert all(kind == "dense" and reason in text for kind, text in said[5:7]), said
    assert all(reason not in text for _, text in said[:5] + said[7:]), said
    assert all(e.merged is None for e in run.evaluations[5:8]), said
    assert said[7][0] == "dense"
    assert any(e.kind != "dense" or e.merged is not None for e in run.evaluations[8:]), said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [tiny.sd15, tiny.flux])
def test_bug_a_latent_in_half_precision_took_evaluations_for_the_step_before(make, dtype):
    """Their sigmas are rounded to its precision, and half of them upwards."""
    model, trace = make(), Trace()

    def sample_in_half(asked, x, sigmas, extra_args=None, callback=None, disable=None):
        x = x.to(dtype)
        for sigma, following in itertools.pairwise(sigmas):
            denoised = asked(x, sigma * x.new_ones([len(x)]), **(extra_args or {}))
            x = denoised + (x - denoised) * (following / sigma)
        return x

    patcher = attach(model.patcher, PACED, trace)
    assert torch.isfinite(sampled_by(model, patcher, comfy.samplers.KSAMPLER(sample_in_half), 14)).all()
    assert [e.step for e in trace.last.evaluations] == list(range(14))
    assert [e.sigma for e in trace.last.evaluations] == list(trace.last.sigmas[:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_another_dtype_in_the_middle_begins_anew(setup, dtype):
    _, run = check(setup, euler_but(lambda i, x: x.to(dtype) if i == 4 else x), 14)
    said = [(e.kind, e.reason) for e in run.evaluations]
    assert said[5][0] == "dense" and run.evaluations[5].merged is None, said
    assert f"the latent went from float32 on cpu to {str(dtype).removeprefix('torch.')} on cpu" in said[5][1], said
    assert any(e.kind != "dense" or e.merged is not None for e in run.evaluations[6:]), said
