"""One branch's predictions along a run: a predictor, and the corrector of its forecasts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..config import DEFAULT_PREDICTOR
from ..extrapolation import PredictionType
from ..time_axis import DIFFUSION, TimeAxis
from .corrector import DeferredCorrection
from .predictor import DampedLinear, Predictor
from .response import ImpulseResponse

PREDICTORS: dict[str, Callable[[PredictionType, TimeAxis], Predictor]] = {DEFAULT_PREDICTOR: DampedLinear}


class History:
    """What the sampler was answered for one branch, or for the inside of its highlight, and what was known of it.

    prediction, axis: type and time axis of the values (B, C, ...). response: the sampler's, None to let forecasts stand.
    predictor: a name in `PREDICTORS`.
    """

    def __init__(
        self, prediction: PredictionType, response: ImpulseResponse | None = None, axis: TimeAxis = DIFFUSION,
        predictor: str = DEFAULT_PREDICTOR,
    ):  # fmt: skip
        if predictor not in PREDICTORS:
            raise ValueError(f'predictor is "{predictor}"; choose one of {", ".join(PREDICTORS)}')
        self.predictor = PREDICTORS[predictor](prediction, axis)
        self.corrector = DeferredCorrection(response, prediction, axis)

    def forecast(self, index: int, sigma: float) -> Tensor:
        """The answer to evaluation `index` from what is known before it."""
        return self.corrector.answer_forecast(index, sigma, self.predictor.predict(sigma))

    def take(self, index: int, sigma: float, value: Tensor) -> Tensor:
        """Take up the computed `value` of evaluation `index`; returns the answer, `value` itself where nothing is owed."""
        answer, on_path = self.corrector.answer_computed(index, sigma, value, self.predictor.points)
        self.predictor.add(sigma, on_path)
        return answer

    def copy_from(self, other: History) -> None:
        """Take over the state of another history of the same kind; tensors are shared."""
        self.predictor = other.predictor.copy()
        self.corrector.copy_from(other.corrector)

    def is_at(self, other: History) -> bool:
        """Whether both stand on the very same predictions."""
        own, others = self.predictor.points, other.predictor.points
        return len(own) == len(others) and all(a.value is b.value for a, b in zip(own, others, strict=True))
