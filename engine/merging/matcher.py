"""Which tokens of each image are merged: matched by the patches of the last prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..method import DenseContext
from ..partial.cache import ImageRows
from ..partial.token_subset import TokenGrid
from .config import SDTMConfig
from .job import Frames, ImageMerge
from .matching import Merge, merge_tokens, merge_windows, normalised_age, pairwise_similarity, window_similarity, windows
from .sites import MergeResiduals

BUCKETS = 32  # merged counts are multiples of 1 / BUCKETS of the tokens, so that few shapes occur


def patches(denoised: Tensor, grid: TokenGrid) -> Tensor:
    """Latent (C, [frames,] H, W) -> one vector for each token (count, C * patch * patch)."""
    x = denoised.float().reshape(denoised.shape[0], grid.frames, *grid.frame)
    h, w = grid.size
    x = F.pad(x, (0, w * grid.patch - grid.frame[1], 0, h * grid.patch - grid.frame[0]), mode="replicate")
    return rearrange(x, "c f (h p) (w q) -> (f h w) (c p q)", p=grid.patch, q=grid.patch)


@dataclass
class ImageTokens:
    """What is known of one image: features (count, C) of its tokens; age (count,), the matchings since each was last merged,
    and what it was before the present merge; that merge; and the residuals of merged tokens."""

    residuals: MergeResiduals
    features: Tensor | None = None
    age: Tensor | None = None
    age_before: Tensor | None = None
    merge: Merge | None = None


class Matcher:
    """Matches the tokens of a batch of `images` images, in windows that stay where they are."""

    def __init__(self, config: SDTMConfig, grid: TokenGrid, images: int):
        self.config, self.grid = config, grid
        self.members = windows(grid.size, (config.window, config.window), grid.frames)
        self.images = [ImageTokens(MergeResiduals(1 - config.mcw, ImageRows(i, images), config.memory)) for i in range(images)]
        self.saved = 0  # parts of the tokens that the last matching saves, as far as there is room
        self.turns = 0  # matchings so far
        self.asked: tuple[str, int, DenseContext] | None = None  # what the last matching was by
        self.windows: dict[Frames, Matcher] = {}  # the same matching of a video's windows, by their frames

    @property
    def ready(self) -> bool:
        """Whether there is a prediction of every image to match by."""
        return all(image.features is not None for image in self.images)

    @property
    def matched(self) -> tuple[ImageMerge, ...]:
        """The present merges."""
        return tuple(ImageMerge(image.merge, image.residuals) for image in self.images)

    def matched_within(self, frames: Frames) -> tuple[ImageMerge, ...]:
        """The present merges of a window of a video that has these frames, matched as those of the whole video are."""
        if frames not in self.windows:
            self.windows[frames] = self._window(frames)
        return self.windows[frames].matched

    def _window(self, frames: Frames) -> Matcher:
        own = Matcher(self.config, replace(self.grid, frames=len(frames)), len(self.images))
        own.turns = self.turns - 1
        for image, whole in zip(own.images, self.images, strict=True):
            image.features, image.age = (self._of_frames(of, frames) for of in (whole.features, whole.age_before))
        if self.asked is not None:
            own.match(*self.asked)
        return own

    def _of_frames(self, tokens: Tensor | None, frames: Frames) -> Tensor | None:
        """Of what all tokens (count, ...) have, that of some frames' tokens."""
        if tokens is None:
            return None
        by_frame = tokens.unflatten(0, (self.grid.frames, -1))
        return torch.cat([by_frame[frame] for frame in frames])

    @property
    def bytes(self) -> int:
        own = sum(image.residuals.bytes for image in self.images)
        return own + sum(window.bytes for window in self.windows.values())

    def learn(self, denoised: Tensor) -> None:
        """Take up a prediction (B, C, [frames,] H, W)."""
        for image, own in zip(self.images, denoised, strict=True):
            image.features = patches(own.detach(), self.grid)

    def unlearn(self) -> None:
        """Drop what is known of the tokens."""
        for image in self.images:
            image.features = image.age = image.age_before = None
        self._forget_windows()

    def forget(self) -> None:
        """Drop merges and residuals; what is known of the tokens stays."""
        for image in self.images:
            image.residuals.clear()
            image.merge = None
        self._forget_windows()

    def _forget_windows(self) -> None:
        self.windows, self.asked = {}, None

    def match(self, stage: str, parts: int, context: DenseContext) -> bool:
        """Match the tokens of every image anew, so that `parts` of `BUCKETS` are saved; False where nothing is to be merged."""
        own = [self.members[self._free(index, context.highlight)] for index in range(len(self.images))]
        self.saved = min(parts, *(self._room(members) for members in own))
        ready = self.ready
        self.windows, self.asked = {}, (stage, parts, context)
        for index, image in enumerate(self.images):
            image.residuals.clear()
            image.merge = None
            if image.features is not None and ready and self.saved:
                image.merge = self._merge(stage, index, image.features, own[index], context.heatmap)
        self.turns += 1
        return ready and self.saved > 0

    def _free(self, index: int, highlight: Tensor | None) -> Tensor:
        """Bool (W,): the windows without an attended token."""
        if highlight is None:
            return torch.ones(len(self.members), dtype=torch.bool)
        mask = F.adaptive_max_pool2d(highlight[index][None, None].float(), self.grid.size)[0, 0]
        return ~self._of_tokens(mask > 0)[self.members].any(1)

    def _of_tokens(self, cells: Tensor) -> Tensor:
        """Values of the token grid (h, w) for all tokens (count,) of all frames."""
        return cells.flatten().repeat(self.grid.frames)

    def _room(self, members: Tensor) -> int:
        """How many parts of the tokens these windows (W, k) can save."""
        return len(members) * (members.shape[1] - 1) * BUCKETS // self.grid.count

    def _merge(
        self, stage: str, index: int, features: Tensor, members: Tensor, heatmap: Tensor | None
    ) -> Merge | None:  # fmt: skip
        config, count, k = self.config, self.grid.count, members.shape[1]
        members = members.to(features.device)
        lead = self.turns if config.rotate else 0
        image = self.images[index]
        age = torch.ones(count, device=features.device) if image.age is None else image.age
        fair, pairs = normalised_age(age)[members], pairwise_similarity(features, members)
        number = self.saved * count // BUCKETS
        if stage == "structure":
            alike = window_similarity(pairs)
            score, number = alike + config.a_s * fair.mean(1), number // (k - 1)
            merge_by = merge_windows
        else:
            alike = pairs[:, lead % k].clone()
            alike[:, lead % k] = -torch.inf  # it leads
            score = alike + config.a_d * fair + self._inattention(index, members, heatmap)
            merge_by = merge_tokens
        if config.threshold:
            score, number = self._above_threshold(score, alike, number, k)
        if not number:
            return None
        merge = merge_by(score, members, number, count, lead)
        image.age_before = age
        image.age = torch.where(merge.shared(), 0.0, age) + 1
        return merge

    def _above_threshold(self, score: Tensor, alike: Tensor, number: int, k: int) -> tuple[Tensor, int]:
        """Scores of what is alike enough, and how many of those may be merged; one small transfer."""
        enough = alike >= self.config.threshold
        part = max(1, self.grid.count // BUCKETS // k)
        return torch.where(enough, score, -torch.inf), min(number, int(enough.sum()) // part * part)

    def _inattention(self, index: int, members: Tensor, heatmap: Tensor | None) -> Tensor | float:
        """How little the prompt looks at each token (W, k), 0..1; nothing where that is not known."""
        if heatmap is None:
            return 0.0
        heat = F.interpolate(heatmap[index][None].float(), self.grid.size, mode="bilinear", antialias=True)
        return 1 - self._of_tokens(heat).to(members.device)[members]

    def shares(self, share: float) -> Tensor:
        """How much of each token is computed together with others, (B, h, w) on the token grid, where `share` of a merged
        token's computation is."""
        device = next(image.merge.rows.device for image in self.images if image.merge is not None)
        none = torch.zeros(self.grid.count, device=device)
        shared = torch.stack([none if own.merge is None else own.merge.shared() * share for own in self.images])
        return rearrange(shared, "b (f h w) -> b f h w", f=self.grid.frames, h=self.grid.size[0]).mean(1)

    def counts(self) -> tuple[int, int]:
        """How many tokens are left by the present merges, and how many there are, over all images."""
        left = [self.grid.count if own.merge is None else own.merge.merged_count for own in self.images]
        return sum(left), len(self.images) * self.grid.count
