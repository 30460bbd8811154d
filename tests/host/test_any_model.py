"""Every MODEL samples: a tiny real one of every class of ComfyUI's, of known families and of none."""

import random
from itertools import pairwise

import comfy.samplers
import comfy.supported_models
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.report.latent_rgb import pictures, sample
from highlight_diffusion.engine.report.numbers import as_line, as_text, report
from highlight_diffusion.engine.trace import LatentColours, RunRecord, Trace
from highlight_diffusion.host.any_model import ForecastRun
from highlight_diffusion.host.attach import attach, attach_merging, executor_of
from highlight_diffusion.host.families import FAMILIES, family_of
from highlight_diffusion.host.unet import is_unet
from highlight_diffusion.nodes.preview import HighlightMaskPreview

from . import models_page as page
from . import tiny
from .classes import CLASSES, FORECAST_ALONE, MAKERS, NO_SAMPLERS

pytestmark = pytest.mark.beside

STEPS = 20
HIGHLIGHT, MERGING = HighlightConfig(), SDTMConfig()
OFF = (HighlightConfig(enabled=False), SDTMConfig(enabled=False))


def told(latent) -> torch.Tensor:
    """All of a latent, also of one that is several."""
    return torch.cat([part.flatten() for part in latent.unbind()]) if latent.is_nested else latent


def sampled(model: tiny.Tiny, patcher, **kwargs) -> torch.Tensor:
    return told(tiny.sample(model, patcher, **{"steps": STEPS, "cfg": 1.0, **small(model), **kwargs}))


def small(model: tiny.Tiny) -> dict:
    """A small frame and few words, where a model lets them be chosen."""
    kind = type(model.patcher.model).__name__
    words = 77 if kind == "HunyuanDiT" else 20
    size = {"size": (8, 8)} if model.size == tiny.Tiny.size else {}
    size |= {"cfg": 3.0} if kind == "Hunyuan3Dv2_1" else {}  # which cannot do without, up to 0.8 at least
    return {"positive": tiny.cond(model, 1, words), "negative": tiny.cond(model, 2, words), **size}


def both(patcher, trace: Trace, highlight=HIGHLIGHT, merging=MERGING, given: UserMasks | None = None):
    return attach_merging(attach(patcher, highlight, trace, given=given), merging, trace)


def test_every_class_of_comfyui_is_listed():
    """It fails where a newer ComfyUI has a class that was not run."""
    there = {kind.__name__ for kind in comfy.supported_models.models}
    assert there <= {*MAKERS, *NO_SAMPLERS}, "give the new class a tiny model in tests/host/classes.py"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_samples_with_both_nodes(request, name):
    """Off is the vanilla latent, the second run is the first, which was that of a fresh MODEL, and something is skipped; and
    docs/models.md says of the class what was saved on it."""
    model, trace = CLASSES[name](), Trace()
    vanilla = sampled(model, model.patcher, steps=2)
    assert torch.isfinite(vanilla).all() and vanilla.std() > 0
    assert torch.equal(sampled(model, both(model.patcher, Trace(), *OFF), steps=2), vanilla)
    patched = both(model.patcher, trace, HighlightConfig(max_area=1.0), SDTMConfig(r=0.5, protect_steps=4), corner(model))
    latent = tiny.sample(model, patched, **{"steps": STEPS, "cfg": 1.0, **small(model)})
    first, again = told(latent), sampled(model, patched)
    assert len(HighlightMaskPreview.execute(trace, 0, 5, samples={"samples": latent}).args[0]) == STEPS // 5
    run = trace.last
    assert torch.isfinite(first).all() and torch.equal(first, again) and run.completed
    assert run.count("skipped") and all(e.reason for e in run.evaluations), [(e.kind, e.reason) for e in run.evaluations]
    family = family_of(model.patcher)
    plain = family is None and not is_unet(model.patcher)
    assert plain == any(limit.startswith("only time is saved: ") for limit in run.limits)
    title = "image UNets" if is_unet(model.patcher) else family.title if family else ""
    merging = run if page.merges(run) or family is None else merged_alone(model)
    page.check_row(page.saved_on(name, title, run, merging, FORECAST_ALONE), request.config.getoption("--update-models"))
    old = family is None and any(own.is_named(model.patcher.get_model_object("diffusion_model")) for own in FAMILIES)
    assert plain == (name in FORECAST_ALONE and title == "" or old), "its row says why no more is saved"
    assert old == any("is built in another way in this version of ComfyUI" in limit for limit in run.limits)


def test_the_table_has_the_classes_that_were_run_and_no_others():
    listed = {line.split("|")[1].strip() for line in page.rows(page.CLASSES)}
    assert listed == set(MAKERS)


