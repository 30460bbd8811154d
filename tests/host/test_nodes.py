"""Registration and the nodes themselves, loaded by ComfyUI's own loader."""

import asyncio
import json
import logging
from contextlib import suppress

import pytest
import torch
from highlight_diffusion.engine.report.overlay import TIMELINE
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host import demo
from highlight_diffusion.nodes.highlight import HighlightDiffusion
from highlight_diffusion.nodes.preview import HighlightMaskPreview
from highlight_diffusion.nodes.report import HighlightReport
from highlight_diffusion.nodes.sdtm import HighlightSDTM

import nodes as comfy_nodes

from . import tiny

IDS = {
    "HighlightDiffusion", "HighlightSDTM", "HighlightWords", "HighlightMaskPreview", "HighlightReport", "HighlightDemoModel",
    "HighlightProfile",
}  # fmt: skip
DEFAULTS = {
    "enabled": True, "preset": "balanced", "correct": "auto", "interval": "auto", "pace": 0.0, "warmup": 0,
    "start_percent": 0.0, "end_percent": 1.0, "threshold": 0.6, "halo": 2, "levels": 2, "max_area": 0.6, "forecast": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> tiny.Tiny:
    return tiny.sd15()


def test_comfyui_loads_the_pack_without_a_warning(pack, caplog):
    found = comfy_nodes.NODE_CLASS_MAPPINGS
    before = dict(found)
    for name in IDS:  # which tests of workflows may have left there
        found.pop(name, None)
    others = set(found)
    try:
        with caplog.at_level(logging.INFO):
            assert asyncio.run(comfy_nodes.load_custom_node(str(pack)))
        assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert set(found) - others == IDS
    finally:
        found.clear()
        found.update(before)


@pytest.mark.parametrize("name", sorted(IDS))
def test_every_input_and_output_is_explained(name):
    import highlight_diffusion.nodes as pack_nodes

    schema = getattr(pack_nodes, name).GET_SCHEMA()
    assert schema.node_id == name and schema.description and schema.category == "highlight diffusion"
    assert all(i.tooltip for i in schema.inputs) and all(o.tooltip for o in schema.outputs)


def test_the_experts_parameters_are_marked_advanced():
    info = HighlightDiffusion.GET_NODE_INFO_V1()
    advanced = {name for name, spec in info["input"]["required"].items() if len(spec) > 1 and spec[1].get("advanced")}
    assert advanced == set(DEFAULTS) - {"enabled", "preset", "correct"}


def test_node_ids_and_inputs_are_what_saved_workflows_rely_on(pack):
    """Renaming an input breaks saved workflows: change this list only together with a NodeReplace."""
    assert list(HighlightDiffusion.GET_NODE_INFO_V1()["input"]["required"]) == ["model", *DEFAULTS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interval": "0"}, "interval has 0; the smallest is 1"),
        ({"interval": "often"}, 'interval is "often"; write auto'),
        ({"start_percent": 0.9, "end_percent": 0.1}, "start_percent 0.9 is not below end_percent 0.1"),
    ],
)
def test_bad_input_is_a_clear_error_and_the_model_stays_usable(model, change, words):
    vanilla = tiny.sample(model)
    with pytest.raises(ValueError, match=words):
        HighlightDiffusion.execute(model=model.patcher, **{**DEFAULTS, **change})
    assert torch.equal(tiny.sample(model), vanilla)


def test_bad_interval_is_refused_before_the_graph_runs():
    assert HighlightDiffusion.validate_inputs(interval="3") is True
    assert "smallest is 1" in HighlightDiffusion.validate_inputs(interval="0")


def test_bug_a_link_into_a_text_input_could_not_be_queued():
    """ComfyUI validates a linked input as None; it is checked when it runs."""
    assert HighlightDiffusion.validate_inputs(interval=None) is True
    assert HighlightSDTM.validate_inputs(protect_blocks=None) is True


def test_a_mask_decides_what_is_computed(model):
    mask = torch.zeros(1, 128, 128)
    mask[:, :40, :40] = 1
    settings = {**DEFAULTS, "interval": "4", "halo": 0}
    patcher, trace = HighlightDiffusion.execute(model=model.patcher, **settings, mask=mask).result
    tiny.sample(model, patcher, size=(16, 16), steps=12)
    partial = [e for e in trace.last.evaluations if e.kind == "partial"]
    assert partial and all(e.windows == (((0, 6, 0, 6),),) for e in partial)
    assert trace.last.highlight_reason == "the mask that was given"


def test_a_mask_of_everything_is_the_dense_result(model):
    patcher, _ = HighlightDiffusion.execute(model=model.patcher, **DEFAULTS, mask=torch.ones(1, 128, 128)).result
    assert torch.equal(tiny.sample(model, patcher, steps=12), tiny.sample(model, steps=12))


def test_a_model_that_is_not_known_samples_and_is_named():
    video = tiny.video_unet()
    patcher, trace = HighlightDiffusion.execute(model=video.patcher, **DEFAULTS).result
    assert torch.isfinite(tiny.sample(video, patcher, size=(8, 8), steps=12)).all() and trace.last.count("skipped")
    assert "the insides of SVD_img2vid (UNetModel) are not known" in trace.last.highlight_reason


def test_hunyuan_video_of_comfyui_0_8_is_forecast():
    """Its blocks have the image before the text, which no part could be computed of: the double ones say so in 0.8.0."""
    old = tiny.hunyuan_video()
    old.patcher.model.diffusion_model.double_blocks[0].flipped_img_txt = True
    patcher, trace = HighlightDiffusion.execute(model=old.patcher, **DEFAULTS).result
    with suppress(Exception):  # this ComfyUI's forward wants the other order
        tiny.sample(old, patcher, steps=1)
    assert "only time is saved: HunyuanVideo is built in another way" in trace.last.highlight_reason


