"""The controller without any model: numbers in place of pictures prove which way each evaluation took."""

from __future__ import annotations

import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job, Request
from highlight_diffusion.engine.method import DenseContext
from highlight_diffusion.engine.partial.cache import ActivationCache
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.setup import ONLY_UNETS, start_run
from highlight_diffusion.engine.trace import LETTERS, Evaluation, RunRecord

SIZE = (8, 8)
COMPUTED, INSIDE = 44.0, 41.0  # what a dense call, and what a call for a part answers
SIGMAS = tuple(float(s) for s in range(12, -1, -1))
BOX = (2, 4, 2, 4)
PARTS = HighlightConfig(interval=(3,), warmup=2, halo=0, max_area=1.0, correct="always", forecast="denoised", revise=False)


def corner() -> UserMasks:
    mask = torch.zeros(1, *SIZE)
    mask[:, 2:4, 2:4] = 1
    return UserMasks(mask)


class Model:
    """Answers every job with a number and remembers the jobs. fails: raises a RuntimeError in jobs of which it is true."""

    def __init__(self, fails=lambda job: False):
        self.jobs: list[Job] = []
        self.fails = fails

    def __call__(self, job: Job) -> list[torch.Tensor]:
        self.jobs.append(job)
        if self.fails(job):
            raise RuntimeError("out of memory")
        for cache in job.record:
            cache.put("place", ("a",), torch.tensor([1.0]))
        if job.capture is not None:
            maps = torch.full((1, 2, 16), 0.1)
            maps[:, 1, 5] = 0.9
            job.capture.add(maps, (4, 4))
        return [torch.full((1, 1, *SIZE), INSIDE if job.compute else COMPUTED)] * 2


def start(config=PARTS, shallow=None, methods=(), masks=None, sampler="euler", sigmas=SIGMAS):
    record = RunRecord((1, 1, *SIZE), sampler, sigmas)
    make = lambda boxes: [ActivationCache() for own in boxes for _ in own]  # noqa: E731
    masks = corner() if masks is None else masks
    return start_run(config, record, 1, make, masks=masks, shallow=shallow, methods=methods)


def ask(run, model, sigma: float, ran_out=lambda error: False, **known) -> list[torch.Tensor]:
    return run.evaluate(Request(torch.zeros(1, 1, *SIZE), sigma, **known), model, ran_out)


def sample(run, model, **known) -> list[list[torch.Tensor]]:
    return [ask(run, model, sigma, **known) for sigma in SIGMAS[:-1]]


def kinds(run) -> str:
    return "".join(evaluation.kind[0] for evaluation in run.state.record.evaluations)


def reasons(run) -> list[str]:
    return [evaluation.reason for evaluation in run.state.record.evaluations]


def test_each_kind_answers_with_what_it_computed():
    """Dense 44 everywhere; skipped 44 again without a call; partial 41 inside the box and 44 around it."""
    run, model = start(), Model()
    answers = sample(run, model)
    assert set(kinds(run)) == {"d", "s", "p"}
    for kind, (positive, negative) in zip(kinds(run), answers, strict=True):
        assert torch.equal(positive, negative)
        y0, y1, x0, x1 = BOX
        inside, outside = positive[..., y0:y1, x0:x1], positive[..., 4:, :]
        assert torch.all(outside == COMPUTED)
        assert kind != "p" or torch.all(inside == INSIDE)
        assert kind != "d" or torch.all(inside == COMPUTED)
    assert len(model.jobs) == sum(kind != "s" for kind in kinds(run))
    assert [bool(job.compute) for job in model.jobs] == [kind == "p" for kind in kinds(run) if kind != "s"]


def test_off_calls_the_model_every_time_and_records_nothing():
    run, model = start(HighlightConfig(enabled=False)), Model()
    sample(run, model)
    assert set(kinds(run)) == {"d"} and set(reasons(run)) == {"off"}
    assert not any(job.record or job.compute or job.capture or job.tasks for job in model.jobs)