def test_the_share_of_what_is_used_stands_in_the_page(request):
    lines, more = page.use_rows()
    if request.config.getoption("--update-models"):
        page.write(page.USE, lines)
    assert page.rows(page.USE) == lines, f"{page.COMMAND} writes it"
    assert more >= 90 and all("time" in line for line in lines[:-1])


def merged_alone(model: tiny.Tiny) -> RunRecord:
    """Where every whole evaluation of a run is recorded for parts, nothing is merged in it."""
    sampled(model, attach_merging(model.patcher, SDTMConfig(r=0.5, protect_steps=4), trace := Trace()), steps=8)
    return trace.last


def corner(model: tiny.Tiny) -> UserMasks:
    """A corner of the frame is the highlight, since what random weights look at is no place."""
    mask = torch.zeros(1, 16, 16)
    mask[:, :6, :6] = 1
    return UserMasks(mask)


@pytest.fixture(scope="module")
def unknown() -> tiny.Tiny:
    """A class that no family knows."""
    model = tiny.wan()
    network = model.patcher.model.diffusion_model
    network.__class__ = type("NewModel", (type(network),), {})
    return model


def test_a_model_of_an_unknown_class_is_forecast_and_the_trace_names_the_known_ones(unknown):
    trace = Trace()
    sampled(unknown, attach(unknown.patcher, HIGHLIGHT, trace))
    run = trace.last
    assert run.count("skipped") and not run.count("partial")
    words = "only time is saved: the insides of WAN21 (NewModel) are not known; known are the image UNets SD1.x"
    assert run.highlight_reason.startswith(words) and "Krea 2" in run.highlight_reason
    assert run.highlight_reason in as_text(report(run)) and run.highlight_reason in as_line(run)
    assert report(run)["limits"] == list(run.limits) == [run.highlight_reason]


@pytest.mark.parametrize(("steps", "gap"), [(8, 2), (30, 4)])
def test_a_path_on_an_unknown_class_is_careful_and_says_so(unknown, steps, gap):
    sampled(unknown, attach(unknown.patcher, HighlightConfig(speed=4.0), trace := Trace()), steps=steps)
    run = trace.last
    said = f"planned with care: no gap is longer than {gap} steps"
    assert any(limit.startswith(said) for limit in run.limits) and said in as_text(report(run)) and said in as_line(run)
    dense = [e.step for e in run.evaluations if e.kind == "dense"]
    assert run.count("skipped") and max(b - a for a, b in pairwise([*dense, steps])) <= gap


def test_token_merging_alone_is_dense_on_an_unknown_class_and_says_so(unknown, caplog):
    trace = Trace()
    with caplog.at_level("INFO", "highlight_diffusion"):
        latent = sampled(unknown, attach_merging(unknown.patcher, MERGING, trace), steps=4)
    assert torch.equal(latent, sampled(unknown, unknown.patcher, steps=4))
    said = {e.reason for e in trace.last.evaluations}
    assert len(said) == 1 and said.pop().startswith("SDTM Token Merging does nothing: the insides of WAN21 (NewModel)")
    assert "SDTM Token Merging does nothing" in as_text(report(trace.last)) and "does nothing" in caplog.text


@pytest.mark.parametrize("mask", [None, torch.ones(1, 8, 8)], ids=["threshold 0", "a mask of everything"])
def test_a_highlight_of_everything_is_the_dense_result(unknown, mask):
    config = HighlightConfig(threshold=0.0) if mask is None else HIGHLIGHT
    patched = attach(unknown.patcher, config, trace := Trace(), given=UserMasks(mask))
    assert torch.equal(sampled(unknown, patched, steps=8), sampled(unknown, unknown.patcher, steps=8))
    assert "the highlight is the whole frame" in {e.reason for e in trace.last.evaluations}


def test_a_mask_leaves_an_unknown_class_to_the_forecast(unknown):
    """No part of it can be computed, which the trace says where one was wanted."""
    mask = torch.zeros(1, 16, 16)
    mask[:, :6, :6] = 1
    sampled(unknown, attach(unknown.patcher, HIGHLIGHT, trace := Trace(), given=UserMasks(mask)))
    run = trace.last
    assert run.count("skipped") and not run.count("partial")
    assert any(e.reason.startswith("forecast only: the insides of WAN21") for e in run.evaluations)


def test_after_an_error_the_next_run_of_an_unknown_class_is_vanilla(unknown):
    def callback(step, *_):
        if step == 4:
            raise RuntimeError

    vanilla, trace = sampled(unknown, unknown.patcher, steps=6), Trace()
    with pytest.raises(RuntimeError):
        sampled(unknown, both(unknown.patcher, trace), steps=6, callback=callback)
    assert not trace.last.completed and torch.equal(sampled(unknown, unknown.patcher, steps=6), vanilla)


