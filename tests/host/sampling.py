"""A row of the compatibility table: the same result on a MODEL used before and on a fresh one, and what the trace says."""

from __future__ import annotations

import threading

import comfy.hooks
import comfy.sample
import comfy.samplers
import torch
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging

from . import tiny

SIZE = (16, 24)
CONFIG = HighlightConfig(threshold=0.9, max_area=1.0, pace=PACES["balanced"], correct="always")

MERGING = SDTMConfig(r=0.5, protect_steps=3)


def run_thrice(
    model: tiny.Tiny, patched=None, sampled=tiny.sample, saves: bool = True, config=CONFIG, given: UserMasks | None = None,
    again: bool = True, **kwargs,
) -> RunRecord:  # fmt: skip
    """Run twice on one MODEL and once on a fresh one, or just once; returns the last trace of the first."""
    kwargs = {"size": SIZE, "steps": 16, **kwargs}
    patched = model.patcher if patched is None else patched
    trace = Trace()
    used, fresh = (attach(patched, config, t, given=given) for t in (trace, Trace()))
    first, *others = (sampled(model, patcher, **kwargs) for patcher in ((used, used, fresh) if again else (used,)))
    run = trace.last
    assert torch.isfinite(first).all() and all(torch.equal(first, other) for other in others)
    assert run.evaluations and all(e.reason for e in run.evaluations)
    assert (run.count("skipped") + run.count("partial") > 0) == saves, [(e.kind, e.reason) for e in run.evaluations]
    return run


def merge_thrice(model: tiny.Tiny, patched=None, **kwargs) -> RunRecord:
    """The same with SDTM Token Merging alone."""
    kwargs = {"size": SIZE, "steps": 8, **kwargs}
    patched, trace = model.patcher if patched is None else patched, Trace()
    used, fresh = (attach_merging(patched, MERGING, t) for t in (trace, Trace()))
    first, again, other = (tiny.sample(model, patcher, **kwargs) for patcher in (used, used, fresh))
    assert torch.isfinite(first).all() and torch.equal(first, again) and torch.equal(first, other)
    return trace.last


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


def _weight(model) -> tuple[str, torch.Tensor]:
    """Name and values of a weight of an attention, to be changed by a LoRA."""
    ends = ("attn1.to_q.weight", "x_block.attn.qkv.weight", "img_attn.qkv.weight", ".attn.to_q.weight")
    return next(
        (f"diffusion_model.{n}", p) for n, p in model.patcher.model.diffusion_model.named_parameters() if n.endswith(ends)
    )


def hooked(model):
    name, weight = _weight(model)
    generator, key = torch.Generator().manual_seed(0), name.removesuffix(".weight")
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, weight.shape[1]), (weight.shape[0], 2)))
    hooks = comfy.hooks.create_hook_lora({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": 0.1 * up}, 1.0, 0.0)
    conditioning = tiny.cond(model, 1)
    conditioning[0][1]["hooks"] = hooks
    return conditioning


def two_prompts(model):
    (first, extra), (second, _) = tiny.cond(model, 1)[0], tiny.cond(model, 8)[0]
    return [[torch.cat([first, second]), {name: torch.cat([value, value]) for name, value in extra.items()}]]


def with_lora(model):
    clone, (name, weight) = model.patcher.clone(), _weight(model)
    clone.add_patches({name: ("diff", (torch.full_like(weight, 0.05),))}, 1.0)
    return clone


POSITIVES = {
    "several prompts": lambda model: tiny.cond(model, 1) + tiny.cond(model, 6),
    "prompts of different lengths": lambda model: tiny.cond(model, 1, 77) + tiny.cond(model, 6, 231),
    "regional prompts by area": with_area, "regional prompts by mask": with_mask, "timestep ranges": ranged,
    "hooks (LoRA on a prompt)": hooked,
}  # fmt: skip


def on_two_devices(model: tiny.Tiny, twin: tiny.Tiny):
    """A MODEL as MultiGPU work units make it, with the same weights on a second device, and the threads in which those are
    called."""
    patched, other, threads = model.patcher.clone(), twin.patcher, set()
    other.load_device, other.is_multigpu_base_clone = torch.device("cpu", 0), True
    other.model.diffusion_model.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    patched.set_additional_models("multigpu", [other])
    return patched, threads


def guided(make):
    """Sample with a guider that a node makes of the patcher and the model."""

    def sampled(model, patcher, size, steps):
        guider = make(model, patcher)
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps)
        noise = torch.randn(1, model.channels, *size, generator=torch.Generator().manual_seed(3))
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    return sampled


def sampled_by(model: tiny.Tiny, patcher, sampler, steps: int, batch: int = 1) -> torch.Tensor:
    """A latent of a SAMPLER, at `SIZE`."""
    latent = torch.zeros(batch, model.channels, *([] if model.frames is None else [model.frames]), *SIZE)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps)
    torch.manual_seed(0)  # of the noise that SamplerLCMUpscale adds
    return comfy.sample.sample_custom(
        patcher, noise, 4.0, sampler, sigmas, tiny.cond(model, 1), tiny.cond(model, 2), latent, disable_pbar=True, seed=3
    )


def reasons(run: RunRecord) -> set[str]:
    return {evaluation.reason for evaluation in run.evaluations}
