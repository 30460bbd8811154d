from dataclasses import replace
from itertools import combinations
from unittest import mock

import numpy as np
import pytest
import torch
from highlight_diffusion.demo.diffusion import flow_sigmas, normal_sigmas
from highlight_diffusion.demo.plain import euler
from highlight_diffusion.engine.config import PACES, PRESETS, HighlightConfig
from highlight_diffusion.engine.placement.context import Context
from highlight_diffusion.engine.placement.errors import ErrorModel
from highlight_diffusion.engine.placement.path import cheapest, said_of
from highlight_diffusion.engine.placement.plan import Plan
from highlight_diffusion.engine.prediction import drift
from highlight_diffusion.engine.prediction.drift import euler_moves, gaps
from highlight_diffusion.engine.prediction.forecast import Forecast
from highlight_diffusion.engine.prediction.propagation import Answers, Propagation
from highlight_diffusion.engine.prediction.response import impulse_response
from highlight_diffusion.engine.profile import Profile, ProfiledRun, bundled
from highlight_diffusion.engine.time_axis import DIFFUSION, FLOW, TimeAxis
from highlight_diffusion.engine.tuning import CAREFUL_DB, WIDEST
from hypothesis import given, settings
from hypothesis import strategies as st
from test_response import SAMPLERS, SIGMAS

SCHEDULES = {DIFFUSION: normal_sigmas, FLOW: flow_sigmas}


OWN = {axis: replace(bundled(axis), bundled=False) for axis in SCHEDULES}  # the demo models' own, as another model has its


def errors_of(steps: int, axis=DIFFUSION, profiles=OWN) -> ErrorModel:
    sigmas = tuple(SCHEDULES[axis](steps).tolist()[:-1])
    return ErrorModel(sigmas, profiles[axis], "x0" if axis.is_flow else "eps")


def plan_of(steps: int, axis=DIFFUSION, regional: bool = False, **config) -> Plan:
    errors = errors_of(steps, axis)
    return Plan(Context.of(errors.sigmas, HighlightConfig(**config), axis=axis, regional=regional, errors=errors))


def careful_plan(steps: int, unknown: bool = False, axis=FLOW, **config) -> tuple[Plan, Context]:
    """A plan by the profile of another model."""
    errors = errors_of(steps, axis, {axis: bundled(axis)})
    made = Context.of(errors.sigmas, HighlightConfig(**config), axis=axis, regional=False, errors=errors)
    context = replace(made, unknown=unknown)
    return Plan(context), context


