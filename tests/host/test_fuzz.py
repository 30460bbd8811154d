"""Whatever a user combines: a finite picture or a clear error, and the model is as it was. `python run.py fuzz` runs more."""

import json
from collections import Counter
from functools import cache

import pytest
import torch
from highlight_diffusion.engine.report.numbers import report
from highlight_diffusion.engine.trace import RunRecord
from highlight_diffusion.nodes.highlight import HighlightDiffusion
from hypothesis import HealthCheck, given, settings

from . import fuzz, tiny

CASES = 80  # without --cases

pytestmark = pytest.mark.beside


@cache
def model(name: str) -> tiny.Tiny:
    return fuzz.MODELS[name]()


def reference(name: str) -> torch.Tensor:
    return tiny.sample(model(name), size=(8, 8), steps=2)


@cache
def vanilla(name: str) -> torch.Tensor:
    return reference(name)


def sampled(case: fuzz.Case, ours: bool) -> torch.Tensor:
    return case.sample(model(case.model), ours)


def refused(case: fuzz.Case) -> str | None:
    """The error the node answers with, which must name an input and its value; None where it takes them."""
    said = HighlightDiffusion.validate_inputs(interval=case.inputs["interval"])
    if said is not True:
        assert case.inputs["interval"].strip() in said or "interval has" in said, said
        return said
    try:
        HighlightDiffusion.execute(model=model(case.model).patcher, **case.inputs, **case.masks)
    except ValueError as error:
        assert any(f"{name} is {case.inputs[name]}" in str(error) for name in case.inputs) or "_percent" in str(error), error
        return str(error)
    return None


def error_of(case: fuzz.Case, ours: bool) -> tuple[torch.Tensor | None, Exception | None]:
    try:
        return sampled(case, ours), None
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ZeroDivisionError) as e:
        return None, e


def outcome(case: fuzz.Case) -> str:
    """What a case came to. Raises AssertionError for what must not be."""
    if refused(case):
        return "refused with an error that names the value"
    with case.spoiling(model(case.model)) as spoilt:
        latent, error = error_of(case, ours=True)
    if spoilt and error is None:
        check_spoilt(spoilt[0], case.spoilt[0])
        return "sampled and told which evaluation was not finite"
    if error is None and torch.isfinite(latent).all():
        return "sampled"
    bare, bare_error = error_of(case, ours=False)
    if error is None:
        assert not torch.isfinite(bare).all(), "not finite, though it is without our node"
        return "not finite without our node either"
    assert bare_error is not None, f"fails with our node alone: {type(error).__name__}: {error}"
    return f"fails without our node too ({type(bare_error).__name__})"


def check_spoilt(run: RunRecord, index: int) -> None:
    """The evaluation that was not finite is named, what follows is computed, and the report is JSON."""
    assert run.not_finite is not None and run.not_finite <= index and run.completed
    assert all(e.kind == "dense" and e.merged is None for e in run.evaluations[run.not_finite + 1 :])
    json.dumps({**run.as_dict(), "report": report(run)}, allow_nan=False)


@pytest.fixture(scope="module")
def outcomes(summary):
    counted: Counter = Counter()
    yield counted
    summary += [f"fuzz: {times:5} {what}" for what, times in counted.most_common()]


def test_a_finite_picture_or_a_clear_error_and_the_model_as_it_was(outcomes, request):
    wanted = request.config.getoption("--cases")

    @settings(
        max_examples=wanted or CASES, deadline=None, database=None, print_blob=True, derandomize=wanted is None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=fuzz.cases())
    def check(case: fuzz.Case) -> None:
        vanilla(case.model)
        outcomes[outcome(case)] += 1
        assert torch.equal(reference(case.model), vanilla(case.model)), "a vanilla run is no longer what it was"

    check()
    sampling = sum(times for what, times in outcomes.items() if what.startswith("sampled"))
    assert sampling > 0.6 * outcomes.total(), outcomes
