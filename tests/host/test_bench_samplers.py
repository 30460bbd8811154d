"""The comparison with better samplers: each is judged at the evaluations that it is paid, by the distance to the limit."""

import pytest
from highlight_diffusion.bench.samplers import Samplers, report

pytestmark = pytest.mark.beside


def test_samplers_and_ours_are_judged_at_equal_evaluations(tmp_path):
    bench = Samplers("mmdit", 1, 12, tmp_path)
    bench.of("euler", "simple", 4)
    bench.of("dpmpp_2m", "karras", 4)
    rows = [line.split(",") for line in (tmp_path / "samplers.csv").read_text().splitlines()[1:]]
    plans = {(row[1], row[4], row[5]): row[8] for row in rows}
    assert set(plans) == {("euler", "dense", "4"), ("euler", "ours", "8"), ("euler", "ours", "12"), ("dpmpp_2m", "dense", "4")}
    assert plans["euler", "dense", "4"] == "DDDD"
    assert all(4 <= plan.count("D") <= 5 for plan in plans.values()), "ours has as many, but for what care adds in few steps"
    before = (tmp_path / "samplers.csv").read_text()
    bench.of("euler", "simple", 4)
    assert (tmp_path / "samplers.csv").read_text() == before, "what is there is not sampled again"
    told = "\n".join(report(tmp_path / "samplers.csv"))
    assert "| euler | simple, ours, 2 times as many steps |" in told and "| dpmpp_2m | karras, dense |" in told