def kinds(plan: Plan) -> str:
    return "".join(step.kind[0] for step in plan.steps)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_eulers_moves_are_its_impulse_response(prediction):
    response = impulse_response(SAMPLERS["euler"], prediction)
    assert np.allclose(euler_moves(SIGMAS[:-1], prediction), response.weights, atol=1e-5)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_drift_is_what_the_engines_own_forecasts_do_to_the_sampler(sampler, prediction):
    """Predictions that do not depend on the state, as long as their sketch: what the sampler makes of a gap is exact."""
    n, draw = len(SIGMAS) - 1, torch.Generator().manual_seed(0)
    values = torch.randn(n, 1, 8, 1, 1, generator=draw).cumsum(0) * 0.1 + 1
    response = impulse_response(SAMPLERS[sampler], prediction)

    def run(p: int = n, a: int = n, b: int = n) -> list[torch.Tensor]:
        """The states that evaluations are asked about, and the result, with forecasts in the gap alone."""
        forecast, states = Forecast(prediction), []

        def answer(x: torch.Tensor, sigma: float) -> torch.Tensor:
            k = len(states)
            states.append(x)
            if a < k < b:
                return forecast.predict(k, x, sigma)
            denoised = x - sigma * values[k] if prediction == "eps" else values[k]
            return forecast.add_dense(k, x, denoised, sigma) if k in (p, a) else denoised

        result = SAMPLERS[sampler](answer, torch.ones(1, 8, 1, 1))
        return [*states, result]

    sketches = values.flatten(1).numpy()[None] / 8**0.5
    found = gaps(sketches, np.array(response.weights), Answers(SIGMAS[:-1], prediction, DIFFUSION, 1.0), n, False).drift
    dense = run()
    gapped = ((1, 3, 6), (6, 8, n)) if prediction == "x0" else ()  # of noise the value at a counts as off the path
    for p, a, b in ((0, 1, 3), (1, 2, 6), (4, 5, 9), (7, 8, n), *gapped):
        true = (run(p, a, b)[b] - dense[b]).square().mean()
        assert found[a, a - p - 1, b - a - 1] == pytest.approx(float(true), rel=1e-3)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_a_gap_costs_what_the_engine_makes_of_it_where_pictures_are_normally_distributed(sampler, prediction, corrected):
    """The model answers to a state that is off as the best denoiser of pictures of one variance would, in every direction."""
    n, draw, variance = len(SIGMAS) - 1, torch.Generator().manual_seed(1), 1e-3
    time = torch.tensor([DIFFUSION.half_log_snr(sigma) for sigma in SIGMAS[:-1]])[:, None]
    bends = torch.cat([torch.sin(time * (0.2 + 0.2 * i) + i) for i in range(6)], 1) @ torch.randn(6, 8, generator=draw)
    values = (5.0 + 0.03 * bends).double().reshape(n, 1, 8, 1, 1)
    response = impulse_response(SAMPLERS[sampler], prediction)
    on_path: list[torch.Tensor] = []

    def run(p: int = n, a: int = n, b: int = n) -> torch.Tensor:
        """The result, with forecasts in the gap alone."""
        forecast, states = Forecast(prediction, response if corrected else None), []

        def answer(x: torch.Tensor, sigma: float) -> torch.Tensor:
            k = len(states)
            states.append(x)
            if a < k < b:
                return forecast.predict(k, x, sigma)
            path = on_path[k] if on_path else x
            denoised = path - sigma * values[k] if prediction == "eps" else values[k]
            denoised = denoised + variance / (variance + sigma**2) * (x - path)
            return forecast.add_dense(k, x, denoised, sigma) if k in (p, a) or k >= b else denoised

        result = SAMPLERS[sampler](answer, torch.ones(1, 8, 1, 1, dtype=torch.float64))
        on_path[:] = on_path or states
        return result

    sketches = values.flatten(1).numpy()[None] / 8**0.5
    moves = np.array(response.weights)
    answers = Answers(SIGMAS[:-1], prediction, DIFFUSION, variance)
    counted_on = gaps(sketches, moves, answers, n, corrected).result

    def lucky(own: Answers, *args) -> Propagation:
        return replace(propagation(own, *args), at_least=np.zeros_like(moves))

    propagation = Answers.propagation
    with mock.patch.object(Answers, "propagation", lucky):
        found = gaps(sketches, moves, answers, n, corrected).result
    dense = run()
    for p, a, b in ((1, 2, 4), (2, 3, 6), (4, 5, 8), (6, 7, 10), (n - 4, n - 3, n)):
        at = a, a - p - 1, b - a - 1
        true = float((run(p, a, b) - dense).square().mean())
        beyond = 10 * np.log10(found[at] / true)
        learnt = 3.0 if prediction == "eps" and corrected else 0.05  # by the corrector, of the value at b; not reckoned with
        assert -0.05 < beyond < learnt, (p, a, b)
        assert counted_on[at] >= found[at]
        assert sampler != "euler" or counted_on[at] == pytest.approx(found[at], rel=1e-3) or learnt > 1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_under_a_multistep_sampler_a_gap_is_forecast_from_what_its_start_would_have_been_on_the_path(sampler):
    """Noise that is computed where a gap has taken the state off; pictures spread as widely there as the noise."""
    n, a, b = len(SIGMAS) - 1, 2, 4
    time = torch.tensor([DIFFUSION.half_log_snr(sigma) for sigma in SIGMAS[:-1]])
    values = (5.0 + 0.02 * time[:, None] ** 2 * torch.tensor([1.0, -2.0, 0.5, 3.0])).double().reshape(n, 1, 4, 1, 1)
    response = impulse_response(SAMPLERS[sampler], "eps")
    on_path: list[torch.Tensor] = []

    def run(end: int) -> tuple[Forecast, list[torch.Tensor]]:
        """Forecasts between a and `end`."""
        forecast, states = Forecast("eps", response), []

        def answer(x: torch.Tensor, sigma: float) -> torch.Tensor:
            k = len(states)
            states.append(x)
            if a < k < end or k > b:
                return forecast.predict(k, x, sigma)
            path = on_path[k] if on_path else x
            share = sigma**2 / (sigma**2 + min(sigma**2, WIDEST))
            return forecast.add_dense(k, x, path - sigma * values[k] + (1 - share) * (x - path), sigma)

        SAMPLERS[sampler](answer, torch.ones(1, 4, 1, 1, dtype=torch.float64))
        return forecast, states

    on_path[:] = run(a)[1]
    forecast, states = run(b)
    sigma, newest = SIGMAS[b], forecast.frame.predictor.points[-1]
    share = sigma**2 / (sigma**2 + min(sigma**2, WIDEST))
    raw = values[b] + share / sigma * (states[b] - on_path[b])
    assert newest.sigma == sigma and (raw - values[b]).abs().max() > 1e-3
    if sampler == "euler":
        assert torch.equal(newest.value, raw) or torch.allclose(newest.value, raw)
    else:
        assert (newest.value - values[b]).abs().max() < 0.5 * (raw - values[b]).abs().max()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_a_profile_of_small_steps_tells_what_a_sampler_of_large_ones_is_given(sampler, prediction):
    """Pictures of one variance, whose path is known exactly; large steps leave it, and the model answers to where they are."""
    variance = 1e-4  # below that of the noise in every step
    spread, noise = np.sqrt(variance), np.array(SIGMAS[:-1])
    start = np.random.default_rng(2).standard_normal(8) * noise[0]
    on_path = start * np.sqrt((variance + noise**2) / (variance + noise[0] ** 2))[:, None]
    images = variance / (variance + noise**2)[:, None] * on_path
    given, states = [], []

    def answer(x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised = variance / (variance + sigma**2) * x
        states.append(x)
        given.append((x - denoised) / sigma if prediction == "eps" else denoised)
        return denoised

    SAMPLERS[sampler](answer, torch.tensor(start).reshape(1, 8, 1, 1))
    moves = np.array(impulse_response(SAMPLERS[sampler], prediction).weights)
    answers = Answers(SIGMAS[:-1], prediction, DIFFUSION, variance)
    found = answers.on_own_path(images[None], ((on_path - images) / noise[:, None])[None], moves)[0]
    true = torch.stack(given).flatten(1).numpy()
    assert np.allclose(found, true, rtol=1e-3, atol=1e-5 * np.abs(true).max())
    assert not np.allclose(torch.stack(states).flatten(1).numpy(), on_path, rtol=1e-3) and spread < noise.min()


def test_what_was_computed_off_the_path_costs_the_next_gap():
    """In noise prediction, where the denoised image is held: the value at the end of a gap is off by what the state is."""
    errors = errors_of(20)
    with mock.patch.object(drift, "_stale", lambda *args: 0.0):
        on_the_path = errors_of(20).costs
    assert np.allclose(errors.costs[:, 0, 1:], on_the_path[:, 0, 1:])  # after a dense step all is as it was
    worse = errors.costs[2:, 1:4, 1:4] / on_the_path[2:, 1:4, 1:4]
    assert np.nanmin(worse) >= 1 and np.nanmax(np.where(np.isfinite(worse), worse, 1)) > 1.5
    flow = errors_of(20, FLOW).costs
    with mock.patch.object(drift, "_stale", lambda *args: 0.0):
        assert np.array_equal(flow, errors_of(20, FLOW).costs)  # there the denoised image is what is forecast


def test_the_corrector_leaves_nothing_of_a_parabola():
    """Forecasts miss a parabola; through its three points it is known exactly."""
    time = np.array([DIFFUSION.half_log_snr(sigma) for sigma in SIGMAS[:-1]])
    values = 1e-3 * np.stack([time**2, time, np.ones_like(time)], -1)[None] + np.array([1.0, 1.0, 1.0])

    def at(corrected: bool) -> np.ndarray:
        answers = Answers(SIGMAS[:-1], "eps", DIFFUSION, widest=1e-9)
        return gaps(values, euler_moves(SIGMAS[:-1], "eps"), answers, 6, corrected).result

    with_it, without = at(True), at(False)
    assert with_it[3, 0, 2] < 1e-3 * without[3, 0, 2]
    assert np.isclose(with_it[3, 0, 5], without[3, 0, 5])  # too far beyond two points to be trusted
    assert np.isclose(with_it[-3, 0, 2], without[-3, 0, 2])  # nothing comes after it


@given(st.integers(0, 99), st.integers(2, 7))
@settings(deadline=None, max_examples=40)
def test_no_plan_is_cheaper_than_the_path(seed, steps):
    costs = np.random.default_rng(seed).uniform(size=(steps + 1, 4, 4))
    paths = cheapest(costs, 1, steps + 1)

    def cost(dense: tuple[int, ...]) -> float:
        ends = [0, 1, *dense, steps + 1]
        found = [(a, a - p, b - a) for p, a, b in zip(ends, ends[1:], ends[2:], strict=False)]
        return sum(costs[a, g - 1, d - 1] if max(g, d) <= 4 else np.inf for a, g, d in found)

    by_count = dict(zip(map(len, paths.dense), zip(paths.dense, paths.errors, strict=True), strict=True))
    for count in range(steps):
        best = min(map(cost, combinations(range(2, steps + 1), count)), default=np.inf)
        if np.isfinite(best):
            dense, error = by_count[count]
            assert len(dense) == count and cost(dense) == pytest.approx(error) == pytest.approx(best)
        else:
            assert count not in by_count


@given(
    st.integers(1, 100), st.sampled_from([DIFFUSION, FLOW]), st.sampled_from([0.0, 1.0, 1.7, 2.5, 6.0, 20.0]),
    st.sampled_from([0.0, 15.0, 30.0, 100.0]), st.integers(0, 99), st.integers(0, 99), st.sampled_from([0, 3]), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_every_schedule_gets_a_plan(steps, axis, speed, fidelity, first, last, warmup, regional):
    errors, config = errors_of(steps, axis), HighlightConfig(speed=speed, fidelity=fidelity, warmup=warmup)
    context = Context.of(
        errors.sigmas, config, axis=axis, first=min(first, steps - 1), last=min(last, steps - 1), regional=regional,
        errors=errors,
    )  # fmt: skip
    plan = Plan(context)
    assert len(plan.steps) == steps and all(step.reason for step in plan.steps)
    start = [step.kind for step in plan.steps[context.first : context.first + (warmup or 2)]]
    assert all(kind == "dense" for kind in start)
    assert all(step.kind == "dense" for step in [*plan.steps[: context.first], *plan.steps[context.last + 1 :]])
    if config.by_path and "skipped" in kinds(plan) and not regional:
        assert 0 < plan.expected <= 100


def in_few(steps: int, pace: float, axis: TimeAxis = FLOW, unguided: bool = True, **config) -> str:
    errors = errors_of(steps, axis)
    wanted = HighlightConfig(pace=pace, correct="never", **config)
    context = Context.of(errors.sigmas, wanted, axis=axis, errors=errors, unguided=unguided)
    return kinds(Plan(context))


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8, 9, 11])
def test_presets_differ_in_few_unguided_steps_of_a_flow_and_compute_at_least_the_first_two(steps):
    forecast = [in_few(steps, pace).count("s") for pace in PACES.values()]
    assert forecast == sorted(forecast) and (steps < 6 or len(set(forecast)) == 3) and forecast[1] > 0
    assert all(in_few(steps, pace).startswith("dd") for pace in (*PACES.values(), 100.0))


