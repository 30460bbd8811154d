"""Forecasts of the denoised image, apart for the whole frame and for the highlight."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..config import DEFAULT_PREDICTOR, ForecastOf
from ..extrapolation import PredictionType
from ..time_axis import DIFFUSION, TimeAxis
from ..trace import Boxes, inside
from .history import History
from .response import ImpulseResponse

SMALLEST_SQUARE = 1e-12
PREDICTION_TYPES: dict[str, PredictionType] = {"noise": "eps", "denoised": "x0"}  # by the name that users know


def prediction_type(noisy: bool, wanted: ForecastOf = "auto", axis: TimeAxis = DIFFUSION) -> PredictionType:
    """What is forecast: what is `wanted`, or else the denoised image in flows and where the sampler is `noisy` (adds fresh
    noise), and the noise elsewhere, in which deterministic samplers are linear."""
    if wanted != "auto":
        return PREDICTION_TYPES[wanted]
    return "x0" if noisy or axis.is_flow else "eps"


class Forecast:
    """What is known of one branch's prediction (B, C, ...) along a sampling run.

    The inside of the highlight has a history of its own, which regional evaluations extend. prediction: what is extrapolated.
    response: the sampler's, None to let past forecasts stand. axis, predictor: as of `History`.
    """

    def __init__(
        self, prediction: PredictionType, response: ImpulseResponse | None = None, axis: TimeAxis = DIFFUSION,
        predictor: str = DEFAULT_PREDICTOR,
    ):  # fmt: skip
        self.prediction = prediction
        self.frame, self.inside = (History(prediction, response, axis, predictor) for _ in range(2))

    def predicted(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """The prediction that a denoised image at x and sigma stands for."""
        return (x - denoised) / sigma if self.prediction == "eps" else denoised

    def denoised(self, x: Tensor, predicted: Tensor, sigma: float) -> Tensor:
        """The denoised image that a prediction at x and sigma stands for."""
        return x - sigma * predicted if self.prediction == "eps" else predicted

    def _answer(self, x: Tensor, frame: Tensor, inner: Tensor, sigma: float, boxes: Boxes) -> Tensor:
        """The denoised image of two predictions, of which `inner` counts inside `boxes`."""
        if inner is not frame and any(boxes):
            frame = frame.clone()
            for box in inside(boxes):
                frame[box] = inner[box]
        return self.denoised(x, frame, sigma)

    @property
    def ready(self) -> bool:
        """Whether enough was computed to predict."""
        return self.frame.predictor.ready

    @property
    def last_sigma(self) -> float:
        """The lowest sigma at which anything was computed."""
        return min(own.predictor.points[-1].sigma for own in (self.frame, self.inside))

    @property
    def _apart(self) -> bool:
        """Whether the inside has a history of its own."""
        return bool(self.frame.predictor.points) and not self.inside.is_at(self.frame)

    def add_dense(self, index: int, x: Tensor, denoised: Tensor, sigma: float, boxes: Boxes = ()) -> Tensor:
        """Take up evaluation `index`, a full one at x, as computed; returns what to answer. Tensors are kept, not copied."""
        value = self.predicted(x, denoised, sigma)
        apart = any(boxes) and self._apart
        frame = self.frame.take(index, sigma, value)
        inner = self.inside.take(index, sigma, value) if apart else self._join(frame)
        if frame is value and inner is value:
            return denoised
        return self._answer(x, frame, inner, sigma, boxes)

    def add_regional(self, index: int, x: Tensor, denoised: Tensor, sigma: float, boxes: Boxes) -> Tensor:
        """Take up a regional evaluation, of which only the inside of `boxes` is computed; returns what to answer."""
        inner = self.inside.take(index, sigma, self.predicted(x, denoised, sigma))
        answer, full = denoised.clone(), self.denoised(x, inner, sigma)
        for box in inside(boxes):
            answer[box] = full[box]
        return answer

    def error(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """rms(prediction - its forecast) / rms(prediction) at x, a scalar on the device."""
        value = self.predicted(x, denoised, sigma).float()
        off = (value - self.frame.predictor.predict(sigma)).square().mean()
        return off.div(value.square().mean().clamp(min=SMALLEST_SQUARE)).sqrt()

    def predict(self, index: int, x: Tensor, sigma: float, boxes: Boxes = ()) -> Tensor:
        """Forecast the denoised image of evaluation `index` at x and sigma; inside `boxes` from the highlight's own history."""
        apart = any(boxes) and self._apart
        frame = self.frame.forecast(index, sigma)
        inner = self.inside.forecast(index, sigma) if apart else self._join(frame)
        return self._answer(x, frame, inner, sigma, boxes)

    def _join(self, frame: Tensor) -> Tensor:
        """Let the inside have the history of the frame."""
        self.inside.copy_from(self.frame)
        return frame


