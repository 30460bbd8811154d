"""How the first evaluation that is not finite is found, and what is done about it."""

import json
import math

import pytest
import torch
from highlight_diffusion.demo.diffusion import normal_sigmas
from highlight_diffusion.demo.plain import euler
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.finite import Finiteness, all_finite, number_or_none
from highlight_diffusion.engine.job import Request
from highlight_diffusion.engine.partial.unet_window import windows_of
from highlight_diffusion.engine.placement.adaptive import AdaptiveGaps
from highlight_diffusion.engine.prediction.forecast import Forecasts
from highlight_diffusion.engine.prediction.response import impulse_response
from highlight_diffusion.engine.report.numbers import as_line, as_text, report
from highlight_diffusion.engine.run import SamplingRun
from highlight_diffusion.engine.setup import start_run
from highlight_diffusion.engine.stopwatch import Stopwatch
from highlight_diffusion.engine.time_axis import DIFFUSION
from highlight_diffusion.engine.trace import Evaluation, RunRecord

SIGMAS = tuple(normal_sigmas(12).tolist())
SHAPE = (2, 4, 8, 8)
VALUES = [math.nan, math.inf, -math.inf]


@pytest.fixture(params=[False, True], ids=["known at once", "known one evaluation late"])
def late(request, monkeypatch) -> bool:
    """As on a GPU, where an evaluation is still under way when its call returns."""
    if request.param:
        monkeypatch.setattr(Stopwatch, "done", False)
    return request.param


def engine(config: HighlightConfig) -> SamplingRun:
    def respond(prediction):
        return impulse_response(lambda answer, x: euler(answer, x, SIGMAS), prediction)

    return start_run(config, RunRecord(SHAPE, "euler", SIGMAS), 2, windows_of(SHAPE[-2:]), respond=respond)


def sampled(
    config: HighlightConfig, spoil: int | None, value: float = math.nan, branch: int = 0
) -> tuple[RunRecord, list, list]:
    """A run whose evaluation `spoil` is not finite in one cell of one picture of one branch; its trace, what the model said
    and what the sampler was answered, by evaluation."""
    run, said, answered = engine(config), {}, []
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def dense(job):
        outputs = [x.tanh() + target, 0.5 * x.tanh() + target]
        if job.evaluation.index == spoil:
            outputs[branch][1, 2, 3, 4] = value
        said[job.evaluation.index] = outputs
        return outputs

    x = 10 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    for sigma, following in zip(SIGMAS, SIGMAS[1:], strict=False):
        asked = run.state.finite.sigma_of(torch.tensor([sigma, sigma]), x)
        outputs = run.evaluate(Request(x, asked, "same"), dense)
        answered.append(outputs)
        x = (x + (x - outputs[0]) / sigma * (following - sigma)).nan_to_num(0.0, 1.0, -1.0)
    run.settle()
    return run.state.record, said, answered


@pytest.mark.parametrize("config", [HighlightConfig(interval="adaptive", pace=9.0), HighlightConfig(interval=(3,), warmup=3)])
@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_is_not_finite_is_passed_on_as_it_is_and_the_rest_is_dense(late, config, branch, value):
    run, said, answered = sampled(config, None)
    dense = [e.index for e in run.evaluations if e.kind == "dense"]
    repaid = [i for i in dense if not all(torch.equal(a, b) for a, b in zip(said[i], answered[i], strict=True))]
    assert len(dense) < len(run.evaluations) and repaid and run.not_finite is None
    for spoil in dense:
        run, said, answered = sampled(config, spoil, value, branch)
        assert run.not_finite == spoil
        for index in range(spoil, len(run.evaluations)):
            assert run.evaluations[index].kind == "dense"
            for own, answer in zip(said[index], answered[index], strict=True):
                assert torch.equal(own.nan_to_num(7), answer.nan_to_num(7)), (spoil, index)
        told = report(run)
        json.dumps({**run.as_dict(), "report": told}, allow_nan=False)
        words = f"evaluation {spoil + 1} of {len(run.evaluations)} is the first that was not finite (dense, step {spoil}"
        assert words in as_line(run) and words in as_text(told)


def test_a_forecast_for_a_latent_that_is_not_finite_is_not_made(late):
    run = engine(HighlightConfig(interval=(3,), warmup=3, correct="never", forecast="denoised"))
    for index, sigma in enumerate(SIGMAS[:-1]):
        x = torch.full(SHAPE, math.nan if index == 4 else 1.0)
        assert run.state.plan.steps[4].kind == "skipped"
        sigma = run.state.finite.sigma_of(torch.tensor([sigma]), x)
        run.evaluate(Request(x, sigma, "same"), lambda job, x=x: [2 * x, x])
    run.settle()
    record = run.state.record
    assert [e.kind for e in record.evaluations[4:]] == ["dense"] * (len(SIGMAS) - 5)
    assert record.not_finite == 4
    assert record.evaluations[4].reason.endswith("; the latent it was given is not finite")


def test_looking_does_not_wait_for_the_device():
    """Tensors on "meta" have no values to read: whatever waited for one would fail."""
    finite, x = Finiteness(RunRecord(SHAPE, "euler", SIGMAS)), torch.empty(SHAPE, device="meta")
    flag = finite.see(Evaluation(0, 0, 1.0, "dense", "as planned", 1.0), x, x)
    assert flag.device.type == "meta" and flag.dtype == torch.bool and finite.pending is not None
    run = engine(HighlightConfig(interval=(3,), warmup=3))
    assert run.evaluate(Request(x, SIGMAS[0]), lambda job: [x, x]) == [x, x]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_sigma_is_read_as_it_is_in_every_dtype(dtype):
    finite, sigma = Finiteness(RunRecord(SHAPE, "euler", SIGMAS)), torch.tensor([3.14159, 2.0], dtype=dtype)
    assert finite.sigma_of(sigma, torch.zeros(SHAPE, dtype=dtype)) == float(sigma[0]) and finite.latent_is_finite
    finite.sigma_of(sigma, torch.full(SHAPE, math.inf, dtype=dtype))
    assert not finite.latent_is_finite and finite.lost


def test_finite_is_what_json_has():
    assert [number_or_none(v) for v in (0.5, None, *VALUES)] == [0.5, None, None, None, None]
    assert all_finite(torch.zeros(2), torch.ones(3)) and not any(
        all_finite(torch.zeros(2), torch.tensor([1.0, v])) for v in VALUES
    )


@pytest.mark.parametrize("error", VALUES, ids=str)
def test_an_error_that_is_not_finite_ends_a_gap(error):
    """Of finite predictions too, where their squares are too large for a number."""
    gaps = AdaptiveGaps(5.0)
    for step, sigma in enumerate((10.0, 9.0, 8.0)):
        gaps.computed(step, sigma, 1e-5)
    assert gaps.gap > 1
    gaps.probe(7.0, error)
    assert gaps.gap == 1
    gaps.gap = 3
    gaps.computed(5, 6.0, error)
    assert gaps.gap == 1


def test_large_values_of_half_precision_have_a_finite_error():
    """300 squared is more than float16 has."""
    x = torch.full(SHAPE, 300.0, dtype=torch.float16)
    forecasts = Forecasts("x0", None, DIFFUSION)
    for index, sigma in enumerate(SIGMAS[:2]):
        forecasts.add_dense(index, x, [0.5 * x], sigma, torch.tensor(True))
    guess = forecasts.predict(2, x, SIGMAS[2])
    _, error = forecasts.paste(x, guess, [0.25 * x], (((0, 4, 0, 4),),) * 2)
    assert float(error) == pytest.approx(1.0, rel=0.01)
