import math

import pytest
import torch
from highlight_diffusion.demo.diffusion import normal_sigmas
from highlight_diffusion.demo.plain import euler
from highlight_diffusion.engine.prediction import corrector
from highlight_diffusion.engine.prediction.forecast import Forecast, Forecasts
from highlight_diffusion.engine.prediction.history import PREDICTORS
from highlight_diffusion.engine.prediction.predictor import DampedLinear, Point
from highlight_diffusion.engine.prediction.response import fresh_noise, impulse_response
from highlight_diffusion.engine.time_axis import DIFFUSION

SIGMAS = normal_sigmas(12).tolist()


def two_step(denoise, x, sigmas=SIGMAS):
    """DPM-Solver++(2M): each step leans on the prediction before."""
    old = None
    for i, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        new = denoise(x, sigma)
        keep, mixed = following / sigma, new
        if old is not None and following > 0:
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / following)
            mixed = new + (new - old) / (2 * r)
        x, old = keep * x + (1 - keep) * mixed, new
    return x


SAMPLERS = {"euler": lambda denoise, x: euler(denoise, x, SIGMAS), "two_step": two_step}


def test_eulers_response_is_its_step_lengths():
    response = impulse_response(SAMPLERS["euler"], "eps")
    for k in range(len(SIGMAS)):
        for j in range(len(SIGMAS) - 1):
            expected = SIGMAS[j + 1] - SIGMAS[j] if j < k else 0.0
            assert response.weights[k][j] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_only_a_one_step_sampler_forgets(prediction):
    assert impulse_response(SAMPLERS["euler"], prediction).one_step
    assert not impulse_response(SAMPLERS["two_step"], prediction).one_step


def test_a_sampler_that_is_not_linear_has_no_response():
    assert impulse_response(lambda denoise, x: denoise(denoise(x, 2.0) ** 2, 1.0) ** 2, "x0") is None


def test_a_sampler_that_adds_noise_has_no_response():
    assert impulse_response(lambda denoise, x: denoise(x, 2.0) + torch.randn_like(x), "x0") is None


def test_a_sampler_that_chooses_its_steps_has_no_response():
    def adaptive(denoise, x):
        for i in range(len(x) + 1):
            x = denoise(x, 5.0 - i)
        return x

    assert impulse_response(adaptive, "x0") is None


def run(sampler: str, plan: str, truth, revise: bool = True, predictor: str = "damped linear") -> torch.Tensor:
    """Sample with predictions `truth(sigma)`, computed at "d", forecast at "s"."""
    response = impulse_response(SAMPLERS[sampler], "x0") if revise else None
    forecast, index = Forecast("x0", response, DIFFUSION, predictor), 0

    def denoise(x, sigma):
        nonlocal index
        index += 1
        if plan[index - 1] == "s":
            return forecast.predict(index - 1, x, sigma)
        return forecast.add_dense(index - 1, x, truth(sigma), sigma)

    return SAMPLERS[sampler](denoise, torch.full((1, 1, 2, 2), 14.0))


def parabola(sigma: float) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), 3 + math.log(sigma) + 0.2 * math.log(sigma) ** 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_gap_got_wrong_is_made_up_for_at_its_end(sampler, monkeypatch):
    """Predictions on a parabola: after the gap the sampler is where it would be without one."""
    monkeypatch.setattr(corrector, "TRUSTED_SHARE", math.inf)
    truncated = SIGMAS[:11] + [SIGMAS[10] / 2]  # not to 0, where the last prediction alone decides
    monkeypatch.setitem(SAMPLERS, "euler", lambda denoise, x: euler(denoise, x, truncated))
    monkeypatch.setitem(SAMPLERS, "two_step", lambda denoise, x: two_step(denoise, x, truncated))
    dense, plan = run(sampler, "d" * 11, parabola), "dddssdddddd"
    left = (run(sampler, plan, parabola, revise=False) - dense).abs().max()
    revised = (run(sampler, plan, parabola) - dense).abs().max()
    assert left > 1e-2
    assert revised < 1e-4 * left if sampler == "euler" else revised < 1e-2 * left


