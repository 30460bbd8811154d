"""What a run tells a browser, and the pure functions of the frontend that read it, under node."""

import base64
import json
import os
import shutil
import subprocess

import pytest
import torch
from highlight_diffusion.engine.report.messages import MAX_CELLS, Messages, encoded, word_maps
from highlight_diffusion.engine.trace import Evaluation, RunRecord

SIGMAS = tuple(float(s) for s in torch.linspace(10, 0, 13))


def run_of(count: int = 12) -> RunRecord:
    """A run whose every third evaluation is dense, with a heatmap."""
    run = RunRecord((2, 4, 16, 24), "euler", SIGMAS, node_ids=("12:5",), words=("star", "circle"))
    for i in range(count):
        dense = i % 3 == 0
        kind = "dense" if dense else "partial" if i % 3 == 1 else "skipped"
        evaluation = Evaluation(i, i, SIGMAS[i], kind, "because", 1.0 if dense else 0.0, planned=kind, seconds=0.01 * i)
        if dense:
            evaluation.heatmap = torch.full((2, 1, 8, 12), i / 12)
            evaluation.words = torch.rand(2, 2, 8, 12)
        evaluation.picture = torch.full((2, 1, 16, 24, 3), 20 * i, dtype=torch.uint8)
        run.evaluations.append(evaluation)
    run.highlight = torch.zeros(2, 8, 12, dtype=torch.bool)
    run.highlight[:, 2:4, 3:6] = True
    run.seconds, run.completed = 1.25, True
    return run


def pieces_of(run: RunRecord) -> list[dict]:
    """The same run, told as it goes on, a message after every second evaluation."""
    evaluations, messages, told = list(run.evaluations), Messages(run, latest=True), []
    run.evaluations = []
    for i, evaluation in enumerate(evaluations):
        run.evaluations.append(evaluation)
        if i % 2:
            told.append(messages.next())
    return [*told, messages.next(done=True)]


def test_every_evaluation_is_told_once_and_only_the_newest_map():
    run = run_of()
    told = pieces_of(run)
    assert [cell["index"] for message in told for cell in message["cells"]] == list(range(12))
    assert all(len(message.get("heatmaps", {})) <= 1 and len(message["pictures"]["jpegs"]) == 1 for message in told[:-1])
    assert "done" not in told[-2] and told[-1]["done"]["ms"] == [e.seconds * 1000 for e in run.evaluations]
    assert told[-1]["cells"] == [] and "pictures" not in told[-1]  # nothing new
    json.dumps(told)


def test_maps_are_bytes_and_bounded():
    told = encoded(torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert told["shape"] == [1, 1, 3] and list(base64.b64decode(told["data"])) == [0, 128, 255]
    many = encoded(torch.rand(64, 300, 300))
    count, height, width = many["shape"]
    assert count == 16 and count * height * width <= MAX_CELLS and len(base64.b64decode(many["data"])) == count * height * width


def test_words_are_told_apart():
    told = word_maps(run_of())
    assert told["words"] == ["star", "circle"] and sorted(told["maps"]) == [0, 3, 6, 9]
    assert all(len(maps) == 2 and maps[0]["shape"] == [2, 8, 12] for maps in told["maps"].values())


def test_a_merge_map_is_told_where_there_is_one():
    run = run_of(3)
    run.evaluations[1].merged = torch.rand(2, 8, 12)
    told = Messages(run).next()
    assert list(told["merged"]) == [1] and told["merged"][1]["shape"] == [2, 8, 12]


def test_bug_a_merge_map_on_its_way_from_a_gpu_was_told():
    """Its copy is there when that of the same evaluation's picture is, which is made later, or when the run ends."""
    run = run_of(5)
    run.evaluations[3].merged = torch.rand(2, 8, 12)
    drawn, run.evaluations[3].picture, run.evaluations[4].picture = run.evaluations[3].picture, None, None
    messages = Messages(run)
    assert "merged" not in messages.next()
    run.evaluations[3].picture = drawn
    assert list(messages.next()["merged"]) == [3] and "merged" not in messages.next(done=True)
    run.evaluations[3].picture = None
    assert list(Messages(run).next(done=True)["merged"]) == [3]


def test_the_frontends_functions_pass_under_node(pack, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; on Debian: apt-get install nodejs")
    run = run_of()
    pieces = pieces_of(run)
    captured = [int(index) for message in pieces for index in message.get("heatmaps", {})]
    told = tmp_path / "told.json"
    told.write_text(json.dumps({"pieces": pieces, "whole": Messages(run).next(done=True), "captured": captured}))
    tests = sorted(str(path) for path in (pack / "tests" / "js").glob("*.test.js"))
    result = subprocess.run(
        [node, "--test", *tests], capture_output=True, text=True, env={**os.environ, "HIGHLIGHT_TOLD": str(told)}
    )
    assert result.returncode == 0, result.stdout + result.stderr
