import math

import pytest
import torch
from highlight_diffusion.engine.extrapolation import extrapolation_ratio
from highlight_diffusion.engine.prediction.forecast import Forecast, Forecasts
from highlight_diffusion.engine.time_axis import DIFFUSION
from highlight_diffusion.engine.tuning import DAMPING


def line(sigma: float) -> torch.Tensor:
    """Linear in log sigma: what an extrapolation must hit exactly."""
    return torch.arange(16.0).reshape(1, 1, 4, 4) + 3 * math.log(sigma)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_undamped_linear_predictions_are_forecast_exactly(prediction, monkeypatch):
    monkeypatch.setitem(DAMPING, prediction, 1.0)
    forecast, x = Forecast(prediction), torch.randn(1, 1, 4, 4)

    def denoised(sigma):
        return x - sigma * line(sigma) if prediction == "eps" else line(sigma)

    for index, sigma in enumerate((8.0, 4.0)):
        forecast.add_dense(index, x, denoised(sigma), sigma)
    assert torch.allclose(forecast.predict(2, x, 2.5), denoised(2.5), atol=1e-4)


def test_bug_at_cfg_1_the_branch_that_is_not_computed_counted_for_the_error():
    """Its prediction is zeros, whose forecast is exact: adaptive gaps went by half of the error."""
    forecasts, x = Forecasts("x0", None, DIFFUSION), torch.zeros(1, 1, 4, 4)
    finite = torch.tensor(True)
    for index, sigma in enumerate((8.0, 4.0)):
        forecasts.add_dense(index, x, [line(sigma), torch.zeros_like(x)], sigma, finite)
    outputs = [2 * line(3.0), torch.zeros_like(x)]
    both, prompt = forecasts.errors(x, outputs, 3.0), forecasts.errors(x, outputs, 3.0, frozenset({1}))
    assert len(both) == 2 and len(prompt) == 1 and prompt[0] == both[0] > both[1] == 0
    boxes, computed = (((0, 4, 0, 4),),), [line(3.0) + 1, torch.ones_like(x)]
    (pasted, _), error = forecasts.paste(x, [line(3.0), torch.zeros_like(x)], computed, boxes, frozenset({1}))
    alone = forecasts.paste(x, [line(3.0)], computed[:1], boxes)[1]
    assert error == alone and torch.equal(pasted, computed[0])


def test_two_points_are_needed_and_only_two_are_kept():
    forecast = Forecast("x0")
    assert not forecast.ready
    for index, sigma in enumerate((4.0, 3.0, 2.0)):
        forecast.add_dense(index, torch.zeros(1), torch.zeros(1), sigma)
    assert forecast.ready and [p.sigma for p in forecast.frame.predictor.points] == [3.0, 2.0]


def test_heuns_second_evaluation_replaces_the_first():
    forecast = Forecast("x0")
    for index, (sigma, value) in enumerate(((4.0, 1.0), (3.0, 2.0), (3.0, 5.0))):
        forecast.add_dense(index, torch.zeros(1), torch.tensor([value]), sigma)
    assert [p.sigma for p in forecast.frame.predictor.points] == [4.0, 3.0]
    assert forecast.predict(3, torch.zeros(1), 3.0).item() == 5.0


def test_a_partial_evaluation_moves_the_inside_only():
    forecast, x = Forecast("x0"), torch.zeros(1, 1, 4, 4)
    for index, sigma in enumerate((4.0, 2.0)):
        forecast.add_dense(index, x, torch.ones_like(x), sigma)
    boxes = (((0, 2, 0, 2),),)
    forecast.predict(2, x, 1.0)
    forecast.add_regional(2, x, torch.full_like(x, 3.0), 1.0, boxes)
    predicted = forecast.predict(3, x, 0.5, boxes)
    assert torch.equal(predicted[..., 2:, :], torch.ones(1, 1, 2, 4))
    assert torch.allclose(predicted[..., :2, :2], torch.tensor(3.0 + 2 * DAMPING["x0"]))


def test_extrapolation_is_bounded_and_never_backwards():
    assert extrapolation_ratio(0.001, 2.0, 2.1) == 4.0
    assert extrapolation_ratio(3.0, 2.0, 4.0) == 0.0
    assert extrapolation_ratio(1.0, 2.0, 2.0) == 0.0