@pytest.mark.parametrize("case", range(8))
def test_classes_drawn_at_random_under_settings_drawn_at_random(case):
    draw = random.Random(case)
    model = CLASSES[draw.choice(list(CLASSES))]()
    config = HighlightConfig(pace=draw.choice([1.5, 3.0, 6.0]), correct=draw.choice(["auto", "always"]))
    merging = SDTMConfig(r=draw.choice([0.2, 0.6]), protect_steps=draw.choice([2, 4]))
    settings = {
        "steps": draw.choice([1, 3, 9]), "sampler": draw.choice(["euler", "dpmpp_2m", "heun", "lcm", "res_multistep"]),
        "scheduler": draw.choice(["simple", "normal", "karras"]), "cfg": draw.choice([1.0, 3.0]),
    }  # fmt: skip
    patched = both(model.patcher, trace := Trace(), config, merging)
    first = sampled(model, patched, **settings)
    assert torch.isfinite(first).all() and torch.equal(first, sampled(model, patched, **settings))
    assert all(e.reason for e in trace.last.evaluations)


def test_a_sampler_that_keeps_earlier_frames_computes_everything():
    """Its model renews keys and values at each call, which a forecast would leave as they were."""
    if "WAN21_CausalAR_T2V" not in CLASSES:
        return  # a newer ComfyUI's
    model = CLASSES["WAN21_CausalAR_T2V"]()
    patched = both(model.patcher, trace := Trace())
    settings = {"sampler": comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 3}), "steps": 6}
    latents = [custom(model, patcher, **settings) for patcher in (model.patcher, patched)]
    assert torch.equal(*latents) and not trace.last.count("skipped")
    assert any("keeps keys and values of earlier frames" in e.reason for e in trace.last.evaluations)


def custom(model: tiny.Tiny, patcher, sampler, steps: int) -> torch.Tensor:
    latent = model.latent()
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    positive, negative = tiny.cond(model, 1), tiny.cond(model, 2)
    return comfy.sample.sample_custom(
        patcher, noise, 1.0, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=3
    )  # fmt: skip


@pytest.mark.parametrize(("steps", "saves"), [(20, True), (4, False)])
def test_two_experts_of_a_video_model_in_two_samplers(steps, saves):
    """Wan 2.2: one model for high noise and one for low, half of the schedule each. Two steps are too few to save any."""
    experts, half = [tiny.wan(), tiny.wan(num_layers=2)], steps // 2
    shares = [{"start_step": 0, "last_step": half, "force_full_denoise": False}, {"start_step": half, "last_step": steps}]

    def sampled_by(patchers) -> torch.Tensor:
        latent = torch.zeros(1, 16, 3, 8, 8)
        for (number, expert), patcher, share in zip(enumerate(experts), patchers, shares, strict=True):
            noise = torch.zeros_like(latent) if number else comfy.sample.prepare_noise(latent, 1)
            positive, negative = tiny.cond(expert, 1, 20), tiny.cond(expert, 2, 20)
            latent = comfy.sample.sample(
                patcher, noise, steps, 1.0, "euler", "simple", positive, negative, latent, disable_noise=bool(number),
                disable_pbar=True, seed=1, **share,
            )  # fmt: skip
        return latent

    traces = Trace(), Trace()
    patchers = [attach(expert.patcher, HIGHLIGHT, trace) for expert, trace in zip(experts, traces, strict=True)]
    first = sampled_by(patchers)
    assert torch.isfinite(first).all() and torch.equal(first, sampled_by(patchers))
    assert all((trace.last.count("skipped") > 0) == saves and len(trace.last.evaluations) == half for trace in traces)
    assert torch.equal(first, sampled_by([expert.patcher for expert in experts])) != saves


@pytest.mark.parametrize("shape", [(1, 8, 24), (2, 64, 5), (1, 1, 4000), (1, 8, 16, 24), (1, 16, 3, 8, 8)], ids=str)
def test_latents_of_every_shape_have_rough_pictures(shape):
    shown = pictures(sample(torch.randn(shape)), LatentColours())
    assert shown.dtype == torch.uint8 and shown.shape[-1] == 3 and shown.ndim == 5 and len(shown) == shape[0]


def test_a_network_that_is_no_sampler_runs_as_it_is():
    """ComfyUI's nodes for it call the network of the MODEL, which is that of the one before."""
    model = tiny.sd15()
    model.patcher.model.diffusion_model = torch.nn.Linear(4, 4)
    patched = both(model.patcher, Trace())
    network = patched.get_model_object("diffusion_model")
    assert network is model.patcher.model.diffusion_model and type(network) is torch.nn.Linear
    assert not isinstance(executor_of(patched), type) and executor_of(patched).func is ForecastRun