def test_only_the_dense_evaluations_before_a_regional_one_record():
    run, model = start(), Model()
    sample(run, model)
    recording = [job.evaluation.step for job in model.jobs if job.record]
    regional = [e.step for e in run.state.record.evaluations if e.kind == "partial"]
    assert regional and recording and max(recording) < max(regional)
    assert all(not job.record for job in model.jobs if job.compute)


def test_a_job_of_a_region_finds_what_was_recorded_for_it():
    run, model = start(), Model()
    sample(run, model)
    assert all(cache.entries for job in model.jobs for cache in job.compute)


@pytest.mark.parametrize(
    ("known", "kind", "words"),
    [
        ({"dense_because": "the sampler keeps keys"}, "d", "the sampler keeps keys"),
        ({"signature": "another prompt"}, "d", "the conditioning changed"),
    ],
)
def test_what_makes_a_planned_forecast_dense(known, kind, words):
    run, model = start(), Model()
    planned = next(i for i, step in enumerate(run.state.plan.steps) if step.kind == "skipped")
    for sigma in SIGMAS[:planned]:
        ask(run, model, sigma)
    ask(run, model, SIGMAS[planned], **known)
    assert kinds(run)[-1] == kind and reasons(run)[-1] == words
    assert run.state.record.evaluations[-1].planned == "skipped"


def test_a_sigma_that_rises_is_dense():
    run, model = start(), Model()
    for sigma in (*SIGMAS[:2], SIGMAS[2], SIGMAS[1] + 0.5):
        ask(run, model, sigma)
    ask(run, model, SIGMAS[2] + 0.9)
    assert kinds(run)[-1] == "d"


def test_without_parts_a_regional_evaluation_is_a_forecast():
    run, model = start(), Model()
    sample(run, model, no_parts_because="another node is at work")
    planned = [e for e in run.state.record.evaluations if e.planned == "partial"]
    assert planned and {(e.kind, e.reason) for e in planned} == {("skipped", "forecast only: another node is at work")}
    assert not any(job.record or job.compute for job in model.jobs)


def test_a_highlight_of_everything_is_dense_and_says_so():
    run, model = start(masks=UserMasks(torch.ones(1, *SIZE))), Model()
    sample(run, model)
    assert set(kinds(run)) == {"d"} and "the highlight is the whole frame" in reasons(run)


def test_bug_where_shallow_evaluations_are_blocked_under_new_noise_forecasts_filled_their_gaps():
    """Which may be longer: the error was three times that of the plan without shallow evaluations, which is followed now."""
    new = [0.15] * (len(SIGMAS) - 2)

    def planned(why: str | None, shallow: str = "auto") -> str:
        record = RunRecord((1, 1, *SIZE), "euler_ancestral", SIGMAS)
        run = start_run(
            HighlightConfig(shallow=shallow), record, 1, lambda boxes: [], shallow=ActivationCache(), fresh_noise=lambda: new
        )
        sample(run, Model(), no_parts_because=why)
        if why:
            assert {e.reason for e in record.evaluations if e.kind == "skipped"} == {f"forecast only: {why}"}
            assert {e.planned for e in record.evaluations if e.kind == "skipped"} == {"shallow"}
        return "".join(LETTERS[e.kind] for e in record.evaluations)

    free, blocked, without = planned(None), planned("another node patches attn1"), planned(None, "never")
    assert "h" in free and blocked == without.replace("P", ".") != free.replace("h", "."), (free, blocked, without)


def test_memory_that_runs_out_in_a_part_is_dense_once_and_then_forecast():
    run, model = start(), Model(fails=lambda job: bool(job.compute))
    sample(run, model, ran_out=lambda error: "memory" in str(error))
    words = "memory ran out in a partial evaluation"
    assert reasons(run).count(f"{words}: computed without") == 1
    assert not any(job.record for job in model.jobs[model.jobs.index(next(j for j in model.jobs if j.compute)) + 1 :])
    assert f"forecast only: {words}" in reasons(run)


