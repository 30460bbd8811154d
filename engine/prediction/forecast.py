"""Forecasts of a prediction from earlier evaluations, apart for the whole frame and for the highlight."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..placement.time_axis import Axis, log_ratio, log_sigma
from ..trace import Boxes, inside
from .response import Response, Space

MAX_REACH = 4.0  # how many spacings of the last two points a straight line is trusted
# How much of the last slope goes on, measured on the demo model: all of it overshoots, none of it lags behind.
PERSISTENCE = {"noise": 0.7, "denoised": 0.5}
FLOW_SPACING = 0.65  # of two points on the axis of a flow, at which half of that goes on: a slope over more says less
# Over more spacings of the two points before a gap than this, the parabola through them and its end says too little: in
# the demo model's early steps it ruins pictures (29 for 48 dB) that it mends by 3 to 5 dB within.
PARABOLA_REACH = 2.5
TRUSTED_SHARE = 0.03  # of the prediction: how far off its path a sampler may be and still be brought back along a parabola
REPAID_WITHIN = 8  # evaluations; what a multistep sampler still owes then is under a thousandth


def extrapolate(newer: Tensor, older: Tensor, weight: float) -> Tensor:
    """newer + weight * (newer - older)."""
    return newer.lerp(older, -weight) if weight else newer


def reach(sigma: float, newer: float, older: float, axis: Axis = log_sigma) -> float:
    """How far `sigma` lies beyond `newer`, in spacings of newer and older."""
    return max(0.0, min(MAX_REACH, _spacings(sigma, newer, older, axis))) if older > newer * (1 + 1e-6) else 0.0


def _spacings(sigma: float, newer: float, older: float, axis: Axis) -> float:
    return (axis(sigma) - axis(newer)) / (axis(newer) - axis(older))


def quadratic_weights(
    sigma: float, oldest: float, older: float, newest: float, axis: Axis = log_sigma
) -> tuple[float, float, float]:
    """Lagrange weights at `sigma` of the parabola through three sigmas, on the axis."""
    t, a, b, c = (axis(s) for s in (sigma, oldest, older, newest))
    return (
        (t - b) * (t - c) / ((a - b) * (a - c)),
        (t - a) * (t - c) / ((b - a) * (b - c)),
        (t - a) * (t - b) / ((c - a) * (c - b)),
    )


def persistence(space: Space, newer: float, older: float, axis: Axis = log_sigma) -> float:
    """How much of the slope between the points at two sigmas goes on in a forecast."""
    if axis is not log_ratio:
        return PERSISTENCE[space]
    return PERSISTENCE["noise"] / (1 + ((axis(newer) - axis(older)) / FLOW_SPACING) ** 3)


@dataclass
class Point:
    sigma: float
    value: Tensor


@dataclass
class History:
    """Predictions (B, C, ...) of one branch along a run, as computed and as forecast in between.

    When a prediction is computed at the end of a gap, those forecast in it are known better: on the parabola through the
    three last computed ones. What the sampler should have got and what it got differ by `owed`, by evaluation; the
    `response` says how far that has moved the sampler off its path, and with what to answer now to bring it back. That
    is a predictor-corrector in the PEC mode (as UniPC's corrector, Zhao et al. 2023, arXiv 2302.04867): a better order
    at no further evaluation.
    """

    space: Space
    response: Response | None = None
    axis: Axis = log_sigma
    points: list[Point] = field(default_factory=list)
    given: list[tuple[int, Point]] = field(default_factory=list)  # forecasts since the newest point
    owed: dict[int, Tensor] = field(default_factory=dict)
    settled: int = 0
    before: tuple[int, dict[int, Tensor]] = field(default_factory=lambda: (-1, {}))  # what was owed before the newest forecast

    def extrapolated(self, sigma: float) -> Tensor:
        older, newer = self.points
        sigmas = newer.sigma, older.sigma
        weight = persistence(self.space, *sigmas, self.axis) * reach(sigma, *sigmas, self.axis)
        return extrapolate(newer.value, older.value, weight)

    def give(self, index: int, sigma: float, value: Tensor) -> Tensor:
        """Answer evaluation `index` with the forecast `value`, and with what is still owed."""
        self.given.append((index, Point(sigma, value)))
        self.before = index, dict(self.owed)
        return self._repaid(index, value)

    def take(self, index: int, sigma: float, value: Tensor) -> Tensor:
        """Take up the computed `value` of evaluation `index`; returns what to answer, the same where nothing is owed."""
        if self.before[0] == index:  # its forecast was never handed out
            self.owed = dict(self.before[1])
        off = self._revise(index, sigma, value)
        if self.points and sigma >= self.points[-1].sigma * (1 - 1e-6):
            self.points.pop()  # the same sigma again, as Heun's second evaluation: the newer one counts
        self.points.append(Point(sigma, value))
        del self.points[:-2]
        self.given.clear()
        # The denoised image is what holds where the state is off: the noise in that state is more or less by as much.
        held = value if off is None or self.space == "denoised" else value + off / sigma
        return self._repaid(index, held)

    def _revise(self, index: int, sigma: float, value: Tensor) -> Tensor | None:
        """Note what the forecasts of this gap owe; returns how far the state is off, None where that is not known."""
        given = [(i, point) for i, point in self.given if i < index]
        if self.response is None or not self.response.knows(index, sigma):
            self.owed.clear()
            return None
        if given and self._bracketed(given[0][1].sigma, sigma):
            sigmas = [point.sigma for point in self.points]
            weights = {i: quadratic_weights(point.sigma, *sigmas, sigma, self.axis) for i, point in given}
            moves = self.response.moves[index]
            computed = [point.value for point in self.points] + [value]
            revised = {i: sum(w * v for w, v in zip(weights[i], computed, strict=True)) - p.value for i, p in given}
            off = sum(moves[i] * change for i, change in revised.items())
            if self.space == "noise":  # `value` itself is more by off / sigma, and so is what hangs on it
                share = sum(moves[i] * weights[i][2] for i, _ in given) / sigma
                off = off / (1 - share) if share < 0 else off
                revised = {i: change + weights[i][2] / sigma * off for i, change in revised.items()}
            trust = self._trust(off, value, sigma)
            for i, change in revised.items():
                self.owed[i] = self.owed[i] + trust * change if i in self.owed else trust * change
            self.settled = index
        return self._moved(index) if self.owed else None

    def _bracketed(self, first: float, sigma: float) -> bool:
        """True where the gap from the newest point to `sigma`, forecast from `first` on, can be put on a parabola."""
        if len(self.points) < 2:
            return False
        older, newer = (point.sigma for point in self.points)
        return (
            older > newer * (1 + 1e-6)
            and newer >= first
            and newer > sigma
            and _spacings(sigma, newer, older, self.axis) <= PARABOLA_REACH
        )

    def _trust(self, off: Tensor, value: Tensor, sigma: float) -> Tensor:
        """How much of a revision to make for each image, (B, 1, ...) in 0..1: less the further the state is off, since
        then what is computed there is not what it would be on the path. Measured on the demo model, at gaps of 2 to 9."""
        dims = tuple(range(1, off.ndim))
        scale = sigma if self.space == "noise" else 1.0
        share = off.square().mean(dims, keepdim=True) / (scale**2 * value.square().mean(dims, keepdim=True)).clamp(min=1e-12)
        return 1 / (1 + share / TRUSTED_SHARE**2)

    def _moved(self, index: int) -> Tensor:
        """How far what is owed has the state of evaluation `index` off its path."""
        return sum(self.response.moves[index][i] * change for i, change in self.owed.items())

    def _repaid(self, index: int, value: Tensor) -> Tensor:
        """Change an answer so that the next state is on its path again."""
        if not self.owed:
            return value
        if index > self.settled + REPAID_WITHIN:
            self.owed.clear()
            return value
        row = self.response.moves[index + 1]
        if abs(row[index]) <= 1e-3 * max(abs(row[i]) for i in self.owed):
            return value  # this prediction hardly moves the next state; a later one will
        change = self._moved(index + 1) / row[index]
        if self.response.forgets:
            self.owed.clear()
        else:
            self.owed[index] = self.owed[index] - change if index in self.owed else -change
        return value + change


class Forecast:
    """What is known of one branch's prediction (B, C, ...) along a sampling run.

    space: "noise" keeps (x - denoised) / sigma, the slope of the sampler's path, which deterministic samplers are
    linear in; "denoised" keeps the denoised image, the only smooth thing under fresh noise. Both are extrapolated on
    the axis along the slope of the last two points, damped by `PERSISTENCE`. The inside of the highlight has a
    history of its own, which partial evaluations extend. response: the sampler's, None to let past forecasts stand.
    """

    def __init__(self, space: Space, response: Response | None = None, axis: Axis = log_sigma):
        self.space = space
        self.whole, self.inside = History(space, response, axis), History(space, response, axis)

    def _prediction(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        return (x - denoised) / sigma if self.space == "noise" else denoised

    def _answer(self, x: Tensor, whole: Tensor, inner: Tensor, sigma: float, boxes: Boxes) -> Tensor:
        """The denoised image of predictions, inside `boxes` of `inner`."""
        if inner is not whole and any(boxes):
            whole = whole.clone()
            for box in inside(boxes):
                whole[box] = inner[box]
        return x - sigma * whole if self.space == "noise" else whole

    @property
    def ready(self) -> bool:
        return len(self.whole.points) == 2

    @property
    def last_sigma(self) -> float:
        return min(self.whole.points[-1].sigma, self.inside.points[-1].sigma)

    @property
    def _apart(self) -> bool:
        """True while the inside has a history of its own."""
        return any(a.value is not b.value for a, b in zip(self.whole.points, self.inside.points, strict=True))

    def add_dense(self, index: int, x: Tensor, denoised: Tensor, sigma: float, boxes: Boxes = ()) -> Tensor:
        """Record evaluation `index`, a full one at x, as computed; returns what to answer. Tensors are kept, not copied."""
        value = self._prediction(x, denoised, sigma)
        apart = any(boxes) and self.whole.points and self._apart
        whole = self.whole.take(index, sigma, value)
        inner = self.inside.take(index, sigma, value) if apart else self._join(whole)
        if whole is value and inner is value:
            return denoised
        return self._answer(x, whole, inner, sigma, boxes)

    def add_partial(self, index: int, x: Tensor, denoised: Tensor, sigma: float, boxes: Boxes) -> Tensor:
        """Record a partial evaluation, of which only the inside of `boxes` is computed; returns what to answer there."""
        inner = self.inside.take(index, sigma, self._prediction(x, denoised, sigma))
        answer = denoised.clone()
        full = x - sigma * inner if self.space == "noise" else inner
        for box in inside(boxes):
            answer[box] = full[box]
        return answer

    def error(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """rms(prediction - its forecast) / rms(prediction) at x, a scalar on the device."""
        value = self._prediction(x, denoised, sigma).float()
        return (value - self.whole.extrapolated(sigma)).square().mean().div(value.square().mean().clamp(min=1e-12)).sqrt()

    def predict(self, index: int, x: Tensor, sigma: float, boxes: Boxes = ()) -> Tensor:
        """Forecast the denoised image at x and sigma; inside `boxes` from the highlight's own history."""
        apart = any(boxes) and self._apart
        whole = self.whole.give(index, sigma, self.whole.extrapolated(sigma))
        inner = self.inside.give(index, sigma, self.inside.extrapolated(sigma)) if apart else self._join(whole)
        return self._answer(x, whole, inner, sigma, boxes)

    def _join(self, whole: Tensor) -> Tensor:
        """Let the inside have the history of the whole."""
        for name in ("points", "given"):
            setattr(self.inside, name, list(getattr(self.whole, name)))
        self.inside.owed, self.inside.settled = dict(self.whole.owed), self.whole.settled
        self.inside.before = self.whole.before
        return whole
