import math

import pytest
import torch
from highlight_diffusion.engine.prediction.forecast import PERSISTENCE, Forecast, reach


def line(sigma: float) -> torch.Tensor:
    """Linear in log sigma: what an extrapolation must hit exactly."""
    return torch.arange(16.0).reshape(1, 1, 4, 4) + 3 * math.log(sigma)


@pytest.mark.parametrize("space", ["noise", "denoised"])
def test_undamped_linear_predictions_are_forecast_exactly(space, monkeypatch):
    monkeypatch.setitem(PERSISTENCE, space, 1.0)
    forecast, x = Forecast(space), torch.randn(1, 1, 4, 4)

    def denoised(sigma):
        return x - sigma * line(sigma) if space == "noise" else line(sigma)

    for index, sigma in enumerate((8.0, 4.0)):
        forecast.add_dense(index, x, denoised(sigma), sigma)
    assert torch.allclose(forecast.predict(2, x, 2.5), denoised(2.5), atol=1e-4)


def test_two_points_are_needed_and_only_two_are_kept():
    forecast = Forecast("denoised")
    assert not forecast.ready
    for index, sigma in enumerate((4.0, 3.0, 2.0)):
        forecast.add_dense(index, torch.zeros(1), torch.zeros(1), sigma)
    assert forecast.ready and [p.sigma for p in forecast.whole.points] == [3.0, 2.0]


def test_heuns_second_evaluation_replaces_the_first():
    forecast = Forecast("denoised")
    for index, (sigma, value) in enumerate(((4.0, 1.0), (3.0, 2.0), (3.0, 5.0))):
        forecast.add_dense(index, torch.zeros(1), torch.tensor([value]), sigma)
    assert [p.sigma for p in forecast.whole.points] == [4.0, 3.0]
    assert forecast.predict(3, torch.zeros(1), 3.0).item() == 5.0


def test_a_partial_evaluation_moves_the_inside_only():
    forecast, x = Forecast("denoised"), torch.zeros(1, 1, 4, 4)
    for index, sigma in enumerate((4.0, 2.0)):
        forecast.add_dense(index, x, torch.ones_like(x), sigma)
    boxes = (((0, 2, 0, 2),),)
    forecast.predict(2, x, 1.0)
    forecast.add_partial(2, x, torch.full_like(x, 3.0), 1.0, boxes)
    predicted = forecast.predict(3, x, 0.5, boxes)
    assert torch.equal(predicted[..., 2:, :], torch.ones(1, 1, 2, 4))
    assert torch.allclose(predicted[..., :2, :2], torch.tensor(3.0 + 2 * PERSISTENCE["denoised"]))


def test_extrapolation_is_bounded_and_never_backwards():
    assert reach(0.001, 2.0, 2.1) == 4.0
    assert reach(3.0, 2.0, 4.0) == 0.0
    assert reach(1.0, 2.0, 2.0) == 0.0
