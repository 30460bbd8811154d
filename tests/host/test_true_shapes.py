"""`run.py shapes` on a narrow network: the plans that it prints cost what the evaluations above them do."""

from dataclasses import replace

import pytest
from highlight_diffusion.bench import dit_shapes, shapes
from highlight_diffusion.bench.gpu.models import Shape


@pytest.fixture
def narrow(monkeypatch):
    """Z-Image's class in two heads, on 32x32 cells."""
    config = dit_shapes.Z_IMAGE | {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64, "n_layers": 1}
    own = replace(dit_shapes.TURBO["Z-Image Turbo"], shape=Shape("ZImage", config, 32, 16, 64, cfg=1.0), tokens=32)
    monkeypatch.setitem(dit_shapes.TURBO, "narrow", own)
    return "narrow"


def rows(lines, columns):
    """The cells of a table's rows, by the first of them; the rows have that many columns."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {(own[0], own[1]): own for own in cells if len(own) == columns}


def test_a_plan_costs_the_sum_of_its_evaluations(narrow):
    lines = dit_shapes.measure_transformer(narrow, repeats=1)
    kinds = {own[0]: float(own[1]) for own in rows(lines, 3).values() if own[1][0].isdigit()}
    plan = rows(lines, 5)["fast", "8"]
    letters = plan[2].strip("`")
    merged = next(cost for name, cost in kinds.items() if name.startswith("merged"))
    assert letters.count("M") == 1
    assert merged < 0.9 < kinds["recording for merging"] < 1.1
    dense = letters.count("D") - 1 + kinds["recording for merging"]
    assert float(plan[3]) == pytest.approx(8 / (dense + merged), abs=0.02)


def test_masked_plans_have_regional_evaluations(narrow):
    lines = dit_shapes.measure_transformer(narrow, repeats=1)
    assert "P" in "".join(own[2] for own in rows(lines, 5).values() if "mask" in own[0]), lines


def test_an_inpainting_plan_costs_its_dense_evaluations_and_windows():
    costs = {"recording": (1.0, 1.5), "mask of 5%": (0.05, 0.1), "mask of 10%": (0.1, 0.2)}
    lines = shapes.inpainting_plans(costs)
    plan = rows(lines, 5)["fast, mask of 10%", "20"]
    letters = plan[2].strip("`")
    assert letters.startswith("DDP"), letters
    dense, windows = letters.count("D"), letters.count("P")
    assert float(plan[3]) == pytest.approx(20 / (dense + 0.1 * windows), abs=0.006)
    assert float(plan[4]) == pytest.approx(20 / (1.5 * dense + 0.2 * windows), abs=0.006)
