"""What a run tells of itself."""

import json

import pytest
import torch
from highlight_diffusion.engine.trace import KINDS, Evaluation, RunRecord, Trace, in_words, inside

ACTIVE = {"dense": 1.0, "partial": 0.25, "shallow": 0.0, "skipped": 0.0}


def run_of(*kinds: str, **changed) -> RunRecord:
    run = RunRecord((1, 4, 8, 8), "euler", (*(float(len(kinds) - i) for i in range(len(kinds))), 0.0), completed=True)
    for i, kind in enumerate(kinds):
        run.evaluations.append(Evaluation(i, i, run.sigmas[i], kind, "a reason", ACTIVE[kind], **changed))
    return run


def test_evaluations_are_counted_by_kind_and_share_of_the_frame():
    run = run_of("dense", "dense", "partial", "skipped", "skipped")
    assert {kind: run.count(kind) for kind in KINDS} == {"dense": 2, "partial": 1, "shallow": 0, "skipped": 2}
    assert run.mean_active == pytest.approx((1 + 1 + 0.25) / 5)
    assert run_of().mean_active == 0 and run_of().summary().startswith("0 evaluations")


def test_shallow_evaluations_are_named_only_where_there_are_any():
    counts = {"dense": 3, "partial": 0, "shallow": 0, "skipped": 2}
    assert in_words(counts) == "3 dense, 0 partial, 2 skipped"
    assert in_words(counts | {"shallow": 1}) == "3 dense, 0 partial, 1 shallow, 2 skipped"


def test_a_summary_tells_of_control_nets_merged_tokens_and_interruption_where_there_were_any():
    run = run_of("dense", "partial", "skipped")
    run.seconds = 1.234
    assert run.summary() == "3 evaluations: 1 dense, 1 partial, 1 skipped; mean active area 42%; 1.23 s"
    run.evaluations[0].control, run.evaluations[1].control = "computed", "reused"
    assert "; control nets ran in 1, reused in 1; " in run.summary()
    run.evaluations[1].control = "computed"
    assert "; control nets ran in 2; " in run.summary() and "reused" not in run.summary()
    run.evaluations[0].merged = torch.zeros(1, 4, 4)
    run.completed = False
    assert "1 skipped; 1 with merged tokens; " in run.summary() and run.summary().endswith("1.23 s (interrupted)")


def test_a_run_goes_into_json_without_its_tensors():
    run = run_of("dense", "partial", boxes=(((0, 2, 0, 4),),), windows=(((0, 4, 0, 4),),))
    run.highlight, run.words = torch.ones(1, 4, 4, dtype=torch.bool), ("star",)
    first = run.evaluations[0]
    first.heatmap, first.picture, first.words = torch.ones(1, 1, 4, 4), torch.ones(1, 4, 8, 8), torch.ones(1, 1, 4, 4)
    told = json.loads(json.dumps(run.as_dict()))
    assert [e["heatmap"] for e in told["evaluations"]] == [True, False]
    assert [e["merged"] for e in told["evaluations"]] == [False, False]
    assert told["evaluations"][1]["boxes"] == [[[0, 2, 0, 4]]] and told["evaluations"][1]["reason"] == "a reason"
    assert told["sampler"] == "euler" and told["sigmas"] == [2.0, 1.0, 0.0] and told["words"] == ["star"]
    assert not {"highlight", "colours", "drawn"} & set(told) and not {"picture", "words"} & set(told["evaluations"][0])


@pytest.mark.parametrize("frames", [(), (3,)], ids=["picture", "video"])
def test_boxes_select_the_cells_of_their_own_image(frames):
    boxes = (((0, 2, 1, 3), (4, 5, 0, 6)), (), ((1, 4, 2, 6),))
    x = torch.zeros(3, 2, *frames, 5, 6)
    for index in inside(boxes):
        x[index] += 1
    expected = torch.zeros(3, 5, 6)
    expected[0, 0:2, 1:3] = expected[0, 4, :] = expected[2, 1:4, 2:6] = 1
    assert all(torch.equal(x.flatten(1, -3)[:, i], expected) for i in range(x.flatten(1, -3).shape[1]))
    assert list(inside(())) == list(inside(((), ()))) == []


def test_a_trace_holds_the_last_runs_and_no_more():
    trace = Trace(keep=3)
    assert trace.last is None and trace.before_last(0) is None
    runs = [run_of("dense") for _ in range(5)]
    trace.runs.extend(runs)
    assert trace.last is runs[-1] and [trace.before_last(back) for back in range(3)] == runs[:1:-1]
    with pytest.raises(ValueError, match="run is 3, but this trace has 3 runs; the earliest is 2"):
        trace.before_last(3)
    assert Trace().runs.maxlen == 8


def test_every_run_has_a_name_of_its_own_and_nothing_of_it_is_shared():
    first, second = run_of("dense"), RunRecord((1, 4, 8, 8), "euler", (1.0, 0.0))
    assert first.key != second.key and not second.evaluations and first.drawn.is_set()
    first.drawn.clear()
    assert second.drawn.is_set()
