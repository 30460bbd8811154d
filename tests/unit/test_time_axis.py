"""The axes on which predictions are smooth."""

import math

import pytest
from highlight_diffusion.engine.time_axis import DIFFUSION, FLOW
from hypothesis import given
from hypothesis import strategies as st

AXES = {"noise added": (DIFFUSION, 1000.0), "flow": (FLOW, 1.0)}  # with the highest sigma there is


@pytest.mark.parametrize("kind", AXES)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_positions_rise_as_the_noise_falls(kind, first, second):
    axis, top = AXES[kind]
    high, low = sorted((first * top, second * top), reverse=True)
    assert math.isfinite(axis.half_log_snr(high)) and math.isfinite(axis.half_log_snr(low))
    assert axis.half_log_snr(low) >= axis.half_log_snr(high)
    if low > 1e-6 and high > low * 1.001:
        assert axis.half_log_snr(low) > axis.half_log_snr(high)


@given(st.floats(1e-3, 100.0), st.floats(1.1, 10.0))
def test_a_factor_of_noise_is_the_same_distance_everywhere(sigma, factor):
    assert DIFFUSION.half_log_snr(sigma / factor) - DIFFUSION.half_log_snr(sigma) == pytest.approx(math.log(factor))


@given(st.floats(1e-4, 0.5))
def test_a_flow_is_placed_where_the_same_share_of_noise_is_placed_otherwise(sigma):
    """x = (1 - s) x0 + s noise is, but for its scale, x0 + s / (1 - s) noise."""
    assert FLOW.half_log_snr(sigma) == pytest.approx(DIFFUSION.half_log_snr(sigma / (1 - sigma)), abs=0.04)


def test_a_flow_starts_at_a_finite_place_near_its_second_step():
    """Without a ceiling above 1 it would start infinitely far from all that follows."""
    assert FLOW.half_log_snr(0.98) - FLOW.half_log_snr(1.0) == pytest.approx(math.log(2 / 0.98))


def test_a_sigma_above_a_flow_s_start_has_a_finite_place_before_it():
    """As in a schedule that was typed by hand, which once failed there."""
    assert math.isfinite(FLOW.half_log_snr(14.6)) and FLOW.half_log_snr(14.6) < FLOW.half_log_snr(1.0)