def test_what_changes_in_few_unguided_steps_is_nothing_else():
    """With guidance, in ordinary models, with an interval and in longer schedules plans are what they are without knowing."""
    for steps, pace, own in [
        (8, 5.0, {"unguided": False}), (8, 5.0, {"axis": DIFFUSION}), (8, 5.0, {"interval": (2,)}), (12, 5.0, {}),
        (8, 5.0, {"speed": 1.6}),
    ]:  # fmt: skip
        assert in_few(steps, pace, **own) == in_few(steps, pace, **{**own, "unguided": False}), own
    assert in_few(8, 5.0) != in_few(8, 5.0, unguided=False)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_in_up_to_three_steps_nothing_is_saved(steps):
    assert all(in_few(steps, pace) == "d" * steps for pace in (*PACES.values(), 100.0))


@pytest.mark.parametrize("axis", [DIFFUSION, FLOW])
@pytest.mark.parametrize("steps", [8, 12, 20, 30, 50])
def test_a_speed_is_kept_and_costs_less_the_lower_it_is(axis, steps):
    plans = [plan_of(steps, axis, speed=speed) for speed in (1.3, 1.7, 2.5)]
    dense = [kinds(plan).count("d") for plan in plans]
    assert all(steps / count <= speed * 1.1 for count, speed in zip(dense, (1.3, 1.7, 2.5), strict=True))
    assert plans[0].expected > plans[1].expected > plans[2].expected


