"""The laws of the design, on real UNets in the real host: off is off, all is all, nothing leaks, say what you did."""

import gc
import weakref

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.unet_blocks import depth_and_alignment
from highlight_diffusion.engine.partial.unet_window import Window, shallow_window
from highlight_diffusion.engine.trace import KINDS, Evaluation, Trace
from highlight_diffusion.host import demo
from highlight_diffusion.host.attach import KEY, attach
from highlight_diffusion.host.call import ModelCall
from highlight_diffusion.host.unet import affine

from . import tiny

AT_ONE = Evaluation(0, 0, 1.0, "dense", "", 1.0)  # what is recorded and computed below is at one sigma
APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL
PARTIAL = HighlightConfig(interval=(4,), warmup=3, threshold=0.9, halo=0, max_area=1.0, correct="always")
FAMILIES = {
    "sd15": tiny.sd15, "sd21": tiny.sd21, "sdxl": tiny.sdxl, "demo": lambda: tiny.Tiny(demo.load_unet(), context=128),
    "sd15 bf16": lambda: tiny.built_in("bf16", tiny.sd15),
}  # fmt: skip
SIZE = {"demo": (16, 24), "sd15 bf16": (16, 16)}
ROUNDING = {"sd15 bf16": 2e-2}  # of a window against the dense evaluation, as a share of its largest value


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family) -> tiny.Tiny:
    return FAMILIES[family]()


@pytest.fixture
def run(model, family):
    """Sample with a config (None for the model as it is); returns the latent and the trace."""

    def sampled(config=None, **kwargs):
        trace = Trace()
        patcher = attach(model.patcher, config, trace) if config else model.patcher
        kwargs = {"size": SIZE.get(family, (24, 32)), **kwargs}
        return tiny.sample(model, patcher, **kwargs), trace

    return sampled


def kinds(trace: Trace) -> list[str]:
    return [e.kind for e in trace.last.evaluations]


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        *((HighlightConfig(enabled=False), name) for name in ("euler", "dpmpp_2m", "heun", "euler_ancestral", "dpmpp_sde")),
        *((HighlightConfig(interval=(1,)), name) for name in ("euler", "dpmpp_sde")),
    ],
    ids=lambda value: value if isinstance(value, str) else "interval 1" if value.enabled else "off",
)
def test_off_is_off(run, config, sampler):
    vanilla, _ = run(sampler=sampler)
    latent, trace = run(config, sampler=sampler)
    assert torch.equal(latent, vanilla)
    assert set(kinds(trace)) == {"dense"}


def test_all_is_all(run):
    vanilla, _ = run()
    latent, trace = run(HighlightConfig(threshold=0.0))
    assert torch.equal(latent, vanilla)
    assert "the highlight is the whole frame" in {e.reason for e in trace.last.evaluations}


