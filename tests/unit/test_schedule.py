import pytest
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.schedule import dense_gaps, make_plan, step_of, traits_of
from hypothesis import given
from hypothesis import strategies as st

GAPS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)


@given(st.integers(0, 200), GAPS)
def test_gaps_fill_the_length_exactly(length, gaps):
    placed = dense_gaps(length, gaps)
    assert sum(placed) == length
    assert all(1 <= gap <= max(gaps) for gap in placed)


@given(st.integers(1, 100), GAPS, st.integers(2, 12))
def test_plan_is_dense_in_the_warm_up_and_at_the_end(steps, gaps, warmup):
    plan = make_plan(steps, HighlightConfig(interval=gaps, warmup=warmup), "euler")
    assert len(plan) == steps
    assert all(step.kind == "dense" for step in plan[:warmup])
    assert plan[-1].kind == "dense"
    assert all(step.reason for step in plan)


def test_constant_interval_computes_every_nth_step():
    plan = make_plan(14, HighlightConfig(interval=(4,), warmup=2), "euler")
    assert [step.kind[0] for step in plan] == list("dd" + "spsd" * 3)


def test_list_is_spread_over_the_schedule():
    gaps = dense_gaps(40, (1, 3, 5, 7, 9))
    assert gaps == sorted(gaps) and gaps[-1] == 9


def test_correction_is_planned_once_in_each_longer_gap():
    kinds = [s.kind for s in make_plan(30, HighlightConfig(interval=(4,)), "euler")]
    assert kinds.count("partial") == 26 // 4
    assert "partial" not in [s.kind for s in make_plan(30, HighlightConfig(interval=(4,), correct=False), "euler")]


def test_only_the_chosen_share_of_the_schedule_saves():
    plan = make_plan(20, HighlightConfig(interval=(3,)), "euler", first=5, last=14)
    assert all(step.kind == "dense" for step in plan[:9] + plan[14:])
    assert any(step.kind != "dense" for step in plan[9:14])


def test_inactive_settings_plan_dense_steps_only():
    for config in (HighlightConfig(enabled=False), HighlightConfig(interval=(1,))):
        assert {step.kind for step in make_plan(20, config, "euler")} == {"dense"}


@pytest.mark.parametrize(
    ("sampler", "space"),
    [("euler", "noise"), ("sample_dpmpp_2m", "noise"), ("euler_ancestral", "denoised"), ("dpmpp_2m_sde", "denoised")],
)
def test_forecast_space_suits_the_sampler(sampler, space):
    assert traits_of(sampler).space == space


def test_steps_are_found_by_bracketing_sigma():
    sigmas = (10.0, 5.0, 2.0, 0.5, 0.0)
    assert [step_of(s, sigmas) for s in (11.0, 10.0, 9.9995, 7.0, 5.0, 1.0, 0.5, 0.1)] == [0, 0, 0, 0, 1, 2, 3, 3]