def test_a_limit_of_the_error_takes_as_few_dense_steps_as_it_may():
    for axis in (DIFFUSION, FLOW):
        for steps in (12, 30):
            plan = plan_of(steps, axis, fidelity=32.0)
            faster = plan_of(steps, axis, speed=steps / (kinds(plan).count("d") - 1))
            assert plan.expected >= 32.0 > faster.expected
    assert set(kinds(plan_of(12, fidelity=100.0))) == {"d"}


def test_a_speed_and_a_limit_together_give_the_slower_of_both():
    fast, faithful = kinds(plan_of(30, speed=3.0)), kinds(plan_of(30, fidelity=45.0))
    both = kinds(plan_of(30, speed=3.0, fidelity=45.0))
    assert both == faithful and both.count("d") > fast.count("d")
    assert kinds(plan_of(30, speed=1.5, fidelity=10.0)) == kinds(plan_of(30, speed=1.5))


def test_where_the_model_bends_more_the_path_is_denser():
    """A profile decides: the predictions of this one change in the last third of the schedule alone."""
    errors = errors_of(30)
    values = np.where(np.arange(30) < 20, 0, np.arange(30) - 20)[:, None] ** 2 * np.ones((1, 30, 64)) + 1.0
    run = ProfiledRun(np.array(errors.sigmas), np.array([1.0]), values, values)
    bent = replace(errors, profile=Profile((run,), DIFFUSION))
    dense = cheapest(bent.costs, 1, 30).dense[8]
    assert sum(step >= 18 for step in dense) >= 6


