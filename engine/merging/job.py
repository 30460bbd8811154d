"""What one call of a transformer is to do about merging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..partial.cache import Keys
from .key_bias import KeyBias
from .matching import Merge
from .sites import MergeResiduals


@dataclass(frozen=True)
class ImageMerge:
    """One image of a batch: which of its tokens are computed together, None for none of them, and what the last exact
    evaluation recorded of what sets them apart."""

    merge: Merge | None
    residuals: MergeResiduals


Frames = tuple[int, ...]  # of a video, which a window of it has, in their order


@dataclass(frozen=True)
class MergeJob:
    """What one call is to do about merging.

    images: of each image of the batch. parts: the parts of a block, "attention" and "mlp", that are computed on merged
    tokens, or whose residuals are recorded. record: whether this call is exact and records residuals; else it merges. spared:
    the blocks without merging. key_bias: None where keys are not weighted. uses_residuals: whether merged tokens are given
    back with what was recorded. images_of: gives the images of a window of a video.
    """

    images: tuple[ImageMerge, ...]
    parts: frozenset[str]
    record: bool
    spared: frozenset[int] = frozenset()
    key_bias: KeyBias | None = None
    uses_residuals: bool = False
    images_of: Callable[[Frames], tuple[ImageMerge, ...]] | None = None

    def within(self, frames: Frames) -> MergeJob:
        """What a call is to do that has these frames of a video alone."""
        return self if self.images_of is None else replace(self, images=self.images_of(frames))

    @property
    def remembers(self) -> bool:
        """Whether anything was recorded of what is merged."""
        return any(image.residuals.entry.parts for image in self.images)

    def keeps_references(self, keys: Keys) -> bool:
        """Whether it was recorded of every image what the references of these streams have in each attention."""
        return all(image.residuals.keeps_references(keys) for image in self.images)

    @property
    def silent(self) -> bool:
        """Attention on merged tokens cannot be captured."""
        return not self.record
