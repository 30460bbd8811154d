"""Control nets of every kind, by ComfyUI's own classes and node: their residuals in partial evaluations, and what they cost."""

import logging
from dataclasses import replace

import comfy.controlnet
import comfy.patcher_extension
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.token_subset import TokenSubset
from highlight_diffusion.engine.partial.unet_blocks import depth_and_alignment
from highlight_diffusion.engine.partial.unet_window import Window
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Evaluation, Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.call import ModelCall
from highlight_diffusion.host.run import KEY
from highlight_diffusion.host.unet import UNetRun, affine

from nodes import ConditioningSetMask

from . import nets, tiny

WRAPPERS = comfy.patcher_extension.WrappersMP
CONFIG = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
SIZE = (16, 24)
BOX = (4, 12, 8, 16)

AT_ONE = Evaluation(0, 0, 1.0, "dense", "", 1.0)  # what is recorded and computed below is at one sigma


@pytest.fixture(scope="module", params=nets.NETS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> tiny.Tiny:
    return nets.NETS[kind].model()


@pytest.fixture(scope="module")
def net(kind, model):
    return nets.NETS[kind].make(model)


@pytest.fixture
def control(kind, model, net):
    """Conditionings with the net, and a count of its runs."""

    def made(of=net, size=SIZE, **kwargs) -> dict:
        image = nets.picture(size)
        positive, negative = nets.applied(
            of, tiny.cond(model, 1), tiny.cond(model, 2), image, vae=nets.NETS[kind].vae, **kwargs
        )
        return {"positive": positive, "negative": negative}

    return made


def given() -> UserMasks:
    mask = torch.zeros(1, *SIZE)
    mask[:, BOX[0] : BOX[1], BOX[2] : BOX[3]] = 1
    return UserMasks(mask)


def sample(model, config=None, **kwargs):
    trace = Trace()
    patcher = attach(model.patcher, config, trace, given=given()) if config else model.patcher
    return tiny.sample(model, patcher, **{"size": SIZE, "steps": 12, **kwargs}), trace.last


class Runs:
    """Counts how often a net's own model runs, and whether ComfyUI could use all that came of it."""

    def __init__(self, monkeypatch, caplog):
        self.count = 0
        caplog.set_level(logging.WARNING)
        self.caplog = caplog
        for kind in (comfy.controlnet.ControlNet, comfy.controlnet.T2IAdapter):
            original = kind.get_control

            def counted(this, *args, original=original):
                self.count += 1
                return original(this, *args)

            monkeypatch.setattr(kind, "get_control", counted)


@pytest.fixture
def runs(monkeypatch, caplog) -> Runs:
    return Runs(monkeypatch, caplog)


@pytest.fixture
def check_masked(check, model):
    """A row of the compatibility table: `check`, with a part of the frame as the highlight."""

    def checked(**kwargs):
        run = check(model, config=CONFIG, given=given(), **{"size": SIZE, "steps": 10, **kwargs})
        assert run.count("partial") and {e.control for e in run.evaluations if e.kind == "partial"} == {"reused"}
        return run

    return checked


def test_off_is_off_and_the_net_does_something(model, control):
    plain, _ = sample(model, steps=4)
    vanilla, _ = sample(model, steps=4, **control())
    off, _ = sample(model, HighlightConfig(enabled=False), steps=4, **control())
    assert not torch.equal(plain, vanilla) and torch.equal(off, vanilla)


@pytest.mark.parametrize("wanted", ["reuse", "compute"])
def test_a_net_runs_where_it_is_wanted_and_the_trace_says_so(model, control, runs, wanted):
    latent, run = sample(model, replace(CONFIG, control=wanted), **control())
    dense, partial = run.count("dense"), run.count("partial")
    assert partial and run.count("skipped") and torch.isfinite(latent).all()
    batches = runs.count / (dense + (partial if wanted == "compute" else 0))
    assert batches in (1, 2), "once an evaluation, or twice where ComfyUI runs the conds apart"
    expected = {"dense": "computed", "skipped": "", "partial": "computed" if wanted == "compute" else "reused"}
    assert all(e.control == expected[e.kind] for e in run.evaluations)
    assert f"control nets ran in {dense + (partial if wanted == 'compute' else 0)}" in run.summary()
    assert "could not be applied" not in runs.caplog.text


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("wanted", ["reuse", "compute"])
def test_a_part_equals_dense_where_it_was_recorded(kind, model, control, batch, wanted):
    """Every dense evaluation is followed by a partial one of the last image at the same x and sigma; without the net's
    residuals, the negative control, that would be another picture."""
    errors, without = [], []

    def again(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        args = lambda: (x, t, c_concat, c_crossattn, copied(control), transformer_options)  # noqa: E731
        dense = executor(*args(), **kwargs)
        state, image = transformer_options[KEY], ImageRows(batch - 1, batch)
        if isinstance(state, UNetRun):
            region = Window(BOX, SIZE, affine, image, depth_and_alignment(model.patcher.model.diffusion_model, SIZE, 2)[0])
        else:
            region = TokenSubset([BOX], state.grid, image)
        region.begin(1.0)
        job = Job(AT_ONE, record=(region,), reuse_control=wanted == "reuse")
        assert torch.equal(state.apply_model(job, ModelCall(executor, *args(), kwargs)), dense)
        job = Job(AT_ONE, compute=(region,), reuse_control=wanted == "reuse")
        y0, y1, x0, x1 = BOX
        expected = region.rows.of(dense)[..., y0:y1, x0:x1]

        def error(given) -> float:
            part = state.apply_model(job, ModelCall(executor, *args()[:4], given, transformer_options, kwargs))
            return float((region.rows.of(part)[..., y0:y1, x0:x1] - expected).abs().max() / expected.abs().max())

        errors.append(error({} if wanted == "reuse" else copied(control)))
        without.append(error(None))
        return dense

    patcher = attach(model.patcher, HighlightConfig(enabled=False), Trace())
    patcher.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "again", again)
    tiny.sample(model, patcher, size=SIZE, steps=3, batch=batch, **control())
    assert len(errors) >= 3 and max(errors) < 2e-5 and max(without) > 1e-2, (errors, without)
    assert all(lacking > 20 * error for lacking, error in zip(without, errors, strict=True)), (errors, without)


def copied(control):
    return control and {name: list(values) for name, values in control.items()}


@pytest.mark.compatibility("Control nets", "{kind}", on=nets.on)
def test_nothing_leaks_and_nets_are_reused_by_themselves(check_masked, control, runs):
    check_masked(**control())
    assert "could not be applied" not in runs.caplog.text


@pytest.mark.compatibility("Control nets", "{kind}, two in a row", on=lambda row: nets.on(row.split(",")[0]))
def test_two_nets_in_a_row(check_masked, kind, model, control, runs):
    first = control(strength=0.7)
    other = nets.NETS[kind].make(model)
    image = nets.picture(SIZE, seed=9)
    positive, negative = nets.applied(other, first["positive"], first["negative"], image, 0.5, vae=nets.NETS[kind].vae)
    both = {"positive": positive, "negative": negative}
    check_masked(**both)
    assert not torch.equal(sample(model, steps=2, **both)[0], sample(model, steps=2, **first)[0])
    assert "could not be applied" not in runs.caplog.text


@pytest.mark.compatibility("Control nets", "{kind}, on a masked part", on=lambda row: nets.on(row.split(",")[0]))
def test_a_net_on_a_masked_part_of_the_frame(check_masked, model, control, runs):
    """A prompt with a net for the left of the frame, and one without for all of it."""
    left = control(strength=0.6)
    mask = torch.zeros(1, *SIZE)
    mask[..., : SIZE[1] // 2] = 1
    (masked,) = ConditioningSetMask().append(left["positive"], mask, "default", 1.0)
    both = {"positive": masked + tiny.cond(model, 5), "negative": left["negative"]}
    check_masked(**both)
    assert not torch.equal(sample(model, steps=2, **both)[0], sample(model, steps=2, **left)[0])
    assert "could not be applied" not in runs.caplog.text


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_bug_a_net_beside_shallow_evaluations_stopped_batches(batch):
    """Its residuals were taken for those of one picture."""
    model = tiny.sd15()
    net = nets.NETS["ControlNet"].make(model)
    positive, negative = nets.applied(net, tiny.cond(model, 1), tiny.cond(model, 2), nets.picture(SIZE))
    trace = Trace()
    latent = tiny.sample(
        model, attach(model.patcher, HighlightConfig(), trace), size=SIZE, steps=12, batch=batch, sampler="euler_ancestral",
        positive=positive, negative=negative,
    )  # fmt: skip
    assert torch.isfinite(latent).all() and trace.last.count("shallow"), [(e.kind, e.reason) for e in trace.last.evaluations]


@pytest.mark.compatibility("Control nets", "{kind}, for a share of the schedule", on=lambda row: nets.on(row.split(",")[0]))
def test_a_net_that_ends_voids_the_forecast_and_costs_nothing_after(check, model, control):
    config = replace(CONFIG, interval=(7,))
    run = check(model, config=config, given=given(), steps=20, **control(end=0.4))  # it ends within a gap
    assert {"the conditioning changed", "no forecast yet"} <= {e.reason for e in run.evaluations if e.kind == "dense"}
    last = max(e.index for e in run.evaluations if e.control)
    assert last < 12 and all(e.control == "" for e in run.evaluations[last + 1 :])
    assert run.count("skipped")
