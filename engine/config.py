"""What the user asked for: validated once, frozen, shared by every clone of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .tuning import AUTOMATIC_THRESHOLD

# The options of each knob are written here and nowhere else.
ForecastOf = Literal["auto", "noise", "denoised"]
When = Literal["auto", "always", "never"]
Memory = Literal["device", "8 bit", "offload"]
Control = Literal["auto", "reuse", "compute"]
FORECASTS, WHENS, MEMORIES, CONTROLS = (get_args(kind) for kind in (ForecastOf, When, Memory, Control))
AUTO, ADAPTIVE = "auto", "adaptive"
DEFAULT_PREDICTOR = "damped linear"  # those that there are stand in prediction/history.py
Interval = tuple[int, ...] | Literal["adaptive"] | None
# What is asked for by a preset's name.
PRESETS: dict[str, dict[str, Any]] = {
    "quality": {"pace": 2.0, "promise": 36.0},
    "balanced": {"pace": 5.0, "promise": 28.0},
    "fast": {"pace": 8.0, "promise": 22.0},
}
PACES = {name: own["pace"] for name, own in PRESETS.items()}


def check_shares(config: Any, *names: str) -> None:
    """Raises ValueError where one of these fields does not lie between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1")


def check_percents(config: Any) -> None:
    """Raises ValueError where start_percent and end_percent are no range within 0 and 1."""
    check_shares(config, "start_percent", "end_percent")
    if config.start_percent >= config.end_percent:
        raise ValueError(
            f"start_percent {config.start_percent} is not below end_percent {config.end_percent}; swap or widen them"
        )


def check_choice(config: Any, name: str, options: Sequence[str]) -> None:
    """Raises ValueError where a field is none of its options."""
    value = getattr(config, name)
    if value not in options:
        *others, last = options
        raise ValueError(f'{name} is "{value}"; choose {", ".join(others)} or {last}')


def parse_interval(text: str) -> Interval:
    """ "auto" -> None; "adaptive" as it is; "3" -> (3,); "1,3,5" -> (1, 3, 5), spread over the schedule.

    Raises ValueError for anything else, and for an interval below 1.
    """
    if text.strip().lower() == AUTO:
        return None
    if text.strip().lower() == ADAPTIVE:
        return ADAPTIVE
    try:
        interval = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f'interval is "{text}"; write auto, adaptive, a number such as 3, or a list such as 1,3,5,7,9'
        ) from None
    low = min(interval)
    if low < 1:
        raise ValueError(f"interval has {low}; the smallest is 1, which computes every evaluation")
    return interval


