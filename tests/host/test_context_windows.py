"""Context windows over the frames of a video: computed in part and merged, with what is recorded of each window kept by it."""

from dataclasses import replace

import comfy.context_windows
import pytest
import torch
from comfy.context_windows import IndexListCallbacks
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.dit import MOVED, NOT_REMEMBERED, OTHER_FRAMES

from . import tiny
from .classes import CLASSES
from .sampling import reasons
from .test_families import PARTIAL, ROUNDING, errors_of_a_subset, given_mask

MERGING = SDTMConfig(r=0.5, protect_steps=3, switch=0.6)


def windowed(model: tiny.Tiny, schedule: str = "standard_static", **changed):
    settings = {"context_length": 3, "context_overlap": 1, "context_schedule": schedule, "context_stride": 1,
                "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False}  # fmt: skip
    return ContextWindowsManualNode.execute(model.patcher, **{**settings, **changed}).args[0]


@pytest.fixture(scope="module")
def model() -> tiny.Tiny:
    """Wan with five frames, in two windows of three; the second has the frame ahead of it too."""
    return replace(tiny.wan(), frames=5)


def masked(model: tiny.Tiny, patcher, config=PARTIAL, **kwargs):
    trace = Trace()
    patched = attach(patcher, config, trace, given=given_mask(model))
    first, again = (tiny.sample(model, patched, **{"steps": 9, **kwargs}) for _ in range(2))
    assert torch.isfinite(first).all() and torch.equal(first, again)
    return trace.last


def test_a_subset_of_each_window_equals_dense_where_it_was_recorded(model):
    exact, wiped = errors_of_a_subset(replace(model, patcher=windowed(model)), 1)
    assert len(exact) == 2 * 3, "two windows in each of three steps"
    assert max(exact) <= ROUNDING and max(wiped) > 1e-4 and min(wiped) > 0


def test_each_window_finds_its_own_recordings(model):
    """Without them what is computed is another picture."""
    found = []

    def seen(self, job, call):
        found.extend((set(subset.entries[-1].parts[0, 0]), call.keys) for subset in job.compute)
        return apply_model(self, job, call)

    from highlight_diffusion.host.dit import DiTRun

    apply_model = DiTRun.apply_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiTRun, "apply_model", seen)
        masked(model, windowed(model))
    assert {len(held) for held, _ in found} == {2} and all(keys in held for held, keys in found)


def test_windows_that_move_are_computed_whole_once_and_then_forecast(model):
    run = masked(model, windowed(model, "looped_uniform"), steps=14)
    assert run.count("skipped") and any(f"computed whole: {MOVED}" in reason for reason in reasons(run))
    assert f"forecast only: {MOVED}" in reasons(run)


def test_the_prompt_gives_a_heatmap_of_all_windows(model):
    tiny.sample(model, attach(windowed(model), HighlightConfig(), trace := Trace()), steps=8)
    heard = [e.heatmap for e in trace.last.evaluations if e.heatmap is not None]
    assert heard and heard[-1].shape[-2:] == (16, 16) and heard[-1].std() > 0.01


@pytest.mark.parametrize("schedule", ["standard_static", "looped_uniform"])
def test_tokens_are_merged_in_every_window(model, schedule):
    patcher, trace = windowed(model, schedule), Trace()
    vanilla = tiny.sample(model, patcher, steps=6)
    assert torch.equal(tiny.sample(model, attach_merging(patcher, SDTMConfig(enabled=False), Trace()), steps=6), vanilla)
    patched = attach_merging(patcher, MERGING, trace)
    first, again = (tiny.sample(model, patched, steps=6) for _ in range(2))
    run = trace.last
    assert torch.isfinite(first).all() and torch.equal(first, again) and not torch.equal(first, vanilla)
    assert sum(e.merged is not None for e in run.evaluations) >= 2
    assert any(NOT_REMEMBERED in reason for reason in reasons(run)) == (schedule == "looped_uniform")
    assert not any("forward" in module.__dict__ for module in model.patcher.model.diffusion_model.modules())


def test_windows_of_other_frames_than_they_say_are_forecast_alone(model):
    """As another node's handler may have them."""
    patcher = windowed(model)

    def claim(handler, network, x, conds, timestep, options, number, window, *others):
        window.causal_anchor_index = 0

    callbacks = {IndexListCallbacks.EVALUATE_CONTEXT_WINDOWS: {"claim": [claim]}}
    patcher.model_options["context_handler"].callbacks = {"callbacks": callbacks}
    run = masked(model, patcher)
    assert run.count("skipped") and f"forecast only: {OTHER_FRAMES}" in reasons(run) and not run.count("partial")


class Halves:
    """Another node's handler, which does not say what its windows are."""

    dim = 2

    def should_use_context(self, *_) -> bool:
        return True

    def execute(self, calc_cond_batch, model, conds, x, timestep, model_options) -> list[torch.Tensor]:
        parts = [calc_cond_batch(model, conds, part, timestep, model_options) for part in x.split(3, dim=2)]
        return [torch.cat(of_one, dim=2) for of_one in zip(*parts, strict=True)]


def test_windows_that_are_not_said_are_computed_whole_beside_both_nodes(model):
    patcher, trace = model.patcher.clone(), Trace()
    patcher.model_options["context_handler"] = Halves()
    patched = attach_merging(attach(patcher, PARTIAL, trace, given=given_mask(model)), MERGING, trace)
    first, again = (tiny.sample(model, patched, steps=9) for _ in range(2))
    run = trace.last
    assert torch.isfinite(first).all() and torch.equal(first, again) and run.count("skipped")
    assert not run.count("partial") and f"forecast only: {OTHER_FRAMES}" in reasons(run)
    assert any(f"not merged: {OTHER_FRAMES}" in reason for reason in reasons(run))


@pytest.mark.skipif(not hasattr(comfy.context_windows, "WindowingState"), reason="this ComfyUI's windows have no sound")
def test_video_beside_sound_is_forecast_as_a_whole():
    """Both have windows of their own."""
    video = replace(CLASSES["LTXAV"](), shapes=((128, 5, 8, 8), (8, 15, 16)))
    patched = attach_merging(attach(windowed(video), PARTIAL, trace := Trace()), MERGING, trace)
    first, again = (tiny.sample(video, patched, steps=9) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.unbind(), again.unbind(), strict=True))
    assert trace.last.count("skipped") and any("not merged: context windows are in use" in r for r in reasons(trace.last))