def test_the_corrector_off_is_known_to_cost():
    errors = errors_of(30)
    assert (replace(errors, corrected=False).costs >= errors.costs * 0.999).mean() > 0.8


def test_a_sampler_without_a_response_is_taken_for_eulers():
    sigmas = normal_sigmas(12).tolist()
    response = impulse_response(lambda answer, x: euler(answer, x, sigmas), "eps")
    errors = errors_of(12)
    assert not errors.exact and replace(errors, response=response).exact
    assert np.allclose(errors.costs, replace(errors, response=response).costs, rtol=1e-2)
    assert not replace(errors, response=replace(response, sigmas=response.sigmas[::-1])).exact


def test_the_expected_error_is_told_of_every_plan_of_forecasts():
    landed, path = plan_of(30, pace=5.0), plan_of(30, speed=3.0)
    assert kinds(landed).count("d") == kinds(path).count("d")
    assert landed.expected < path.expected
    assert plan_of(30, pace=5.0, interval="adaptive").expected is None
    assert plan_of(30, correct="always", regional=True).expected is None


@pytest.mark.parametrize("axis", [DIFFUSION, FLOW])
@pytest.mark.parametrize("steps", [4, 6, 8, 11])
@pytest.mark.parametrize("asked", [{"speed": 3.0}, {"fidelity": 5.0}])
def test_in_few_steps_another_models_profile_forecasts_one_step_at_a_time(axis, steps, asked):
    plan, context = careful_plan(steps, axis=axis, **asked)
    assert "ss" not in kinds(plan) and kinds(plan).count("s")
    assert len(kinds(plan_of(steps, axis, **asked)).replace("s", "")) < len(kinds(plan).replace("s", "")), "its own saves more"
    assert "no gap is longer than 2 steps" in said_of(context)[0]


def test_models_of_an_unknown_class_have_shorter_gaps_and_what_is_known_has_not():
    plan, context = careful_plan(30, unknown=True, speed=6.0)
    longest = max(len(gap) for gap in kinds(plan).split("d"))
    assert longest == 3 and "no gap is longer than 4 steps" in said_of(context)[0]
    plan, context = careful_plan(30, speed=6.0)
    assert max(len(gap) for gap in kinds(plan).split("d")) > 3 and not said_of(context)


def test_a_fidelity_is_kept_with_a_margin_where_the_profile_is_another_models():
    (plan, _), own = careful_plan(30, unknown=True, fidelity=25.0), plan_of(30, FLOW, fidelity=25.0)
    assert plan.expected >= 25.0 + CAREFUL_DB and own.expected < plan.expected