@dataclass(frozen=True)
class HighlightConfig:
    """Settings of Highlight Diffusion.

    pace: how many average steps of the schedule a dense evaluation serves; seven tenths of it under samplers that add noise,
    where a gap also ends before too much of the noise is new.
    interval: gaps between dense evaluations in steps instead, spread over the schedule; None leaves it to the pace, and
    "adaptive" to the error of the forecasts, measured while sampling, with more of it allowed at a higher pace.
    start_percent, end_percent: the share of the schedule in which anything may be saved.
    warmup: dense steps before the first gap; the highlight is found in them. 0 leaves their number to pace and model.
    correct: compute the highlight once in each longer gap and correct the forecast with it; "auto" where that was measured to
    be worth more than the same cost spent on dense evaluations.
    shallow: fill gaps with evaluations of the UNet's outermost blocks, with forecasts of what enters them from within, instead
    of forecasts of the prediction; "auto" where that was measured to be worth its cost.
    threshold: how narrow the highlight is; the default takes Otsu's thresholds, 0 everything.
    halo: cells computed around the highlight and thrown away.
    levels: how many of the UNet's levels, from the finest on, the highlight is computed through; what the deeper ones
    would give is forecast. 0 computes all.
    max_area: a highlight whose windows cover more of the frame is refused; the budget is then spent in time only.
    forecast: what is extrapolated, "auto" to choose it for the sampler.
    predictor: how it is extrapolated, a name in `prediction.history.PREDICTORS`; not a knob of the node.
    memory: where the tokens outside the highlight are kept: as they are on the model's device, there in 8 bits, or in the
    host's memory.
    control: whether partial evaluations reuse the residuals of control nets from dense ones or run the nets anew; "auto"
    reuses those of the host's own nets.
    revise: at each computed evaluation make up for what the forecasts before it got wrong.
    speed: how many times fewer evaluations are to be dense, placed by the shortest path; 0 leaves it to pace and interval.
    fidelity: least signal-to-noise ratio, in decibels, that the result is expected to have, with as few dense evaluations as
    that takes; 0 for none. Where a speed is given too, the slower of both counts.
    promise: the same, as a preset has it: of what the pace leaves where too little is known to expect anything, or where
    anything but forecasts is wanted. 0 for none.
    """

    pace: float = PACES["balanced"]
    interval: Interval = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    warmup: int = 0
    correct: When = "auto"
    shallow: When = "auto"
    threshold: float = AUTOMATIC_THRESHOLD
    halo: int = 2
    levels: int = 2
    max_area: float = 0.6
    forecast: ForecastOf = "auto"
    predictor: str = DEFAULT_PREDICTOR
    memory: Memory = "device"
    control: Control = "auto"
    revise: bool = True
    speed: float = 0.0
    fidelity: float = 0.0
    promise: float = 0.0
    enabled: bool = True

    def __post_init__(self) -> None:
        check_percents(self)
        check_shares(self, "threshold", "max_area")
        check_choice(self, "correct", WHENS)
        check_choice(self, "shallow", WHENS)
        check_choice(self, "memory", MEMORIES)
        check_choice(self, "control", CONTROLS)
        check_choice(self, "forecast", FORECASTS)
        self._check_interval()
        self._check_numbers()

    def _check_interval(self) -> None:
        if isinstance(self.interval, str) and self.interval != ADAPTIVE:
            raise ValueError(f'interval is "{self.interval}"; use "{ADAPTIVE}", None, or a tuple of gaps')
        if isinstance(self.interval, tuple) and min(self.interval, default=0) < 1:
            raise ValueError(f"interval is {self.interval}; it needs at least one gap, each 1 or more")
        if self.shallow == "always" and self.interval == ADAPTIVE:
            raise ValueError("shallow is always, but an adaptive interval goes by forecasts; choose another, or auto")

    def _check_numbers(self) -> None:
        if self.warmup < 2 and self.warmup != 0:
            raise ValueError(f"warmup is {self.warmup}; a forecast needs at least 2 dense steps to start from, or 0 for auto")
        if self.halo < 0:
            raise ValueError(f"halo is {self.halo}; it must be 0 or more cells")
        if self.levels < 0:
            raise ValueError(f"levels is {self.levels}; it must be 1 or more, or 0 for all of the UNet's")
        if self.speed != 0 and not 1 <= self.speed < float("inf"):
            raise ValueError(f"speed is {self.speed}; it must be a finite number, 1 or more, or 0 to leave it to the preset")
        self._check_limits()
        if self.speed or self.fidelity:
            self._check_path()
        if not 1 <= self.pace < float("inf"):
            raise ValueError(f"pace is {self.pace}; it must be a finite number, 1 or more")

    def _check_limits(self) -> None:
        for name in ("fidelity", "promise"):
            if not 0 <= (limit := getattr(self, name)) < float("inf"):
                raise ValueError(f"{name} is {limit}; it must be a finite number of decibels, or 0 for no limit")

    def _check_path(self) -> None:
        """Whoever asks for a speed or a fidelity leaves the gaps to the path."""
        name = "speed" if self.speed else "fidelity"
        asked = f"{name} is {getattr(self, name)}"
        if self.interval is not None:
            raise ValueError(f"{asked}, but the interval says which evaluations are dense; set that to auto, or {name} to 0")
        if self.predictor != DEFAULT_PREDICTOR:
            raise ValueError(f'{asked}, but errors of the predictor "{self.predictor}" are not known; use {DEFAULT_PREDICTOR}')
        if self.shallow == "always":
            raise ValueError(f"{asked}, but shallow is always, whose gaps go by the pace; set that to auto, or {name} to 0")

    @property
    def by_path(self) -> bool:
        """Whether dense evaluations are placed by the shortest path."""
        return self.speed > 0 or self.fidelity > 0

    @property
    def active(self) -> bool:
        """False when every evaluation is to be dense."""
        return self.enabled and (not isinstance(self.interval, tuple) or max(self.interval) > 1)
