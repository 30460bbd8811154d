"""Structure-then-detail token merging over one sampling run: what is merged at each evaluation.

The stages, the ratio's descent and the two priorities are those of SDTM (Fang et al., CVPR 2025; arXiv 2505.11707), as far as
its abstract and its released code tell. Ours are the metric (patches of the last prediction), the share of the detail that
is remembered, and what the prompt does not look at as the measure of inattention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Memory
from ..partial.tokens import TokenGrid
from ..placement.plan import OFF
from ..trace import Evaluation
from .key_bias import prompt_weight
from .matching import Merge, fairness, likeness, merge_tokens, merge_windows, similarity, windows
from .sites import ATTENTION, MLP, Details

BUCKETS = 32  # merged counts are so many-th parts of the tokens, so that few shapes occur


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
        for name in ("r", "switch", "mcw", "start_percent", "end_percent"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
        if not 0.0 <= self.delta <= 1.0:
            raise ValueError(f"delta is {self.delta}; it must lie between 0 and 1")
        if not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}; it must lie between -1 and 1; 0 sets none")
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent {self.start_percent} is not below end_percent {self.end_percent}; swap or widen them"
            )
        if not 2 <= self.window <= 8:
            raise ValueError(f"window is {self.window}; it must be 2 to 8 tokens")
        if self.reuse < 1:
            raise ValueError(f"reuse is {self.reuse}; a matching serves at least 1 evaluation")
        if self.protect_steps < 0 or self.protect_steps == 1:
            raise ValueError(f"protect_steps is {self.protect_steps}; every 2nd or a later evaluation, or 0 for none")
        if self.memory not in get_args(Memory):
            raise ValueError(f'memory is "{self.memory}"; choose {", ".join(get_args(Memory))}')
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


def progress_of(sigma: float, sigmas: Sequence[float]) -> float:
    """How far along the schedule (descending, its final 0 included) a sigma is: 0 at the first step, 1 at the last."""
    last = len(sigmas) - 2
    for i in range(last):
        high, low = sigmas[i], sigmas[i + 1]
        if sigma > low * (1 + 1e-4):
            return (i + min(1.0, max(0.0, (high - sigma) / max(high - low, 1e-9)))) / last
    return 1.0


def patches(denoised: Tensor, grid: TokenGrid) -> Tensor:
    """Latent (C, [frames,] H, W) -> one vector a token (count, C * patch * patch)."""
    x = denoised.float().reshape(denoised.shape[0], grid.frames, *grid.frame)
    h, w = grid.size
    x = F.pad(x, (0, w * grid.patch - grid.frame[1], 0, h * grid.patch - grid.frame[0]), mode="replicate")
    x = x.unflatten(-1, (w, grid.patch)).unflatten(-3, (h, grid.patch))  # C, frames, h, p, w, p
    return x.permute(1, 2, 4, 0, 3, 5).flatten(3).flatten(0, 2)


@dataclass
class Image:
    """What is known of one image of a batch."""

    details: Details
    features: Tensor | None = None
    idle: Tensor | None = None  # matchings since each token was last merged
    merge: Merge | None = None


class MergingRun:
    """State of one run: asked at each computed evaluation what to merge, told its predictions.

    first_sigma, last_sigma: between them anything may be merged. depth: how many blocks there are.
    """

    def __init__(
        self, config: SDTMConfig, sigmas: Sequence[float], grid: TokenGrid, images: int, depth: int,
        first_sigma: float = float("inf"), last_sigma: float = 0.0,
    ):  # fmt: skip
        self.config, self.sigmas, self.grid = config, tuple(sigmas), grid
        self.members = windows(grid.size, (config.window, config.window), grid.frames)
        self.first_sigma, self.last_sigma = first_sigma, last_sigma
        self.images = [Image(Details(1 - config.mcw, (i, images), config.memory)) for i in range(images)]
        self.spared, self.depth = config.spared_blocks(depth), depth
        self.attended: Tensor | None = None  # bool (B, h, w), what is never merged
        self.heat: Tensor | None = None  # float (B, 1, h, w), what the prompt looks at
        self.kinds: frozenset[str] = frozenset()  # what is merged in this evaluation, nothing where it is whole
        self.prompt_weight = 0.0  # log weight of the prompt in this evaluation
        self.target, self.stage, self.saved = ("", 0), "", 0  # the latter as far as there is room
        self.age, self.since, self.turn = 0, 0, 0  # merged evaluations of this matching, of this stretch; matchings
        self.recording = False  # whether this evaluation records what the next ones need
        self.recorded = False

    @property
    def active(self) -> bool:
        return self.config.active

    @property
    def remembers(self) -> bool:
        return self.config.mcw < 1

    def wants_heat(self, evaluation: Evaluation) -> bool:
        """Whether to listen to what the prompt looks at: in whole evaluations, while there is something to merge."""
        return self.active and evaluation.step >= 1

    # -- before an evaluation ------------------------------------------------------------------------------------

    def begin(self, evaluation: Evaluation, blocked: str | None = None, whole: str | None = None) -> None:
        """Decide what is merged in a computed evaluation. blocked: why nothing may be at all; whole: why this one may not."""
        self.kinds, self.recording = frozenset(), False
        if not self.active:
            return
        sigma = evaluation.sigma
        progress = progress_of(sigma, self.sigmas)
        if not self.last_sigma <= sigma <= self.first_sigma:
            blocked = blocked or "outside start and end percent"
        if blocked:
            self._say(evaluation, f"not merged: {blocked}")
            self.forget()
            return
        whole = whole or self._whole(progress)
        if whole:
            self._say(evaluation, f"whole: {whole}")
            self.since, self.recording = 0, self.remembers and self._match(progress)
            self.recorded = self.recording
            return
        self.since += 1
        if not self.remembers and (self.age >= self.config.reuse or self._target(progress) != self.target):
            self._match(progress)
        self.age += 1
        if any(image.merge is not None for image in self.images):
            self.kinds = self.kinds_of_stage
            self.prompt_weight = prompt_weight(self.config.a_p, progress)
            self._describe(evaluation)

    def _whole(self, progress: float) -> str | None:
        """Why an evaluation is to be computed whole, or None."""
        if any(image.features is None for image in self.images):
            return "no prediction yet to match tokens by"
        if not self._target(progress)[1]:
            return "the ratio has fallen to 0"
        if self.config.protect_steps and self.since >= self.config.protect_steps - 1:
            return f"one of {self.config.protect_steps} is"
        if self.remembers and not self.recorded:
            return "no detail recorded yet" if self.saved or not self.turn else "no window is free to be merged"
        return None

    @staticmethod
    def _say(evaluation: Evaluation, text: str) -> None:
        evaluation.reason = text if evaluation.reason == OFF else f"{evaluation.reason}; {text}"

    @property
    def weighs(self) -> bool:
        """Whether keys are weighted in merged evaluations, which takes an attention mask."""
        return bool(self.config.a_p) or self.config.proportional

    @property
    def kinds_of_stage(self) -> frozenset[str]:
        """What this stage merges."""
        both = self.stage == "structure" or self.config.detail_attention
        return frozenset((ATTENTION, MLP) if both else (MLP,))

    def _target(self, progress: float) -> tuple[str, int]:
        """The stage, and how many parts of the tokens are to be saved."""
        stage = "structure" if progress < self.config.switch else "detail"
        return stage, int(self.config.ratio(progress) * BUCKETS + 1e-6)

    # -- matching ------------------------------------------------------------------------------------------------

    def _match(self, progress: float) -> bool:
        """Match the tokens of every image anew; False where nothing is to be merged."""
        self.target = self.stage, self.saved = self._target(progress)
        self.age = 0
        own = [self.members[self._free(index)] for index in range(len(self.images))]
        self.saved = min(self.saved, *(self._room(m) for m in own))
        ready = all(image.features is not None for image in self.images)
        for index, image in enumerate(self.images):
            image.details.clear()
            image.merge = self._merge(index, image, own[index]) if ready and self.saved else None
        self.turn += 1
        return ready and self.saved > 0

    def _free(self, index: int) -> Tensor:
        """Bool (W,): windows without an attended token."""
        if self.attended is None:
            return torch.ones(len(self.members), dtype=torch.bool)
        mask = self.attended[index][None, None].float()
        mask = F.adaptive_max_pool2d(mask, self.grid.size)[0, 0].flatten().repeat(self.grid.frames) > 0
        return ~mask[self.members].any(1)

    def _room(self, members: Tensor) -> int:
        """How many parts of the tokens these windows (W, k) can save."""
        return len(members) * (members.shape[1] - 1) * BUCKETS // self.grid.count

    def _merge(self, index: int, image: Image, members: Tensor) -> Merge | None:
        config, count, k = self.config, self.grid.count, members.shape[1]
        features = image.features
        members = members.to(features.device)
        lead = self.turn if config.rotate else 0
        if image.idle is None:
            image.idle = torch.ones(count, device=features.device)
        fair, pairs = fairness(image.idle)[members], likeness(features, members)
        number = self.saved * count // BUCKETS
        if self.stage == "structure":
            alike = similarity(pairs)
            score, number = alike + config.a_s * fair.mean(1), number // (k - 1)
            merge_by = merge_windows
        else:
            alike = pairs[:, lead % k].clone()
            alike[:, lead % k] = -torch.inf  # it leads
            score = alike + config.a_d * fair + self._inattention(index, members)
            merge_by = merge_tokens
        if config.threshold:
            score = torch.where(alike >= config.threshold, score, -torch.inf)
            part = max(1, count // BUCKETS // k)
            number = min(number, int((alike >= config.threshold).sum()) // part * part)  # one small transfer
        if not number:
            return None
        merge = merge_by(score, members, number, count, lead)
        image.idle = torch.where(merge.shared(), 0.0, image.idle) + 1
        return merge

    def _inattention(self, index: int, members: Tensor) -> Tensor | float:
        """How little the prompt looks at each token (W, k), 0..1; nothing where that is not known."""
        if self.heat is None:
            return 0.0
        heat = F.interpolate(self.heat[index][None].float(), self.grid.size, mode="bilinear", antialias=True)
        heat = heat.flatten().repeat(self.grid.frames).to(members.device)
        return 1 - heat[members]

    def _describe(self, evaluation: Evaluation) -> None:
        done = [image.merge for image in self.images if image.merge is not None]
        count = len(self.images) * self.grid.count
        left = sum(merge.merged_count for merge in done) + (len(self.images) - len(done)) * self.grid.count
        evaluation.active = left / count
        where = "attention and MLP" if ATTENTION in self.kinds else "MLP"
        self._say(evaluation, f"{self.stage}: {count - left} of {count} tokens saved in {where}")
        share = (1.0 if ATTENTION in self.kinds else 0.5) * (1 - len(self.spared) / self.depth)
        none = torch.zeros(self.grid.count, device=done[0].rows.device)
        shared = torch.stack([none if image.merge is None else image.merge.shared() * share for image in self.images])
        maps = shared.unflatten(1, (self.grid.frames, *self.grid.size)).mean(1)
        evaluation.merged = maps.to("cpu", non_blocking=maps.is_cuda)  # nothing here waits for the device

    # -- after an evaluation -------------------------------------------------------------------------------------

    def learn(self, denoised: Tensor) -> None:
        """Take up a prediction (B, C, [frames,] H, W), by whose patches tokens are matched next."""
        if self.active:
            for image, own in zip(self.images, denoised, strict=True):
                image.features = patches(own.detach(), self.grid)

    def forget(self) -> None:
        """Drop what was recorded: the conditioning changed, or something else came between."""
        self.since, self.age, self.recorded, self.target = 0, 0, False, ("", 0)
        for image in self.images:
            image.details.clear()
            image.merge = None

    def begin_anew(self) -> None:
        """Drop what was learnt of predictions too: the next ones are of another latent."""
        self.forget()
        self.heat = self.attended = None
        for image in self.images:
            image.features = image.idle = None

    @property
    def bytes(self) -> int:
        return sum(image.details.bytes for image in self.images)
