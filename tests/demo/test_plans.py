"""`run.py plans`: what is drawn, and how a table of it is read."""

import pytest
from highlight_diffusion.bench.compare import Table
from highlight_diffusion.bench.plans import Result, drawn, mean_square, report
from highlight_diffusion.engine.tuning import LONGEST_GAP


@pytest.mark.parametrize("steps", [12, 20, 30])
def test_what_is_drawn_are_plans_that_something_is_expected_of(steps):
    plans = drawn(steps, seed=7)
    assert len(set(plans)) == len(plans) and plans == drawn(steps, seed=7) != drawn(steps, seed=8)
    for plan in plans:
        assert len(plan) == steps and plan.startswith("DD") and set(plan) <= {"D", "."}
        assert "." * LONGEST_GAP not in plan
    assert steps < 20 or len(plans) >= 40


def test_the_worst_pictures_count_most_in_what_is_measured():
    assert mean_square([20.0, 20.0]) == pytest.approx(20.0)
    assert 10 < mean_square([10.0, 40.0]) < 14


def test_a_table_says_how_plans_rank_and_how_far_expectations_are_off(tmp_path):
    table = Table(tmp_path / "plans.csv", Result)
    for plan, measured, expected in (("DD.D", 30.0, 31.0), ("DD..", 20.0, 21.0), ("DDD.", 25.0, 22.0), ("DDDD", 22.0, 25.0)):
        for prompt in range(2):
            table.add(Result("unet", "euler", 4, plan, prompt, measured, expected))
    [row] = report(tmp_path / "plans.csv")[2:]
    assert row == "| unet, euler, 4 | 4 | 0.80 | +0.5, 2.2 | -1.8, +2.4 |"
