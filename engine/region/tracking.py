"""The highlight of a run's images while it samples: found anew at every heatmap, moved where it has to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import HighlightConfig
from ..partial.cache import ActivationCache
from ..trace import Box
from ..tuning import MIN_PROMINENCE, NEWEST_HEATMAP
from .edits import difference
from .heatmap import HeatmapAccumulator, normalised
from .refinement import guided_filter, resized
from .regions import BY_PROMPT, BY_REFERENCE, NOISE_MASK, Region, UserMasks, find_region

# Boxes of each image of a batch -> the caches of what they lack.
MakeCaches = Callable[[Sequence[tuple[Box, ...]]], Sequence[ActivationCache]]


@dataclass(frozen=True)
class Reading:
    """What one evaluation's attention says, on the model's device.

    mean: the running mean with it, float (B * frames, 1, h, w). heatmap: that refined, float (B, 1, H, W) in 0..1. unfiltered:
    the same only enlarged. prominence: float (B,), as of `HeatmapAccumulator`, the greatest so far: what stood out once is in
    the picture, though in some models attention to it levels out as the noise goes. edited: float (B,), how far the difference
    to a reference stands out; 0 without one, and where words were named. Where it does, heatmap and unfiltered are of that
    difference. words: a refined heatmap (B, H, W) for each word that has one.
    """

    mean: Tensor
    heatmap: Tensor
    unfiltered: Tensor
    prominence: Tensor
    edited: Tensor
    words: dict[str, Tensor]

    @classmethod
    def of_nothing(cls, images: int, frame: tuple[int, int]) -> Reading:
        """What is read where attention cannot be captured: nothing stands out anywhere."""
        dark, none = torch.zeros(images, 1, *frame), torch.zeros(images)
        return cls(dark, dark, dark, none, none, {})


def refined_by(maps: Tensor, guide: Tensor) -> Tensor:
    """Heatmaps (B * F, K, h, w) with the edges of a denoised latent (B, C, [F,] H, W), (B, K, H, W) in 0..1. In a video every
    frame is refined by itself, and what stands out in any of them counts."""
    images = len(guide)
    if guide.ndim == 5:
        frames = len(maps) // images
        if guide.shape[2] != frames:  # several frames of the latent share their tokens
            guide = F.adaptive_avg_pool3d(guide.float(), (frames, guide.shape[-2], guide.shape[-1]))
        guide = guide.transpose(1, 2).flatten(0, 1)
    return normalised(guided_filter(maps, guide).unflatten(0, (images, -1)).amax(1))


class RegionTracker:
    """The regions of a run, one for each image, and the caches of what they lack.

    frame: the latent's (H, W). align: the cells that boxes are snapped to. make_caches: makes the caches for boxes, as the
    model's executor needs them. masks: those that the user gave. exact: whether it computes any cells, not windows alone.
    """

    def __init__(
        self, config: HighlightConfig, frame: tuple[int, int], align: int, make_caches: MakeCaches, masks: UserMasks,
        exact: bool = False,
    ):  # fmt: skip
        self.config, self.frame, self.make_caches = config, frame, make_caches
        self._find = partial(find_region, frame=frame, align=align, config=config, given=masks, exact=exact)
        self.heatmap: Tensor | None = None  # float (B, 1, H, W) on the model's device: the newest refined one
        self._mean: Tensor | None = None  # float (B * frames, 1, h, w) there: a running mean of what was captured
        self._prominence: Tensor | None = None  # float (B,) there: the greatest of what was captured
        self.captures = 0  # heatmaps in it
        self.regions: tuple[Region, ...] = ()  # none before the first heatmap
        self.coming: tuple[Region, ...] = ()  # those to take up at the next dense evaluation
        self.caches: Sequence[ActivationCache] = ()

    @property
    def covers_frame(self) -> bool:
        """Whether everything is highlighted in every image."""
        return bool(self.regions) and all(region.everything for region in self.regions)

    def aim_by_noise_mask(self, images: int) -> Tensor | None:
        """Before the first evaluation, take what the sampler lets change for the highlight of so many images. Returns it, bool
        (images, H, W), or None where it is not the highlight of every image: then nothing is aimed at yet."""
        unlit = torch.zeros(1, 1, *self.frame)
        found = [self._find(unlit, image=image) for image in range(images)]
        if any(region.reason != NOISE_MASK for _, region in found):
            return None
        self._move(tuple(region for _, region in found))
        return torch.cat([highlight for highlight, _ in found])

    def read(self, capture: HeatmapAccumulator, guide: Tensor, reference: Tensor | None = None) -> Reading:
        """What was captured in an evaluation, refined by the denoised latent (B, C, [F,] H, W) of the same; or how that differs
        from a reference (1 or B, C, [F,] H, W), in the pictures where the difference stands out and no words were named.
        Nothing is kept of it before `take`."""
        heatmap = capture.heatmap()
        newest = max(NEWEST_HEATMAP, 1 / (self.captures + 1))
        mean = heatmap if self._mean is None else self._mean.to(heatmap).lerp(heatmap, newest)
        words = capture.words()
        maps = torch.cat([mean, *(word[:, None] for word in words.values())], dim=1)
        refined = refined_by(maps, guide)
        prominence = capture.prominence().unflatten(0, (len(guide), -1)).amax(1)
        if self._prominence is not None:
            prominence = prominence.maximum(self._prominence.to(prominence))
        unfiltered = resized(mean.unflatten(0, (len(guide), -1)).amax(1), self.frame)
        heat, edited = refined[:, :1], torch.zeros_like(prominence)
        if reference is not None:
            differs, edited = difference(guide, reference)
            edited = torch.where(prominence.isinf(), 0.0, edited)
            stands_out = edited >= MIN_PROMINENCE
            heat, unfiltered = (torch.where(stands_out[:, None, None, None], differs, own) for own in (heat, unfiltered))
        return Reading(mean, heat, unfiltered, prominence, edited, {name: refined[:, i] for i, name in enumerate(words, 1)})

    def take(self, reading: Reading) -> None:
        """Take up what was read."""
        self._mean, self.heatmap, self._prominence = reading.mean, reading.heatmap, reading.prominence
        self.captures += 1

    def aim(self, reading: Reading) -> tuple[Tensor, list[str]]:
        """Find the highlight of each image by a reading, all on the CPU, and move the regions where they miss it or are too
        large by far. Returns the highlight, bool (B, H, W), and why there is one or none in each image."""
        found: list[tuple[Tensor, Region]] = []
        known = reading.heatmap, reading.unfiltered[:, 0], reading.prominence.tolist(), reading.edited.tolist()
        for image, (heat, plain, prominent, edited) in enumerate(zip(*known, strict=True)):
            reason, stands_out = (BY_REFERENCE, edited) if edited >= MIN_PROMINENCE else (BY_PROMPT, prominent)
            found.append(self._find(heat[None], image=image, prominence=stands_out, unfiltered=plain, reason=reason))
        new = tuple(region for _, region in found)
        if self.regions:
            new = tuple(old if old.covers(region) else region for old, region in zip(self.regions, new, strict=True))
        self.coming = ()
        if [region.outer for region in new] == [region.outer for region in self.regions]:
            self.regions = new
        elif any(cache.entries for cache in self.caches):
            self.coming = new  # this gap still has recordings of the old regions
        else:
            self._move(new)
        return torch.cat([highlight for highlight, _ in found]), [region.reason for _, region in found]

    def take_up_coming(self) -> None:
        """Move to the regions that wait for a dense evaluation."""
        if self.coming:
            self._move(self.coming)

    def _move(self, regions: tuple[Region, ...]) -> None:
        self.regions, self.coming = regions, ()
        self.caches = () if self.covers_frame else self.make_caches([region.outer for region in regions])
        for cache in self.caches:
            cache.memory = self.config.memory

    def blocked_because(self) -> str | None:
        """Why no region can be computed now, None where one can."""
        if not any(region.outer for region in self.regions):
            return self.regions[0].reason if self.regions else "no highlight was found yet"
        if not all(cache.entries for cache in self.caches):
            return "nothing is recorded around the highlight yet"
        return None