@pytest.mark.parametrize("config", [HighlightConfig(correct="never"), PARTS], ids=["listening alone", "recording too"])
def test_bug_memory_that_runs_out_while_attention_is_captured_stopped_the_run(config):
    run = start(config, masks=UserMasks())
    model = Model(fails=lambda job: job.capture is not None)
    sample(run, model, ran_out=lambda error: "memory" in str(error))
    assert sum(reason.startswith("memory ran out") for reason in reasons(run)) == 1, reasons(run)
    assert sum(job.capture is not None for job in model.jobs) == 1, "what takes the memory is not tried again"
    assert "s" in kinds(run), "and forecasts go on"


def test_bug_methods_learnt_from_a_branch_that_is_not_computed():
    """A guider may give the prompt another place than the first, beside branches whose predictions are zeros."""
    method, model = Counting(silent=False), Model()
    run = start(methods=(method,))
    for sigma in SIGMAS[:-1]:
        request = Request(torch.zeros(1, 1, *SIZE), sigma, prompt_branch=1, absent=frozenset({0}))
        run.evaluate(request, lambda job: [torch.zeros(1, 1, *SIZE), model(job)[1]])
    assert method.learnt and all(own.min() == COMPUTED for own in method.learnt)


def test_another_error_is_raised():
    run, model = start(), Model(fails=lambda job: bool(job.compute))
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(run, model)


def test_shallow_evaluations_need_a_cache_and_say_so():
    config = HighlightConfig(shallow="always", pace=8.0, forecast="denoised", revise=False)
    without, run, model = start(config, masks=UserMasks()), start(config, ActivationCache(), masks=UserMasks()), Model()
    sample(without, Model())
    assert ONLY_UNETS in without.state.record.limits and ONLY_UNETS not in run.state.record.limits
    answers = sample(run, model)
    assert "s" in kinds(run) and run.state.record.count("shallow")
    for evaluation, (positive, _) in zip(run.state.record.evaluations, answers, strict=True):
        assert torch.all(positive == (INSIDE if evaluation.kind == "shallow" else COMPUTED))


class Counting:
    """A method that only looks on. silent: whether attention cannot be captured beside its task."""

    held_as, bytes, active, merges, by_plan = "a test remembers", 0, True, False, False

    def __init__(self, silent: bool):
        self.silent = silent
        self.contexts: list[DenseContext] = []
        self.learnt: list[torch.Tensor] = []
        self.outputs = self.forgotten = 0

    def before_dense(self, evaluation: Evaluation, context: DenseContext):
        self.contexts.append(context)
        return self

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        return True

    def after_dense(self, prediction) -> None:
        self.outputs += 1
        self.learnt.append(prediction)

    def forget(self) -> None:
        self.forgotten += 1


@pytest.mark.parametrize("silent", [True, False])
def test_a_method_takes_part_in_dense_evaluations_only(silent):
    method, model = Counting(silent), Model()
    run = start(methods=[method])
    sample(run, model)
    dense = kinds(run).count("d")
    assert len(method.contexts) == method.outputs == dense
    assert all(job.task(Counting) is (None if job.compute else method) for job in model.jobs)
    assert any(job.capture for job in model.jobs) != silent
    exact = [context.exact_because for context in method.contexts]
    assert ("records the highlight's surroundings" in exact) != silent  # without attention there is no highlight to record for


def test_what_evaluations_were_and_why_is_all_in_the_record():
    run, model = start(), Model()
    sample(run, model)
    assert all(e.reason and e.planned and e.seconds >= 0 for e in run.state.record.evaluations)
    assert [e.index for e in run.state.record.evaluations] == list(range(len(SIGMAS) - 1))


def test_where_a_noise_mask_cannot_be_computed_by_itself_no_less_is_dense_than_without_it():
    """Left to forecasts alone, the long gaps of inpainting would lead to another picture."""
    masks = UserMasks(noise=corner().mask)
    free, blocked, without = (start(HighlightConfig(), masks=own) for own in (masks, masks, UserMasks()))
    sample(free, Model())
    sample(blocked, Model(), no_parts_because="someone patches attention")
    sample(without, Model(), no_parts_because="someone patches attention")
    assert kinds(free) == "dddpdpdppdpp"
    assert all(own == "d" for own, other in zip(kinds(blocked)[4:], kinds(without)[4:], strict=True) if other == "d")
    assert "s" in kinds(blocked) and any("someone patches attention" in reason for reason in reasons(blocked))
