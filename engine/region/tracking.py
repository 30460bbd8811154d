"""The highlight of a run's images while it samples: found anew at every heatmap, moved where it has to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import HighlightConfig
from ..partial.cache import ActivationCache
from ..trace import Box
from ..tuning import NEWEST_HEATMAP
from .heatmap import HeatmapAccumulator
from .regions import NOISE_MASK, Region, UserMasks, find_region

# Boxes of each image of a batch -> the caches of what they lack.
MakeCaches = Callable[[Sequence[tuple[Box, ...]]], Sequence[ActivationCache]]


class RegionTracker:
    """The regions of a run, one for each image, and the caches of what they lack.

    frame: the latent's (H, W). align: the cells that boxes are snapped to. make_caches: makes the caches for boxes, as the
    model's executor needs them. masks: those that the user gave.
    """

    def __init__(
        self, config: HighlightConfig, frame: tuple[int, int], align: int, make_caches: MakeCaches, masks: UserMasks
    ):  # fmt: skip
        self.config, self.frame, self.align, self.make_caches, self.masks = config, frame, align, make_caches, masks
        self.heatmap: Tensor | None = None  # float (B, 1, h, w) on the model's device: a running mean
        self.captures = 0  # heatmaps in it
        self.regions: tuple[Region, ...] = ()  # none before the first heatmap
        self.coming: tuple[Region, ...] = ()  # those to take up at the next dense evaluation
        self.caches: Sequence[ActivationCache] = ()

    @property
    def covers_frame(self) -> bool:
        """Whether everything is highlighted in every image."""
        return bool(self.regions) and all(region.everything for region in self.regions)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of heatmaps: half the latent's resolution."""
        return max(1, self.frame[0] // 2), max(1, self.frame[1] // 2)

    def accumulator(self) -> HeatmapAccumulator:
        """A new accumulator of cross-attention."""
        return HeatmapAccumulator(*self.grid)

    def aim_by_noise_mask(self, images: int) -> Tensor | None:
        """Before the first evaluation, take what the sampler lets change for the highlight of so many images. Returns it, bool
        (images, h, w), or None where it is not the highlight of every image: then nothing is aimed at yet."""
        unlit = torch.zeros(1, 1, *self.grid)
        found = [find_region(unlit, self.frame, self.align, self.config, self.masks, image) for image in range(images)]
        if any(region.reason != NOISE_MASK for _, region in found):
            return None
        self._move(tuple(region for _, region in found))
        return torch.cat([highlight for highlight, _ in found])

    def mean(self, heatmap: Tensor) -> Tensor:
        """The running mean with one more heatmap (B, 1, h, w), on its device."""
        newest = max(NEWEST_HEATMAP, 1 / (self.captures + 1))
        return heatmap if self.heatmap is None else self.heatmap.to(heatmap).lerp(heatmap, newest)

    def take(self, mean: Tensor) -> None:
        """Take up a new running mean."""
        self.heatmap, self.captures = mean, self.captures + 1

    def aim(self, heatmap: Tensor) -> tuple[Tensor, list[str]]:
        """Find the highlight of each image in the mean heatmap (B, 1, h, w) on the CPU, and move the regions where they miss
        it or are much too large. Returns the highlight, bool (B, h, w), and why there is one or none in each image."""
        found = [
            find_region(heat[None], self.frame, self.align, self.config, self.masks, image)
            for image, heat in enumerate(heatmap)
        ]
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
