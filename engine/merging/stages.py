"""Structure-then-detail token merging over one sampling run: what is merged at each evaluation.

The stages, the ratio's descent and the two priorities are those of SDTM (Fang et al., CVPR 2025; arXiv 2505.11707), as far as
its abstract and its released code tell. Ours are the metric (patches of the last prediction), the share of the residual that
is remembered, and what the prompt does not look at as the measure of inattention.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..method import DenseContext
from ..partial.token_subset import TokenGrid
from ..placement.plan import Merging
from ..trace import Evaluation
from .config import SDTMConfig
from .job import MergeJob
from .key_bias import KeyBias, prompt_weight
from .matcher import BUCKETS, Matcher
from .sites import ATTENTION, MLP

MLP_SHARE = 0.5  # of a block's cost that is saved where its MLP alone is merged, for the picture of what is merged


def progress_of(sigma: float, sigmas: Sequence[float]) -> float:
    """How far along the schedule (descending, its final 0 included) a sigma is: 0 at the first step, 1 at the last."""
    last = len(sigmas) - 2
    for i in range(last):
        high, low = sigmas[i], sigmas[i + 1]
        if sigma > low * (1 + 1e-4):
            return (i + min(1.0, max(0.0, (high - sigma) / max(high - low, 1e-9)))) / last
    return 1.0


class MergingRun:
    """The state of merging over one run, a `Method` of it.

    sigmas: the schedule, its final 0 included. grid: the tokens of an image. images: how many images a batch has. depth: how
    many blocks the transformer has. sigma_range: the highest and the lowest sigma between which anything may be merged.
    by_plan: whether nothing is merged, or said, but where a plan wants it.
    """

    held_as = "merging remembers"

    def __init__(
        self, config: SDTMConfig, sigmas: Sequence[float], grid: TokenGrid, images: int, depth: int,
        sigma_range: tuple[float, float] = (float("inf"), 0.0), by_plan: bool = False,
    ):  # fmt: skip
        self.config, self.sigmas, self.depth, self.sigma_range = config, tuple(sigmas), depth, sigma_range
        self.by_plan = by_plan
        self.matcher = Matcher(config, grid, images)
        self.stage, self.target = "", ("", 0)  # of the present matching
        self.age = 0  # merged evaluations of the present matching
        self.since_exact = 0  # merged evaluations since the last exact one
        self.recorded = False  # whether that one recorded residuals

    @property
    def active(self) -> bool:
        return self.config.active

    @property
    def merges(self) -> bool:
        """Whether it can merge where a plan wants that, which needs what sets tokens apart."""
        return self.active and self.remembers

    @property
    def remembers(self) -> bool:
        """Whether residuals are recorded in exact evaluations and used in merged ones."""
        return self.config.mcw < 1

    @property
    def bytes(self) -> int:
        return self.matcher.bytes

    def wants_heatmap(self, evaluation: Evaluation) -> bool:
        """In exact evaluations from the second step on, while there is something to merge."""
        return self.active and not self.by_plan and evaluation.step >= 1

    def before_dense(self, evaluation: Evaluation, context: DenseContext) -> MergeJob | None:
        """Decide what is merged in a dense evaluation, None for nothing."""
        progress = progress_of(evaluation.sigma, self.sigmas)
        if blocked := context.blocked_because or self._outside(evaluation.sigma):
            self._say(evaluation, context, f"not merged: {blocked}")
            self.forget()
            return None
        if exact := context.exact_because or self._exact_because(progress, context.planned):
            self._say(evaluation, context, f"whole: {exact}")
            wanted = self.remembers and (context.planned == "record" or not self.by_plan)
            self.since_exact, self.recorded = 0, wanted and self._match(progress, context)
            return self._job(record=True) if self.recorded else None
        return self._merged(evaluation, context, progress)

    def _merged(self, evaluation: Evaluation, context: DenseContext, progress: float) -> MergeJob | None:
        """Merge by the present matching, or by a new one where that has served long enough and nothing hangs on it."""
        self.since_exact += 1
        if not self.remembers and (self.age >= self.config.reuse or self._target(progress) != self.target):
            self._match(progress, context)
        self.age += 1
        if not any(image.merge for image in self.matcher.images):
            return None
        self._describe(evaluation, context)
        return self._job(record=False, prompt=prompt_weight(self.config.a_p, progress))

    def _outside(self, sigma: float) -> str | None:
        """Why a sigma is out of range, or None."""
        highest, lowest = self.sigma_range
        return None if lowest <= sigma <= highest else "outside start and end percent"

    def _job(self, record: bool, prompt: float = 0.0) -> MergeJob:
        weighs = not record and (bool(self.config.a_p) or self.config.proportional)
        return MergeJob(
            self.matcher.matched, self._parts, record, self.config.spared_blocks(self.depth),
            KeyBias(prompt, self.config.proportional) if weighs else None, uses_residuals=self.remembers,
            images_of=self.matcher.matched_within,
        )  # fmt: skip

    def _exact_because(self, progress: float, planned: Merging | None) -> str | None:
        """Why an evaluation is to be exact, or None."""
        if not self.matcher.ready:
            return "no prediction yet to match tokens by"
        if not self._target(progress)[1]:
            return "the ratio has fallen to 0"
        if kept := self._kept_exact(planned):
            return kept
        if self.remembers and not self.recorded:
            some = self.matcher.saved or not self.matcher.turns
            return "no detail recorded yet" if some else "no window is free to be merged"
        return None

    def _kept_exact(self, planned: Merging | None) -> str | None:
        """Why the plan, or our own schedule where that is silent, keeps an evaluation exact, or None."""
        if planned is not None or self.by_plan:
            return None if planned == "merge" else "as planned"
        due = self.config.protect_steps and self.since_exact >= self.config.protect_steps - 1
        return f"one of {self.config.protect_steps} is" if due else None

    def _say(self, evaluation: Evaluation, context: DenseContext, text: str) -> None:
        if not self.by_plan or context.planned == "merge":
            evaluation.reason = text if context.alone else f"{evaluation.reason}; {text}"

    @property
    def _parts(self) -> frozenset[str]:
        """The parts of a block that the present stage merges."""
        both = self.stage == "structure" or self.config.detail_attention
        return frozenset((ATTENTION, MLP) if both else (MLP,))

    def _target(self, progress: float) -> tuple[str, int]:
        """The stage, and how many parts of the tokens are to be saved."""
        stage = "structure" if progress < self.config.switch else "detail"
        return stage, int(self.config.ratio(progress) * BUCKETS + 1e-6)

    def _match(self, progress: float, context: DenseContext) -> bool:
        """Match anew; False where nothing is to be merged."""
        self.target, self.age = self._target(progress), 0
        self.stage = self.target[0]
        return self.matcher.match(*self.target, context)

    def _describe(self, evaluation: Evaluation, context: DenseContext) -> None:
        left, count = self.matcher.counts()
        attention = ATTENTION in self._parts
        evaluation.active = left / count
        evaluation.tokens_saved, evaluation.parts_merged = count - left, tuple(sorted(self._parts))
        where = "attention and MLP" if attention else "MLP"
        self._say(evaluation, context, f"{self.stage}: {count - left} of {count} tokens saved in {where}")
        merged_blocks = 1 - len(self.config.spared_blocks(self.depth)) / self.depth
        maps = self.matcher.shares((1.0 if attention else MLP_SHARE) * merged_blocks)
        evaluation.merged = maps.to("cpu", non_blocking=maps.is_cuda)  # nothing here waits for the device

    def after_dense(self, prediction: Tensor) -> None:
        """Match by the patches of this prediction from now on."""
        if self.active:
            self.matcher.learn(prediction)

    def forget(self) -> None:
        """Drop what was recorded: the conditioning changed, or something else came between."""
        self.since_exact, self.age, self.recorded, self.target = 0, 0, False, ("", 0)
        self.matcher.forget()

    def begin_anew(self) -> None:
        """Forget, and drop what was learnt of predictions too: those to come are of another latent."""
        self.forget()
        self.matcher.unlearn()
