import numpy as np
import pytest
from highlight_diffusion.bench.curves import Points, advantages, hull, ratio_at


def points(name: str, ratios: list[float], fidelities: list[float], prompts: int = 6) -> Points:
    spread = np.linspace(-1, 1, prompts)
    return Points(
        name, tuple(str(r) for r in ratios), np.repeat(np.array(ratios)[:, None], prompts, 1),
        np.array(fidelities)[:, None] + spread,
    )  # fmt: skip


def test_the_ratio_between_two_points_is_interpolated_in_its_logarithm():
    ratio, fidelity = np.array([1.0, 4.0]), np.array([50.0, 30.0])
    assert ratio_at(40.0, ratio, fidelity) == pytest.approx(2.0)
    assert np.isnan(ratio_at(29.0, ratio, fidelity)) and np.isnan(ratio_at(51.0, ratio, fidelity))


def test_strengths_that_are_slower_and_worse_are_passed_over():
    ratio, fidelity = hull(np.array([1.2, 1.5, 2.0, 3.0]), np.array([40.0, 35.0, 42.0, 30.0]))
    assert ratio.tolist() == [2.0, 3.0] and fidelity.tolist() == [42.0, 30.0]


def test_total_cost_not_the_mean_of_ratios_gives_a_curve_its_speed():
    two = Points("x", ("a",), np.array([[1.0, 4.0]]), np.array([[40.0, 30.0]]))
    ratio, fidelity = two.curve()
    assert ratio[0] == pytest.approx(2 / (1 + 0.25)) and fidelity[0] == 35.0
    assert two.curve(worst=True)[1][0] == 30.0
    assert two.curve(np.array([1, 1]))[0][0] == pytest.approx(4.0)


def test_an_advantage_is_the_quotient_at_equal_fidelity():
    ours, peer = points("ours", [1.5, 3.0], [50, 30]), points("peer", [1.2, 1.5, 2.0], [45, 40, 30])
    found = advantages(ours, peer)
    assert [a.setting for a in found] == ["1.5", "2.0"], "1.2 lies outside the compared range"
    middle = found[0]
    assert middle.times == pytest.approx(np.sqrt(1.5 * 3.0) / 1.5)
    assert middle.low <= middle.times <= middle.high
    assert found[1].times == pytest.approx(1.5)


def test_a_peer_more_faithful_than_all_of_ours_has_no_advantage_to_report():
    (found,) = advantages(points("ours", [2.0], [40]), points("peer", [1.5], [60]))
    assert np.isnan(found.times)


def test_a_peer_less_faithful_than_all_of_ours_meets_our_fastest():
    (found,) = advantages(points("ours", [1.5, 2.0], [50, 40]), points("peer", [1.6], [20]))
    assert found.times == pytest.approx(2.0 / 1.6)


def test_below_our_fastest_but_above_one_we_would_pass_over_is_no_gap():
    ours, peer = points("ours", [1.5, 2.9, 3.0], [50, 40, 45]), points("peer", [1.5], [43])
    (found,) = advantages(ours, peer)
    assert found.times == pytest.approx(3.0 / 1.5), "it was nan between the two"
