from highlight_diffusion.engine.placement.adaptive import AdaptiveGaps
from highlight_diffusion.engine.tuning import ADAPTIVE_GROWTH


def after(*errors, pace=5.0):
    gaps = AdaptiveGaps(pace)
    step, sigma = 0, 10.0
    gaps.computed(step, sigma, None)
    for error in errors:
        step, sigma = step + gaps.gap, sigma * 0.9**gaps.gap
        gaps.computed(step, sigma, error)
    return gaps


def test_good_forecasts_lengthen_the_gaps_bad_ones_shorten_them():
    assert [after(*[1e-4] * n).gap for n in range(4)] == [
        1,
        1 + ADAPTIVE_GROWTH,
        1 + 2 * ADAPTIVE_GROWTH,
        1 + 3 * ADAPTIVE_GROWTH,
    ]
    assert after(1e-4, 1e-4, 0.3).gap < after(1e-4, 1e-4).gap


def test_nothing_is_skipped_while_forecasts_are_wrong():
    assert after(0.9, 0.9, 0.9).gap == 1


def test_a_higher_pace_allows_more():
    assert after(0.02, 0.03, pace=8.0).gap > after(0.02, 0.03, pace=1.5).gap


def test_a_bad_probe_ends_the_gap():
    gaps = after(1e-4, 1e-4)
    assert not gaps.due(gaps.last_dense + 2)
    gaps.probe(gaps.last_sigma * 0.8, 0.9)
    assert gaps.due(gaps.last_dense + 2)