def test_without_speed_or_fidelity_nothing_is_said_of_a_path():
    assert not said_of(careful_plan(8)[1])


def paced_errors(steps: int, axis: TimeAxis, profiles=OWN) -> ErrorModel:
    """With the response of Euler's method."""
    known = errors_of(steps, axis, profiles)
    sigmas = [*known.sigmas, 0.0]
    return replace(known, response=impulse_response(lambda answer, x: euler(answer, x, sigmas), known.prediction))


def paced(steps: int, axis: TimeAxis, pace: float, profiles=OWN, promise: float = 0.0, **own) -> tuple[Plan, Plan]:
    """The plan of a pace under Euler's method, or of a preset, and the one that the rules make of it."""
    errors = paced_errors(steps, axis, profiles)
    config = HighlightConfig(pace=pace, promise=promise, **own.pop("config", {}))
    context = Context.of(errors.sigmas, config, axis=axis, **{"regional": False, "errors": errors} | own)
    return Plan(context), Plan(replace(context, errors=None))


@pytest.mark.parametrize("axis", [DIFFUSION, FLOW])
@pytest.mark.parametrize("steps", [12, 20, 30, 50, 100])
@pytest.mark.parametrize("pace", PACES.values())
def test_a_pace_says_how_many_steps_are_dense_and_the_path_which(axis, steps, pace):
    path, rules = paced(steps, axis, pace)
    errors = paced_errors(steps, axis)
    dense = [[i for i, kind in enumerate(kinds(plan)) if kind == "d"] for plan in (path, rules)]
    assert len(dense[0]) == len(dense[1])
    expected = [errors.of(own) for own in dense]
    assert path.expected == expected[0] >= (expected[1] or 0)


@pytest.mark.parametrize(
    ("why", "steps", "own"),
    [
        ("the sampler's response is not known", 20, {"errors": errors_of(20)}),
        ("new noise ends gaps", 20, {"sampler": "euler_ancestral", "renewed": [0.3] * 19}),
        ("gaps are given", 20, {"config": {"interval": (3,)}}),
        ("nothing makes up for forecasts", 20, {"config": {"revise": False}}),
        ("another model's profile, in few steps", 8, {"profiles": {axis: bundled(axis) for axis in SCHEDULES}}),
        ("shallow evaluations fill the gaps", 12, {"shallow": True}),
        ("a noise mask", 20, {"inpaints": True}),
        ("regional evaluations are asked for", 20, {"config": {"correct": "always"}, "regional": True}),
    ],
)
def test_where_the_path_knows_too_little_a_pace_goes_by_the_rules(why, steps, own):
    for preset in (PRESETS["fast"], {"pace": PACES["fast"]}):
        path, rules = paced(steps, DIFFUSION, **preset, **own)
        assert path.steps == rules.steps and path.asked is None, why


