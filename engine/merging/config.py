"""What the user asked of SDTM Token Merging: validated once, frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import MEMORIES, Memory, check_choice, check_percents, check_shares

PRESETS: dict[str, dict[str, float | int]] = {
    "quality": {"r": 0.3, "delta": 0.1, "switch": 0.4, "mcw": 0.0, "protect_steps": 3},
    "balanced": {"r": 0.5, "delta": 0.1, "switch": 0.4, "mcw": 0.0, "protect_steps": 4},
    "fast": {"r": 0.6, "delta": 0.1, "switch": 0.4, "mcw": 0.0, "protect_steps": 6},
}


def parse_blocks(text: str) -> tuple[int, ...]:
    """ "0,1,-1" -> (0, 1, -1); "" -> (). Raises ValueError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f'protect_blocks is "{text}"; write numbers of blocks with a comma between, such as 0,1,-1') from None


@dataclass(frozen=True)
class SDTMConfig:
    """Settings of token merging; r, delta, switch, window, a_s, a_d, a_p, mcw and protect_steps are the paper's or its code's.

    r, delta: the share of image tokens saved falls by a cosine from r + delta to r - delta. switch: the share of the schedule
    at which the structure stage ends. detail_attention: merge attention in the detail stage too, not the MLP alone.
    window: side of the windows in tokens. threshold: least likeness of what is merged, 1 for equal tokens, 0 for any.
    a_s, a_d: how much fairness counts in the structure and the detail stage. rotate: at each matching another
    token leads its window. reuse: how many evaluations a matching serves. mcw: how much of what sets merged tokens apart is
    lost; the rest is remembered from the last whole evaluation (temporal reuse), of which there is one every `protect_steps`.
    protect_blocks: blocks without merging, counted from the end where negative. start_percent, end_percent: nothing is
    merged outside this share of the schedule. a_p: log weight of the prompt in joint attention, from +a_p at the start to
    -a_p at the end. proportional: in attention a merged token weighs as many as it stands for, as in ToMe (Bolya et al., 2023);
    of all there is to choose here this keeps most of the picture. memory: how what is remembered is kept, as it is on the
    model's device, there in 8 bits, or in the host's memory.
    """

    r: float = 0.5
    delta: float = 0.1
    switch: float = 0.4
    detail_attention: bool = True
    window: int = 2
    threshold: float = 0.0
    a_s: float = 0.05
    a_d: float = 0.05
    a_p: float = 0.0
    proportional: bool = True
    rotate: bool = True
    reuse: int = 4
    mcw: float = 0.0
    protect_steps: int = 4
    protect_blocks: tuple[int, ...] = ()
    start_percent: float = 0.0
    end_percent: float = 1.0
    memory: Memory = "device"
    enabled: bool = True

    def __post_init__(self) -> None:
        check_shares(self, "r", "delta", "switch", "mcw")
        check_percents(self)
        if not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}; it must lie between -1 and 1; 0 sets none")
        if not 2 <= self.window <= 8:
            raise ValueError(f"window is {self.window}; it must be 2 to 8 tokens")
        if self.reuse < 1:
            raise ValueError(f"reuse is {self.reuse}; a matching serves at least 1 evaluation")
        if self.protect_steps < 0 or self.protect_steps == 1:
            raise ValueError(f"protect_steps is {self.protect_steps}; every 2nd or a later evaluation, or 0 for none")
        check_choice(self, "memory", MEMORIES)
        if self.mcw < 1 and not self.protect_steps:
            raise ValueError(
                f"mcw is {self.mcw}, so detail is remembered from whole evaluations, but protect_steps 0 makes none; set mcw "
                "to 1 or protect_steps to 2 or more"
            )

    @property
    def active(self) -> bool:
        return self.enabled and self.r + self.delta > 0

    def ratio(self, progress: float) -> float:
        """Share of image tokens saved at this share of the schedule: r + delta at 0, r - delta at 1."""
        most = 1 - self.window**-2
        return min(most, max(0.0, self.r - self.delta + 2 * self.delta * math.cos(math.pi / 2 * progress)))

    def spared_blocks(self, count: int) -> frozenset[int]:
        return frozenset(block % count for block in self.protect_blocks if -count <= block < count)


# What a plan of Highlight Diffusion merges with: half of the tokens, window by window; python run.py few
PLANNED = SDTMConfig(r=0.5, delta=0.0, switch=1.0)