@pytest.mark.parametrize("levels", [0, 1, 2, "shallow"])
@pytest.mark.parametrize("batch", [1, 2])
def test_partial_equals_dense_where_it_was_recorded(model, family, batch, levels):
    """Every dense evaluation is followed by a partial one of the last image at the same x and sigma."""
    size, worst = SIZE.get(family, (24, 32)), []

    def twice(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        args = (x, t, c_concat, c_crossattn, control, transformer_options)
        dense = executor(*args, **kwargs)
        state, box = transformer_options[KEY], (8, 16, 0, 16)
        if levels == "shallow":
            window = shallow_window(size, affine)
        else:
            depth, _ = depth_and_alignment(model.patcher.model.diffusion_model, size, levels)
            window = Window(box, size, affine, ImageRows(batch - 1, batch), depth)
        window.begin(1.0)
        call = ModelCall(executor, *args, kwargs)
        assert torch.equal(state.apply_model(Job(AT_ONE, record=(window,)), call), dense)
        inside = window.crop(window.rows.of(state.apply_model(Job(AT_ONE, compute=(window,)), call)))
        expected = window.crop(window.rows.of(dense))
        worst.append(float((inside - expected).abs().max() / expected.abs().max()))
        return dense

    patcher = attach(model.patcher, HighlightConfig(enabled=False), Trace())
    patcher.add_wrapper_with_key(APPLY_MODEL, "twice", twice)
    tiny.sample(model, patcher, size=size, steps=4, batch=batch)
    assert len(worst) >= 4 and max(worst) < ROUNDING.get(family, 2e-5)


def test_forecast_and_windows_really_save(run):
    vanilla, _ = run()
    latent, trace = run(PARTIAL)
    assert not torch.equal(latent, vanilla)
    assert kinds(trace).count("skipped") + kinds(trace).count("partial") >= 4
    assert kinds(trace).count("dense") <= 6


def test_partial_evaluations_happen_on_real_attention(run):
    _, trace = run(PARTIAL, steps=24)
    partial = [e for e in trace.last.evaluations if e.kind == "partial"]
    assert partial, [(e.kind, e.reason) for e in trace.last.evaluations]
    assert all(e.boxes and e.windows and e.forecast_error is not None and 0 < e.active <= 1 for e in partial)
    assert trace.last.cache_bytes > 0


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
def test_shallow_evaluations_fill_the_gaps(run, sampler):
    vanilla, _ = run(sampler=sampler, batch=2)
    latent, trace = run(HighlightConfig(shallow="always", pace=8.0), sampler=sampler, batch=2)
    found = kinds(trace)
    least = 0.2 if sampler == "euler_ancestral" else 0.4  # the noise that it renews ends gaps early
    assert found.count("shallow") >= least * len(found) and set(found) == {"dense", "shallow"}
    forecast, _ = run(HighlightConfig(shallow="never", correct="never", pace=8.0), sampler=sampler, batch=2)
    assert latent.isfinite().all() and (latent - vanilla).norm() > 0
    assert not torch.equal(latent, forecast) and trace.last.cache_bytes > 0


def test_shallow_evaluations_give_way_to_forecasts_beside_foreign_patches(run, model, family):
    trace = Trace()
    patcher = attach(model.patcher, HighlightConfig(shallow="always", pace=8.0), trace)
    patcher.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    tiny.sample(model, patcher, size=SIZE.get(family, (24, 32)))
    found = [e for e in trace.last.evaluations if e.planned == "shallow"]
    assert found and all(e.kind in ("dense", "skipped") for e in found)
    assert any("another node patches attn1_patch" in e.reason for e in found if e.kind == "skipped")


def test_a_second_run_equals_the_first(run, model, family):
    trace = Trace()
    patcher = attach(model.patcher, PARTIAL, trace)
    size = SIZE.get(family, (24, 32))
    assert torch.equal(tiny.sample(model, patcher, size=size), tiny.sample(model, patcher, size=size))
    assert len(trace.runs) == 2 and kinds(trace) == [e.kind for e in trace.runs[0].evaluations]


@pytest.mark.parametrize(
    "change",
    [{"prompt": 9}, {"size": (16, 40)}, {"batch": 2}, {"seed": 7}, {"sampler": "dpmpp_2m"}, {"steps": 6}, {"cfg": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_nothing_leaks_into_another_run_on_the_same_model(model, family, change):
    size = SIZE.get(family, (24, 32))
    used = attach(model.patcher, PARTIAL, Trace())
    tiny.sample(model, used, size=size)
    changed = {"size": size, **change}
    fresh = attach(model.patcher, PARTIAL, Trace())
    assert torch.equal(tiny.sample(model, used, **changed), tiny.sample(model, fresh, **changed))


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("at", [2, 5])
def test_after_an_error_the_next_run_is_vanilla_and_memory_is_back(model, family, run, error, at):
    vanilla, _ = run()
    trace, states = Trace(), []
    patcher = attach(model.patcher, PARTIAL, trace)

    def watch(executor, *args, **kwargs):
        states.append(weakref.ref(args[4]["transformer_options"][KEY]))
        return executor(*args, **kwargs)

    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "watch", watch)

    def callback(step, *_):
        if step == at:
            raise error

    with pytest.raises(error):
        tiny.sample(model, patcher, size=SIZE.get(family, (24, 32)), callback=callback)
    assert not trace.last.completed
    assert torch.equal(run()[0], vanilla)
    assert not any("forward" in m.__dict__ for m in model.patcher.model.diffusion_model.modules())
    gc.collect()
    assert states and all(state() is None for state in states)


def test_the_node_applied_twice_is_the_last_one(model, run):
    once, _ = run(PARTIAL)
    twice = attach(attach(model.patcher, HighlightConfig(interval=(2,)), Trace()), PARTIAL, trace := Trace())
    latent = tiny.sample(model, twice, size=tuple(once.shape[-2:]))
    assert torch.equal(latent, once) and len(trace.runs) == 1


def test_a_sibling_of_the_model_stays_vanilla(model, run):
    vanilla, _ = run()
    attach(model.patcher, PARTIAL, Trace())
    assert torch.equal(run()[0], vanilla)


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "heun", "dpm_2", "euler_ancestral", "dpmpp_sde", "uni_pc", "dpm_fast"]
)
def test_every_evaluation_is_in_the_trace_with_its_reason(model, family, sampler):
    calls, trace = [], Trace()
    patcher = attach(model.patcher, PARTIAL, trace)

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "count", count)
    out = tiny.sample(model, patcher, size=SIZE.get(family, (24, 32)), sampler=sampler)
    last = trace.last
    assert torch.isfinite(out).all() and last.completed and last.sampler == sampler or sampler in ("uni_pc", "dpm_fast")
    assert len(last.evaluations) == len(calls) == sum(last.count(kind) for kind in KINDS)
    assert all(e.reason and e.seconds > 0 for e in last.evaluations)


def test_in_inference_mode_as_the_executor_runs_it(run):
    outside, _ = run(PARTIAL)
    with torch.inference_mode():
        inside, _ = run(PARTIAL)
    assert torch.equal(inside, outside)
