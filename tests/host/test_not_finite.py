"""A NaN or an infinity in one evaluation: it is named, nothing of it is kept or saved after it, the next run is clean."""

import json
from contextlib import contextmanager
from dataclasses import replace

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.run import JOB, KEY
from highlight_diffusion.nodes.preview import HighlightMaskPreview
from highlight_diffusion.nodes.report import HighlightReport

from . import tiny

pytestmark = pytest.mark.beside
STEPS = 12
SIZE = (16, 16)
PARTIAL = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
ADAPTIVE = replace(PARTIAL, interval="adaptive", pace=1000.0)
PACED = HighlightConfig(correct="never", shallow="never")
SHALLOW = HighlightConfig(shallow="always", correct="never", pace=8.0)
OFF = HighlightConfig(enabled=False)
MERGED = SDTMConfig(r=0.5, protect_steps=3)
SETUPS = {
    "UNet, partial": (tiny.sd15, PARTIAL, None), "UNet, adaptive": (tiny.sd15, ADAPTIVE, None),
    "UNet, paced": (tiny.sdxl, PACED, None), "UNet, shallow": (tiny.sd15, SHALLOW, None),
    "transformer, partial": (tiny.sd3, PARTIAL, None), "transformer, adaptive": (tiny.flux, ADAPTIVE, None),
    "merging": (tiny.flux, OFF, MERGED), "merging and partial": (tiny.sd3, PARTIAL, MERGED),
    "video": (tiny.wan, PACED, MERGED),
}  # fmt: skip


@pytest.fixture(scope="module", params=SETUPS)
def setup(request):
    make, config, merging = SETUPS[request.param]
    return make(), config, merging


def prepared(setup, trace: Trace):
    model, config, merging = setup
    mask = torch.zeros(1, *SIZE)
    mask[:, 4:8, :8] = 1
    given = UserMasks(mask) if config in (PARTIAL, ADAPTIVE) else None
    patcher = attach(model.patcher, config, trace, given=given)
    return attach_merging(patcher, merging, trace) if merging else patcher


@contextmanager
def spoilt(model: tiny.Tiny, index: int, value: float, rows=slice(None)):
    """The network's own output is not finite in evaluation `index`; yields (evaluation, whether in part) of its calls."""
    called: list[tuple[int, bool]] = []

    def spoil(network, args, kwargs, output):
        options = kwargs["transformer_options"]
        evaluation, job = options[KEY].record.evaluations[-1], options.get(JOB)
        called.append((evaluation.index, job is not None and bool(job.compute)))
        if evaluation.index == index:
            output = output.clone()
            output[rows, ..., 2] = value
            return output

    hook = model.patcher.model.diffusion_model.register_forward_hook(spoil, with_kwargs=True)
    try:
        yield called
    finally:
        hook.remove()


def refuse(name: str):
    raise AssertionError(f"{name} is no JSON")


def check_what_is_said(run: RunRecord, trace: Trace, first: int, what: str, caplog) -> None:
    said = [(e.index, e.kind, e.reason) for e in run.evaluations]
    named = f"evaluation {first + 1} of {len(run.evaluations)} is the first that was not finite"
    assert run.not_finite == first and run.evaluations[first].reason.endswith(f"; {what} is not finite"), said
    assert not any("is not finite" in reason for index, _, reason in said if index != first), said
    assert all(kind == "dense" and f"evaluation {first + 1} was not finite" in reason for _, kind, reason in said[first + 1 :])
    assert all(e.merged is None and e.heatmap is None and e.active == 1 for e in run.evaluations[first + 1 :]), said
    assert run.evaluations[first].heatmap is None and run.evaluations[first].forecast_error is None
    assert named in caplog.text
    text, full, _ = HighlightReport.execute(trace, None).args
    told = json.loads(full, parse_constant=refuse)
    assert named in text and named in told["report"]["not_finite"] and told["not_finite"] == first
    shown = HighlightMaskPreview.execute(trace, 0, 1, samples={"samples": torch.zeros(run.shape)})
    json.dumps(shown.ui["highlight_runs"], allow_nan=False)
    assert named in shown.ui["text"][0]


