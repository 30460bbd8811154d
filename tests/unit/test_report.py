"""What a run is said to have cost and saved."""

import json

import pytest
import torch
from highlight_diffusion.engine.report.numbers import as_line, as_text, estimate_dense, fallbacks, report
from highlight_diffusion.engine.report.picture import picture
from highlight_diffusion.engine.stopwatch import Stopwatch
from highlight_diffusion.engine.trace import Evaluation, RunRecord, Trace

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def evaluation(index: int, kind: str, seconds: float, **more) -> Evaluation:
    active = {"dense": 1.0, "partial": 0.25, "skipped": 0.0}[kind]
    return Evaluation(index, index, 10.0 - index, kind, "as planned", active, seconds=seconds, **{"planned": kind, **more})


@pytest.fixture
def run() -> RunRecord:
    """Two seconds, 0.2 of them outside the evaluations; dense evaluations at 0.3 s, but the first and those that listen."""
    run = RunRecord((1, 4, 64, 64), "euler", tuple(float(s) for s in range(10, -1, -1)), seconds=2.0, completed=True)
    heat = torch.rand(1, 1, 32, 32)
    run.evaluations = [
        evaluation(0, "dense", 0.5), evaluation(1, "dense", 0.38, heatmap=heat), evaluation(2, "dense", 0.3),
        evaluation(3, "partial", 0.1), evaluation(4, "skipped", 0.0, planned="partial"), evaluation(5, "dense", 0.3),
        evaluation(6, "dense", 0.22, planned="skipped"),
    ]  # fmt: skip
    run.evaluations[4].reason, run.evaluations[6].reason = "forecast only: FreeU", "the conditioning changed"
    return run


def test_the_dense_run_is_estimated_from_plain_dense_evaluations(run):
    seconds, how = estimate_dense(run)
    assert seconds == pytest.approx(7 * 0.3 + 0.2)
    assert how == (
        "7 evaluations at 0.300 s, the median of 3 plain dense evaluations after the first, and 0.20 s outside evaluations"
    )


def test_without_plain_dense_evaluations_the_others_serve_and_without_any_nothing_is_claimed(run):
    run.evaluations = run.evaluations[1:2]
    assert estimate_dense(run)[1].startswith("1 evaluations at 0.380 s, the median of 1 dense evaluations")
    run.evaluations = [evaluation(0, "skipped", 0.0)]
    assert estimate_dense(run) == (None, "no dense evaluation with all its tokens to go by")
    assert report(run)["ratio"] is None and "faster" not in as_text(report(run))


def test_merging_evaluations_are_no_measure_of_dense_ones(run):
    for one in run.evaluations[2:]:
        if one.kind == "dense":
            one.merged = torch.full((1, 32, 32), 0.5)
    assert estimate_dense(run)[1].startswith("7 evaluations at 0.380 s, the median of 1 dense evaluations after the first")
    assert report(run)["mean_merged"] == 0.5 and "tokens merged where any were: 50%" in as_text(report(run))


def test_an_off_run_is_about_as_fast_as_dense():
    run = RunRecord((1, 4, 8, 8), "euler", (1.0, 0.5, 0.0), seconds=1.0, completed=True)
    run.evaluations = [evaluation(i, "dense", 0.25) for i in range(4)]
    assert report(run)["ratio"] == pytest.approx(1.0)


def test_fall_backs_are_counted_with_their_reasons(run):
    assert fallbacks(run) == [
        {"planned": "partial", "kind": "skipped", "reason": "forecast only: FreeU", "count": 1},
        {"planned": "skipped", "kind": "dense", "reason": "the conditioning changed", "count": 1},
    ]


def test_text_json_line_and_picture_say_the_same(run):
    told = report(run)
    text, line, drawn = as_text(told), as_line(run), picture(run)
    assert told["ratio"] == pytest.approx(1.15) and "1.15 times faster" in text and "1.15 times faster" in line
    assert "5 dense, 1 partial, 1 skipped" in text and "instead of skipped: the conditioning changed" in text
    assert "\n" not in line and "2 fall-backs" in line
    assert json.loads(json.dumps(told)) == told
    assert drawn.shape[0] == 1 and drawn.shape[2:] == (768, 3) and 0.5 < drawn.mean() < 1
    blue = torch.tensor([0.0, 0.45, 0.70])
    assert ((drawn[0] - blue).abs().amax(-1) < 0.01).sum() > 1000  # the dense bars of its timeline


def test_a_run_that_saved_nothing_says_why(run):
    assert report(run)["idle"] is None and "nothing was saved" not in as_text(report(run))
    run.evaluations = [evaluation(i, "dense", 0.3) for i in range(3)]
    run.evaluations[2].reason = "last step"
    assert "nothing was saved: as planned (2), last step (1)" in as_text(report(run))
    run.evaluations[1].merged = torch.full((1, 32, 32), 0.5)
    assert report(run)["idle"] is None


def test_an_interrupted_run_says_so(run):
    run.completed = False
    assert "interrupted" in as_text(report(run)) and "interrupted" in as_line(run)


def test_runs_of_a_trace_are_counted_from_the_last():
    trace = Trace()
    assert trace.before_last(3) is None
    trace.runs.extend(RunRecord((1, 4, 8, 8), name, (1.0, 0.0)) for name in ("first", "second"))
    assert trace.before_last(0).sampler == "second" and trace.before_last(1).sampler == "first"
    with pytest.raises(ValueError, match="run is 2, but this trace has 2 runs"):
        trace.before_last(2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_stopwatch_times_the_work_not_the_call(device):
    make = torch.rand(512, 512, device=device)
    watch = Stopwatch(make.device)
    for _ in range(20):
        make = (make @ make).softmax(0)
    watch.stop()
    assert watch.seconds > 0 and watch.done
    with pytest.raises(RuntimeError, match="still runs"):
        _ = Stopwatch(torch.device("cpu")).seconds
