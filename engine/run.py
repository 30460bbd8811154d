"""One sampling run, without a host: what each evaluation does.

A host calls `SamplingRun.evaluate` for every evaluation that the sampler asks for, and is called back with the `Job` to do.
Nothing here outlives the run but its record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .actions import ACTIONS, DENSE, Action
from .job import Compute, Request
from .placement.plan import step_of
from .state import RunState
from .stopwatch import Stopwatch, Watches
from .trace import Evaluation, Kind

RanOut = Callable[[RuntimeError], bool]


class SamplingRun:
    """Evaluates what a sampler asks for. state: what is known in the course of the run."""

    def __init__(self, state: RunState):
        self.state, self.watches = state, Watches()

    def evaluate(self, request: Request, compute: Compute, ran_out: RanOut = lambda error: False) -> list[Tensor]:
        """One evaluation from request to answer: the denoised images (B, C, ...) of all branches.

        compute: does a job. ran_out: tells by an error whether memory ran out. Where it did beside what was recorded, or
        while attention was captured, that is dropped, the evaluation is computed densely, and the rest of the run records and
        captures nothing.
        """
        watch = Stopwatch(request.x.device)
        self.state.finite.settle()
        request = replace(request, dense_because=request.dense_because or self.state.finite.lost)
        action, reason, planned = self.decide(request)
        evaluation = self._note(request, action, reason, planned)
        answers = None
        try:
            answers = action(self.state, request, evaluation, compute)
        except RuntimeError as error:
            spares = self.state.holds_recordings or evaluation.listening
            if self.state.exhausted or not spares or not ran_out(error):
                raise
        if answers is None:  # not in the handler above, since the error's traceback keeps the tensors of the attempt
            self.state.do_without_recordings(evaluation)
            answers = DENSE(self.state, request, evaluation, compute)
        self.watches.stop(watch, evaluation)
        return answers

    def decide(self, request: Request) -> tuple[Action, str, Kind]:
        """What to do, why, and the kind that the plan wanted. What was predicted before is dropped where it is void."""
        state = self.state
        action, reason, planned = self._planned(step_of(request.sigma, state.record.sigmas), request)
        another_latent, another_signature = state.latent_changed(request.x), request.signature != state.signature
        state.signature = request.signature
        if why := request.dense_because or another_latent:
            state.begin_anew()
            return DENSE, why, planned
        if another_signature:
            changed = bool(state.forecasts) and action is not DENSE
            state.forget()
            return DENSE, "the conditioning changed" if changed else reason, planned
        while fallback := action.blocked(state, request):
            action, reason = fallback
        return action, reason, planned

    def _planned(self, step: int, request: Request) -> tuple[Action, str, Kind]:
        """What the plan has for a step, why, and the kind. Under fresh noise gaps of shallow evaluations may be longer than
        forecasts can fill, so where those are blocked the plan is the one that has none."""
        plan, why = self.state.plan, self.state.exhausted or request.no_parts_because
        if plan.without_shallow is None or not why:
            planned = plan.at(step)
            return ACTIONS[planned.kind], planned.reason, planned.kind
        instead = plan.without_shallow[step]
        if instead.kind == "dense":
            return DENSE, instead.reason, "dense"
        return ACTIONS["skipped"], f"forecast only: {why}", "shallow"

    def _note(self, request: Request, action: Action, reason: str, planned: Kind) -> Evaluation:
        """Write the evaluation into the run's record."""
        record = self.state.record
        index, step = len(record.evaluations), step_of(request.sigma, record.sigmas)
        active = 1.0 if action is DENSE else 0.0
        evaluation = Evaluation(index, step, request.sigma, action.kind, reason, active, planned=planned)
        record.evaluations.append(evaluation)
        return evaluation

    def settle(self) -> None:
        """Fill in how long the evaluations took and whether they were finite, waiting for a GPU where it is still at work."""
        self.watches.settle()
        self.state.finite.settle()
