"""What `run.py gpu` keeps, counts and writes, without ComfyUI; the parts themselves are run in tests/host."""

import json

import pytest
import torch
from highlight_diffusion.bench import gpu
from highlight_diffusion.bench.gpu.page import page
from highlight_diffusion.bench.gpu.parts import PARTS, TABLES, TRIAL
from highlight_diffusion.bench.gpu.records import Records
from highlight_diffusion.bench.gpu.setup import Setup
from highlight_diffusion.bench.gpu.suites import suite
from highlight_diffusion.bench.gpu.waits import OTHERS, Waits

CPU = Setup(torch.device("cpu"), True, 60.0)


def line(part: str, **row: object) -> str:
    return json.dumps({"part": part, "table": "seconds", "row": row})


def test_a_part_that_is_done_is_kept_and_one_that_failed_is_run_again(tmp_path):
    records = Records(tmp_path / "gpu.jsonl", "cuda")
    records.add("SD15", [line("SD15", seconds=1.0)], 2.0, "")
    records.add("SDXL", [line("SDXL", seconds=3.0)], 4.0, "stopped after 4 s")
    again = Records(tmp_path / "gpu.jsonl", "cuda")
    assert again.done("SD15") and not again.done("SDXL") and not again.done("SD3")
    assert again.rows("seconds") == [{"seconds": 1.0}, {"seconds": 3.0}]
    again.add("SDXL", [line("SDXL", seconds=5.0)], 4.0, "")
    assert again.rows("seconds") == [{"seconds": 1.0}, {"seconds": 5.0}]
    assert not Records(tmp_path / "gpu.jsonl", "cpu tiny").rows("seconds"), "of another device"


def test_the_page_has_a_column_for_every_name_and_says_what_is_missing(tmp_path):
    records = Records(tmp_path / "gpu.jsonl", "cuda")
    records.add(
        "SD15", [line("SD15", model="SD15", seconds=1.234), line("SD15", model="SD15", right=False, kinds="D.P")], 2.0, ""
    )
    text = page(records, ("SD15", "Flux"))
    assert "| model | seconds | right | kinds |" in text and "| SD15 | 1.23 | - | - |" in text
    assert "| SD15 | - | NO | `D.P` |" in text and "| Flux | not run |" in text and "trial" not in text
    assert "trial" in page(Records(tmp_path / "other.jsonl", "cpu tiny"), ())


def test_what_the_host_needs_before_it_goes_on_is_counted():
    x = torch.randn(4)
    with Waits(CPU.device) as waits:
        _ = x + 1, x.sum(), x[:2], x[torch.tensor([0, 1])]
    assert not waits.lines
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Waits(CPU.device) as waits:
            _ = x.sum().item(), x.nonzero(), x[x > 0], bool(x.sum() > 0)
        assert waits.lines == {OTHERS: 4}, "no line of the pack asked for them"


def test_tests_are_run_in_another_precision():
    (row,) = suite(CPU, ("tests/unit/test_time_axis.py",), ("bf16",))
    assert row["file"] == "unit/test_time_axis.py" and row["precision"] == "bf16" and row["passed"] > 0


def test_all_parts_fit_into_their_names_and_budgets():
    assert set(TRIAL) <= set(PARTS) and "seconds" in TABLES
    assert all(part.limit <= 240 for part in PARTS.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 2 and capsys.readouterr().out == gpu.NO_GPU + "\n"