class Forecasts:
    """The forecasts of all branches of a run (positive, negative, ...), in the order in which the host has them.

    prediction, response, axis, predictor: as of `Forecast`, which raises ValueError for a predictor that there is not.
    """

    def __init__(
        self, prediction: PredictionType, response: ImpulseResponse | None, axis: TimeAxis,
        predictor: str = DEFAULT_PREDICTOR,
    ):  # fmt: skip
        self.prediction = prediction
        self._make_branch = partial(Forecast, prediction, response, axis, predictor)
        self._make_branch()  # for its errors, before anything is computed
        self.branches: list[Forecast] = []
        self.corrected: Boxes = ()  # where the last regional evaluation counted

    def __bool__(self) -> bool:
        return bool(self.branches)

    @property
    def ready(self) -> bool:
        """Whether enough was computed of every branch to predict it."""
        return bool(self.branches) and all(branch.ready for branch in self.branches)

    @property
    def last_sigma(self) -> float:
        """The lowest of the sigmas at which the branches were computed last, infinite where none was."""
        return min((branch.last_sigma for branch in self.branches), default=float("inf"))

    def clear(self) -> None:
        """Forget everything."""
        self.branches, self.corrected = [], ()

    def errors(
        self, x: Tensor, outputs: list[Tensor], sigma: float, absent: frozenset[int] = frozenset()
    ) -> list[Tensor]:  # fmt: skip
        """How wrong the forecasts of computed outputs would have been, of each branch that has one and is not `absent`."""
        known = enumerate(zip(self.branches, outputs, strict=False))
        return [own.error(x, denoised, sigma) for i, (own, denoised) in known if own.ready and i not in absent]

    def add_dense(self, index: int, x: Tensor, outputs: list[Tensor], sigma: float, finite: Tensor) -> list[Tensor]:
        """Take up a full evaluation of every branch; returns what to answer: the outputs themselves unless they are `finite`
        (bool, a scalar on the device)."""
        while len(self.branches) < len(outputs):
            self.branches.append(self._make_branch())
        answers = []
        for branch, denoised in zip(self.branches, outputs, strict=True):
            answer = branch.add_dense(index, x, denoised, sigma, self.corrected)
            answers.append(denoised if answer is denoised else torch.where(finite, answer, denoised))
        return answers

    def predict(self, index: int, x: Tensor, sigma: float) -> list[Tensor]:
        """The denoised images of all branches at x and sigma."""
        return [branch.predict(index, x, sigma, self.corrected) for branch in self.branches]

    def add_regional(
        self, index: int, x: Tensor, pasted: list[Tensor], sigma: float, boxes: Boxes
    ) -> list[Tensor]:  # fmt: skip
        """Take up a regional evaluation of every branch, `pasted` into its forecasts; returns what to answer."""
        self.corrected = boxes
        return [
            branch.add_regional(index, x, denoised, sigma, boxes)
            for branch, denoised in zip(self.branches, pasted, strict=True)
        ]

    def paste(
        self, x: Tensor, forecasts: list[Tensor], computed: list[Tensor], boxes: Boxes, absent: frozenset[int] = frozenset()
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """Put what was computed inside `boxes` into the forecasts of all branches.

        computed: full-size tensors that are filled inside the boxes only. absent: branches that count for no error. Returns the
        results, and rms(computed - forecast) / rms(computed) of what is forecast inside the boxes, a scalar on the device.
        """
        pasted, error, scale = [], torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        for i, (predicted, fresh) in enumerate(zip(forecasts, computed, strict=True)):
            result = predicted.clone()
            for box in inside(boxes):
                if i not in absent:
                    error += (fresh[box] - predicted[box]).float().square().sum()
                    truth = x[box] - fresh[box] if self.prediction == "eps" else fresh[box]  # sigma cancels
                    scale += truth.float().square().sum()
                result[box] = fresh[box]
            pasted.append(result)
        return pasted, (error / scale.clamp(min=SMALLEST_SQUARE)).sqrt().detach()