@pytest.mark.parametrize("axis", [DIFFUSION, FLOW])
@pytest.mark.parametrize("steps", [12, 20, 30, 50, 100])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_as_few_dense_steps_as_its_promise_is_expected_to_be_kept_with(axis, steps, preset):
    plan, promise = paced(steps, axis, **PRESETS[preset])[0], PRESETS[preset]["promise"]
    fewer = paced(steps, axis, PACES[preset], config={"speed": steps / (kinds(plan).count("d") - 1)})[0]
    fewest = kinds(fewer).count("d") == kinds(plan).count("d")  # in gaps as long as any
    assert plan.expected >= promise and plan.asked == promise and (fewest or fewer.expected < promise)
    assert set(kinds(plan)) == {"d", "s"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_saves_more_on_an_easier_model_and_in_more_steps(preset):
    """One whose predictions change half as much, and the same model."""
    half = lambda own: (own + own.mean(1, keepdims=True)) / 2  # noqa: E731
    runs = [replace(run, eps=half(run.eps), x0=half(run.x0)) for run in OWN[DIFFUSION].runs]
    easier = {DIFFUSION: replace(OWN[DIFFUSION], runs=tuple(runs))}
    dense = {steps: kinds(paced(steps, DIFFUSION, **PRESETS[preset])[0]).count("d") for steps in (12, 20, 30, 50)}
    shares = [count / steps for steps, count in dense.items()]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == 4
    assert kinds(paced(30, DIFFUSION, **PRESETS[preset], profiles=easier)[0]).count("d") < dense[30]


def test_a_preset_that_leaves_nothing_to_forecast_says_so():
    plan, _ = paced(6, FLOW, **PRESETS["quality"])
    assert {step.reason for step in plan.steps[2:]} == {"a fidelity of 36 dB leaves nothing to forecast"}
    assert plan.steps[2].kind == "dense" and plan.expected == 100 and plan.asked == 36
    assert paced(6, FLOW, 2.0, config={"speed": 1.0})[0].steps[3].reason == "a speed of 1 leaves nothing to forecast"
    context = Context.of(
        errors_of(4, FLOW).sigmas, HighlightConfig(**PRESETS["quality"]), axis=FLOW, errors=errors_of(4, FLOW), unguided=True
    )
    assert Plan(context).steps[3].reason == "too few steps to forecast one"


def test_a_pace_of_ones_own_is_no_promise():
    """The knob for people who know how many they want: as before there were promises."""
    for preset, own in PRESETS.items():
        plan, rules = paced(30, DIFFUSION, own["pace"])
        assert kinds(plan).count("d") == kinds(rules).count("d") and plan.asked is None, preset


def test_the_path_of_a_pace_spends_on_dense_steps_what_the_rules_would_on_regional_ones():
    path, rules = paced(20, DIFFUSION, 5.0, sampler="dpmpp_2m", regional=True)
    counts = {plan: kinds(plan).count for plan in (path, rules)}
    assert counts[rules]("p") >= 3 and not counts[path]("p") and not path.regional and rules.regional
    assert counts[path]("d") == round(counts[rules]("d") + 0.25 * counts[rules]("p"))


def test_a_warm_up_that_is_asked_for_is_kept_by_the_path_of_a_pace():
    path, rules = paced(20, DIFFUSION, 8.0, config={"warmup": 6})
    assert kinds(path).startswith("d" * 6) and kinds(path).count("d") == kinds(rules).count("d")


def merged_steps(steps: int, pace: float, merges: bool = True, axis: TimeAxis = FLOW, unguided: bool = True, **config) -> str:
    """The plan of few steps where tokens can be merged: d dense, m merged, s skipped."""
    errors, inpaints, sampler, last = errors_of(steps, axis), *(config.pop(*own) for own in (
        ("inpaints", False), ("sampler", "euler"), ("last", None)))  # fmt: skip
    context = Context.of(
        errors.sigmas, HighlightConfig(pace=pace, **config), sampler, axis=axis, errors=errors, unguided=unguided,
        inpaints=inpaints, regional=False, last=last, renewed=[0.5] * (steps - 1) if sampler == "lcm" else (),
    )  # fmt: skip
    return "".join("m" if step.merged else step.kind[0] for step in Plan(context, merges).steps)


@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize("pace", PACES.values())
def test_in_few_unguided_steps_dense_ones_between_gaps_merge_and_nothing_else_changes(steps, pace):
    plan = merged_steps(steps, pace)
    assert plan.replace("m", "d") == merged_steps(steps, pace, merges=False)
    computed = plan.replace("s", "")
    assert "mm" not in computed and not computed.endswith("m") and not plan.startswith(("m", "dm"))
    assert all(plan[i - 1] == "s" for i, letter in enumerate(plan) if letter == "m") or "s" not in plan


def test_in_few_unguided_steps_the_fast_preset_merges_and_of_four_the_quality_preset():
    assert [preset for preset, pace in PACES.items() if "m" in merged_steps(8, pace)] == ["fast"]
    assert {preset: merged_steps(4, pace) for preset, pace in PACES.items()} == {
        "quality": "ddmd", "balanced": "ddsd", "fast": "ddsd",
    }  # fmt: skip


@pytest.mark.parametrize(
    "own", [{"warmup": 3}, {"enabled": False}, {"interval": (1,)}, {"sampler": "lcm"}, {"sampler": "sa_solver"}, {"last": 1}]
)
def test_where_nothing_is_forecast_nothing_merges_in_what_has_to_be_dense(own):
    assert merged_steps(4, PACES["quality"], **own) == "dddd"


@pytest.mark.parametrize(
    "own",
    [{"unguided": False}, {"axis": DIFFUSION}, {"interval": (2,)}, {"speed": 2.0}, {"inpaints": True}, {"enabled": False}],
)
def test_nothing_merges_by_plan_elsewhere(own):
    assert "m" not in merged_steps(8, PACES["fast"], **own)