def test_a_latent_of_another_model_is_a_clear_error_and_the_model_stays_usable(model):
    patcher, trace = HighlightDiffusion.execute(model=model.patcher, **DEFAULTS).result
    noise = torch.zeros(1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"latent has shape \(1, 16, 16, 16\).* 4 latent channels.*empty latent node"):
        tiny.comfy.sample.sample(
            patcher, noise, 4, 4.0, "euler", "normal", tiny.cond(model, 1), tiny.cond(model, 2), noise, disable_pbar=True
        )  # fmt: skip
    assert torch.isfinite(tiny.sample(model, patcher)).all() and trace.last.completed


def test_preview_shows_one_frame_an_evaluation(model):
    patcher, trace = HighlightDiffusion.execute(model=model.patcher, **DEFAULTS).result
    latent = tiny.sample(model, patcher, size=(16, 24), batch=2)
    output = HighlightMaskPreview.execute(trace=trace, samples={"samples": latent}, image_index=1, every=1)
    frames, mask, words = output.result
    assert len(frames) == 10 and frames.shape[2] >= 256 and frames.ndim == 4
    assert mask.shape[0] == 2 and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert not words.any() and words.shape == (1, *mask.shape[1:]), "no words were named"
    assert len(HighlightMaskPreview.execute(trace=trace, images=frames, image_index=0, every=4).result[0]) == 3
    assert "10 evaluations" in output.ui["text"][0] and "images" not in output.ui  # ComfyUI would draw them over the widget
    run = json.loads(json.dumps(output.ui["highlight_runs"]))[0]
    assert len(run["evaluations"]) == 10 and {"kind", "reason", "sigma", "active", "seconds"} <= set(run["evaluations"][0])


@pytest.mark.parametrize(("batch", "channels", "side"), [(1, 16, 128), (4, 4, 64), (20, 4, 16)])
def test_bug_the_preview_of_a_latent_was_smaller_than_the_picture_and_had_sixteen_of_a_batch(batch, channels, side):
    trace = Trace()
    trace.runs.append(RunRecord((batch, channels, side, side), "euler", (1.0, 0.0)))
    latent = torch.randn(batch, channels, side, side)
    frames, mask, _ = HighlightMaskPreview.execute(
        trace=trace, samples={"samples": latent}, image_index=batch - 1, every=1
    ).result
    assert mask.shape[1:] == (8 * side, 8 * side) and max(frames.shape[1:3]) <= 1024 + TIMELINE


def test_preview_of_an_empty_trace_says_so_and_does_not_fail():
    output = HighlightMaskPreview.execute(trace=Trace(), images=torch.rand(1, 64, 64, 3), image_index=0, every=1)
    assert "No sampling run" in output.ui["text"][0]
    assert output.result[0].shape == (1, 64, 64, 3) and output.result[1].shape == (1, 64, 64)
    json.dumps(output.ui)


def test_two_runs_of_a_trace_are_told_apart_and_reported(model):
    patcher, trace = HighlightDiffusion.execute(model=model.patcher, **DEFAULTS).result
    tiny.sample(model, patcher, steps=12)
    latent = {"samples": tiny.sample(model, patcher, steps=8)}
    preview = {"trace": trace, "samples": latent, "image_index": 0, "every": 1}
    assert [len(HighlightMaskPreview.execute(**preview, run=back).result[0]) for back in (0, 1)] == [8, 12]
    with pytest.raises(ValueError, match="run is 2, but this trace has 2 runs"):
        HighlightMaskPreview.execute(**preview, run=2)
    output = HighlightReport.execute(trace=trace, after=latent, run=1)
    text, full, picture = output.result
    told = json.loads(full)
    assert "12 evaluations" in text and len(told["evaluations"]) == 12 and told["report"]["evaluations"]["dense"] > 0
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and output.ui["text"] == (text,)
    assert all(e["planned"] == e["kind"] for e in told["evaluations"]) == (told["report"]["fallbacks"] == [])


@pytest.mark.parametrize(
    ("change", "asked"), [({}, 28.0), ({"preset": "fast"}, 22.0), ({"pace": 5.0}, None), ({"speed": 2.0}, None)]
)
def test_a_preset_is_a_promise_in_the_report_and_a_pace_or_a_speed_is_none(model, change, asked):
    patcher, trace = HighlightDiffusion.execute(model=model.patcher, **{**DEFAULTS, **change}).result
    latent = tiny.sample(model, patcher, steps=20)
    text, full, _ = HighlightReport.execute(trace=trace, after={"samples": latent}).result
    told = json.loads(full)["report"]
    assert told["asked_error"] == asked
    assert (f"of {asked or 0:g} dB asked for" in text) == (asked is not None)
    assert asked is None or told["expected_error"] >= asked


def test_a_report_of_an_empty_trace_says_so():
    text, full, picture = HighlightReport.execute(trace=Trace(), after=None).result
    assert "No sampling run" in text and json.loads(full) == {} and picture.ndim == 4


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({}, "connect the sampler's LATENT"), ({"images": torch.rand(2, 8, 8, 3), "image_index": 2}, "the last is 1")],
)
def test_preview_with_bad_input(inputs, words):
    with pytest.raises(ValueError, match=words):
        HighlightMaskPreview.execute(**{"trace": Trace(), "image_index": 0, "every": 1, **inputs})


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("highlight_diffusion.demo.load.WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="reinstall the pack"):
        demo.load_unet()