def test_wherever_the_prediction_is_not_finite_it_is_named_and_the_rest_is_dense(setup, caplog):
    """Every evaluation in turn; those that were skipped do not ask the model."""
    model, *_ = setup
    caplog.set_level("INFO", "highlight_diffusion")
    trace = Trace()
    clean = tiny.sample(model, prepared(setup, trace), size=SIZE, steps=STEPS)
    kinds = [(e.kind, e.merged is not None) for e in trace.last.evaluations]
    assert trace.last.not_finite is None and "not finite" not in HighlightReport.execute(trace, None).args[0]
    assert len(set(kinds)) > 1 and torch.isfinite(clean).all(), kinds
    for index, (kind, _) in enumerate(kinds):
        if kind == "skipped":
            continue
        caplog.clear()
        patcher = prepared(setup, trace := Trace())
        with spoilt(model, index, [torch.nan, torch.inf, -torch.inf][index % 3]) as called:
            latent = tiny.sample(model, patcher, size=SIZE, steps=STEPS)
        assert not torch.isfinite(latent).all() and trace.last.completed
        assert [(e.kind, e.merged is not None) for e in trace.last.evaluations][: index + 1] == kinds[: index + 1]
        check_what_is_said(trace.last, trace, index, "its prediction", caplog)
        assert {(i, False) for i in range(index + 1, STEPS)} <= set(called)
        assert torch.equal(tiny.sample(model, patcher, size=SIZE, steps=STEPS), clean) and trace.last.not_finite is None


def test_a_latent_that_is_not_finite_is_computed_as_ever_and_named(setup, caplog):
    """What a sampler does to the latent: a skipped evaluation would have hidden it."""
    model, *_ = setup
    caplog.set_level("INFO", "highlight_diffusion")
    clean = tiny.sample(model, prepared(setup, trace := Trace()), size=SIZE, steps=STEPS)
    kinds = [e.kind for e in trace.last.evaluations]
    for index in {kinds.index(kind) for kind in set(kinds)} | {4}:
        caplog.clear()

        def spoil(step, denoised, x, steps, index=index):
            if step == index - 1:
                x[..., 3, 3] = torch.nan

        if index:
            patcher = prepared(setup, trace := Trace())
            tiny.sample(model, patcher, size=SIZE, steps=STEPS, callback=spoil)
            assert trace.last.evaluations[index].kind == "dense"
            assert "the latent that the sampler asks about is not finite" in trace.last.evaluations[index].reason
            check_what_is_said(trace.last, trace, index, "the latent it was given", caplog)
            assert torch.equal(tiny.sample(model, patcher, size=SIZE, steps=STEPS), clean)


@pytest.mark.parametrize(
    ("where", "index", "value"),
    [("everywhere", 0, torch.nan), ("one picture", 1, torch.inf), ("negative", 1, torch.nan), ("positive", 0, -torch.inf)],
)
def test_before_anything_was_saved_the_run_is_the_vanilla_one(setup, where, index, value):
    """By a wrapper of another node, in a graph that mends what is not finite behind us, so that the latents can be compared."""
    model, *_ = setup
    calls = {"pictures": 2}

    def wrapper(executor, x, *args, **kwargs):
        output, options = executor(x, *args, **kwargs), args[4]
        calls["sigmas"].append(float(args[0].flatten()[0]))
        if len(dict.fromkeys(calls["sigmas"])) != index + 1:
            return output
        for row, stream in enumerate(options["cond_or_uncond"]):
            rows = slice(2 * row, 2 * row + (1 if where == "one picture" else 2))
            if where in ("everywhere", "one picture") or stream == ["positive", "negative"].index(where):
                output[rows, ..., 2, :] = value
        return output

    def sampled(patcher):
        calls["sigmas"] = []
        patcher = patcher.clone()
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "test", wrapper)
        patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"].nan_to_num(0.5, 0.5, 0.5))
        return tiny.sample(model, patcher, size=SIZE, steps=STEPS, batch=2)

    trace = Trace()
    assert torch.equal(sampled(prepared(setup, trace)), sampled(model.patcher))
    assert trace.last.not_finite == index and all(e.kind == "dense" for e in trace.last.evaluations)


def test_a_weight_that_is_not_finite_is_named_at_the_first_evaluation(setup, caplog):
    model, *_ = setup
    caplog.set_level("INFO", "highlight_diffusion")
    weight = [p for p in model.patcher.model.diffusion_model.parameters() if p.ndim > 1][-1]
    kept = weight.detach().clone()
    clean = tiny.sample(model, prepared(setup, Trace()), size=SIZE, steps=STEPS)
    try:
        with torch.no_grad():
            weight.view(-1)[0] = torch.nan
        tiny.sample(model, prepared(setup, trace := Trace()), size=SIZE, steps=STEPS)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    check_what_is_said(trace.last, trace, 0, "its prediction", caplog)
    assert torch.equal(tiny.sample(model, prepared(setup, Trace()), size=SIZE, steps=STEPS), clean)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm", "uni_pc", "dpmpp_2s_ancestral"])
def test_under_every_kind_of_sampler(sampler, caplog):
    caplog.set_level("INFO", "highlight_diffusion")
    model = tiny.sd15()
    with spoilt(model, 5, torch.nan):
        tiny.sample(model, attach(model.patcher, PACED, trace := Trace()), sampler=sampler, size=SIZE, steps=STEPS)
    first = trace.last.not_finite
    if trace.last.evaluations[5].kind == "dense":
        assert first == 5
        check_what_is_said(trace.last, trace, first, "its prediction", caplog)
