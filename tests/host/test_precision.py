"""Half precision, as every user samples: the laws, and errors no larger than in single precision."""

from functools import cache

import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging

from . import tiny

PARTS = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
SHALLOW = HighlightConfig(shallow="always", correct="never", pace=8.0)
UNETS = {"sd15": tiny.sd15, "sd21": tiny.sd21, "sdxl": tiny.sdxl}
MODELS = {**UNETS, **tiny.TRANSFORMERS}
# fp16 is slow on a CPU, so that not every family has it here.
CASES = [(name, "bf16") for name in MODELS] + [
    ("sd15", "fp16"), ("sd3", "fp16"), ("wan", "fp16"), ("sd15", "fp8 cast to bf16"), ("sdxl", "fp8 cast to bf16"),
    ("flux", "fp8 cast to bf16"), ("qwen_image", "fp8 cast to bf16"), ("sd15", "bf16 cast to fp32"),
    ("sd3", "bf16 cast to fp32"),
]  # fmt: skip
# The weights themselves are others in fp8, and with them what their sampling comes to.
SLACK = {"fp8 cast to bf16": 1.3}


@cache
def model(name: str, precision: str) -> tiny.Tiny:
    return tiny.built_in(precision, MODELS[name])


@cache
def sampled(name: str, precision: str, config: HighlightConfig | SDTMConfig | None) -> tuple[torch.Tensor, RunRecord | None]:
    """A latent, and the trace of its run."""
    subject, trace = model(name, precision), Trace()
    height, width = subject.size
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, : width // 2] = 1
    patcher = subject.patcher
    if isinstance(config, SDTMConfig):
        patcher = attach_merging(patcher, config, trace)
    elif config is not None:
        patcher = attach(patcher, config, trace, given=UserMasks(mask) if config is PARTS else None)
    return tiny.sample(subject, patcher, steps=8), trace.last


def error(name: str, precision: str, config) -> float:
    """How far a run is off the dense one, as a share of it."""
    dense = sampled(name, precision, None)[0]
    return float((sampled(name, precision, config)[0] - dense).norm() / dense.norm())


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_off_is_off_and_a_second_run_is_the_first(name, precision):
    subject = model(name, precision)
    assert subject.patcher.model.diffusion_model.dtype == tiny.PRECISION[precision][0]
    dense, (latent, _) = sampled(name, precision, None)[0], sampled(name, precision, PARTS)
    assert torch.equal(sampled(name, precision, HighlightConfig(enabled=False))[0], dense) and dense.dtype == latent.dtype
    again = sampled.__wrapped__(name, precision, PARTS)[0]
    assert torch.equal(again, latent) and torch.isfinite(latent).all() and not torch.equal(latent, dense)


def on(row: str) -> str:
    """The column of the compatibility table for a row of a model and a precision."""
    return "UNets" if row.split(",")[0] in UNETS else "transformers"


@pytest.mark.parametrize(("name", "precision"), CASES)
@pytest.mark.compatibility("Precision", "{name}, {precision}", on=on)
def test_errors_are_those_of_single_precision_and_recordings_take_half(observe, name, precision):
    run, single = (sampled(name, which, PARTS)[1] for which in (precision, "fp32"))
    observe(run)
    assert [e.kind for e in run.evaluations] == [e.kind for e in single.evaluations] and run.count("partial")
    assert error(name, precision, PARTS) < SLACK.get(precision, 1.1) * error(name, "fp32", PARTS) + 0.01
    stored, computed = tiny.PRECISION[precision]
    share = torch.finfo(computed or stored).bits / 32
    assert run.cache_bytes <= (share + 0.02) * single.cache_bytes, "kept in the precision it is computed in"


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8 cast to bf16"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_shallow_evaluations(name, precision):
    if (name, precision) == ("sdxl", "fp16"):
        return  # minutes on a CPU
    latent, run = sampled(name, precision, SHALLOW)
    assert torch.isfinite(latent).all() and run.count("shallow")
    assert error(name, precision, SHALLOW) < 1.2 * error(name, "fp32", SHALLOW) + 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp8 cast to bf16"])
@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image", "hidream", "wan"])
def test_merged_tokens(name, precision):
    config = SDTMConfig(r=0.5, protect_steps=3)
    latent, run = sampled(name, precision, config)
    assert torch.isfinite(latent).all() and any(e.merged is not None for e in run.evaluations)
    assert error(name, precision, config) < 1.2 * error(name, "fp32", config) + 0.02


@pytest.mark.parametrize("memory", ["8 bit", "offload"])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_recordings_of_halves_in_other_memory(name, memory):
    """Offloaded they are the same bits; of 8 bits they are near."""
    subject, traces, latents = model(name, "bf16"), [], []
    for where in ("device", memory):
        traces.append(Trace())
        config = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always", memory=where)
        mask = torch.zeros(1, *subject.size)
        mask[:, 4:8, :8] = 1
        latents.append(tiny.sample(subject, attach(subject.patcher, config, traces[-1], given=UserMasks(mask)), steps=8))
    assert traces[-1].last.count("partial") and torch.isfinite(latents[1]).all()
    assert torch.equal(*latents) if memory == "offload" else not torch.equal(*latents)
    assert float((latents[1] - latents[0]).norm() / latents[0].norm()) < 0.02
    assert memory == "offload" or traces[1].last.cache_bytes < 0.7 * traces[0].last.cache_bytes