def test_dense_runs_are_handed_through_untouched():
    response = impulse_response(SAMPLERS["two_step"], "eps")
    forecast = Forecast("eps", response)
    for index, sigma in enumerate(SIGMAS[:-1]):
        denoised = torch.randn(1, 1, 2, 2)
        assert forecast.add_dense(index, torch.randn(1, 1, 2, 2), denoised, sigma) is denoised


def test_the_further_off_the_less_is_revised():
    correction = corrector.DeferredCorrection(None, "x0")
    value = torch.ones(2, 1, 4, 4)
    off = torch.stack([torch.full((1, 4, 4), 0.001), torch.full((1, 4, 4), 0.3)])
    near, far = correction._trust(off, value, 1.0).flatten().tolist()
    assert near > 0.99 and far < 0.02


def test_a_gap_much_longer_than_what_came_before_it_is_not_revised():
    """Seen on the demo model: a first gap of three after a warm-up of three turned 48 dB into 29."""
    plain, revised = (run("euler", "dddssssddddd", parabola, revise=r) for r in (False, True))
    assert torch.equal(plain, revised)


def ancestral(eta: float, sigmas=SIGMAS):
    """Euler's steps with a share of fresh noise: none at eta 0, as much as the stochastic differential equation has at 1."""

    def sample(denoise, noise, x):
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            up = eta * following * (1 - (following / sigma) ** 2) ** 0.5
            down = (following**2 - up**2) ** 0.5
            denoised = denoise(x, sigma)
            x = denoised + (x - denoised) * down / sigma + (noise() * up if up else 0.0)
        return x

    return sample


def test_fresh_noise_is_what_a_sampler_adds():
    steps = SIGMAS[:-1]
    exact = [1 - (b / a) ** 2 for a, b in zip(steps, steps[1:], strict=False)]
    assert fresh_noise(ancestral(1.0), steps) == pytest.approx(exact, abs=1e-5)
    assert fresh_noise(ancestral(0.0), steps) == pytest.approx([0.0] * len(exact), abs=1e-6)
    assert fresh_noise(ancestral(0.5), steps) == pytest.approx([e / 4 for e in exact], abs=1e-5)


def test_a_sampler_that_starts_afresh_keeps_none_of_its_noise():
    def consistency(denoise, noise, x):
        for sigma, following in zip(SIGMAS, SIGMAS[1:], strict=False):
            x = denoise(x, sigma) + following * noise()
        return x

    assert fresh_noise(consistency, SIGMAS[:-1]) == pytest.approx([1.0] * (len(SIGMAS) - 2))


def test_fresh_noise_of_a_sampler_that_leaves_steps_out_is_not_known():
    assert fresh_noise(ancestral(1.0, SIGMAS[::2]), SIGMAS[:-1]) is None


class LongMemory(DampedLinear):
    """Predicts as its base does, and keeps four points."""

    def copy(self):
        other = LongMemory(self.prediction, self.axis)
        other.points = list(self.points)
        return other

    @property
    def ready(self):
        return len(self.points) >= 2

    def add(self, sigma, value):
        self.points = [*self.points, Point(sigma, value)][-4:]

    def predict(self, sigma):
        recent = DampedLinear(self.prediction, self.axis)
        recent.points = self.points[-2:]
        return recent.predict(sigma)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_predictor_is_a_row_and_may_keep_more_points(sampler, monkeypatch):
    plan = "dddssdssdddd"
    linear = run(sampler, plan, parabola)
    monkeypatch.setitem(PREDICTORS, "long memory", LongMemory)
    assert torch.equal(run(sampler, plan, parabola, predictor="long memory"), linear)


def test_a_predictor_that_there_is_not_is_named_before_anything_is_computed():
    with pytest.raises(ValueError, match='predictor is "parabola"; choose one of damped linear'):
        Forecasts("x0", None, DIFFUSION, "parabola")
