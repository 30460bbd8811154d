"""Heatmap -> highlight -> windows, or a refusal with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..config import HighlightConfig
from ..trace import Box
from ..tuning import MAX_BOXES, MAX_WINDOWS, MIN_PROMINENCE, MOVED_SHARE, SHRUNK_SHARE
from .refinement import highlighted

NOISE_MASK = "the noise mask"  # why a region is where it is


@dataclass(frozen=True)
class UserMasks:
    """Masks a user gave, float (1 or B, h, w) in 0..1 of any size: `mask` is highlighted instead of what the prompt looks
    at, `protect` besides it. `noise` is where the sampler lets the latent change at all; it is highlighted where there is no
    `mask`, unless its windows cover too much of the frame."""

    mask: Tensor | None = None
    protect: Tensor | None = None
    noise: Tensor | None = None

    def __bool__(self) -> bool:
        """Whether there is any mask."""
        return self.to_the_node or self.noise is not None

    @property
    def to_the_node(self) -> bool:
        """Whether any mask was given to the node."""
        return self.mask is not None or self.protect is not None

    def highlight(self, name: str, image: int, size: tuple[int, int]) -> Tensor | None:
        """One of them for one image of a batch, bool (1, h, w), true where it touches a cell; None where not given."""
        mask = getattr(self, name)
        if mask is None:
            return None
        own = mask[min(image, len(mask) - 1)].float().cpu()
        return F.adaptive_max_pool2d(own[None], size) >= 0.5


@dataclass(frozen=True)
class Region:
    """Windows of one image's latent to compute.

    inner: the boxes (y0, y1, x0, x1) around the highlight, whose values count; outer: the same with their halo, snapped
    outwards to the UNet's downsampling, which is what is computed. A refused region has no windows and says why.
    """

    inner: tuple[Box, ...]
    outer: tuple[Box, ...]
    frame: tuple[int, int]
    reason: str

    @property
    def area(self) -> float:
        """Share of the frame that is computed, halos and overlaps included."""
        return sum(_area(box) for box in self.outer) / (self.frame[0] * self.frame[1])

    def covers(self, other: Region) -> bool:
        """True where this region still serves for another: it holds most of it and is not much larger."""
        wanted = sum(_overlap(box, box) for box in other.inner)
        held = sum(_overlap(a, b) for a in other.inner for b in self.inner)
        return (
            bool(self.outer and other.outer) and held >= (1 - MOVED_SHARE) * wanted and other.area >= SHRUNK_SHARE * self.area
        )

    @property
    def everything(self) -> bool:
        return self.inner == ((0, self.frame[0], 0, self.frame[1]),)


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[1], b[1]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[2], b[2]))


def _area(box: Box) -> int:
    return (box[1] - box[0]) * (box[3] - box[2])


def _grow(box: Box, by: int, align: int, height: int, width: int) -> Box:
    """Widen a box and snap it outwards to the alignment, within the frame."""
    y0, y1, x0, x1 = box
    down = lambda v: max(0, v - by) // align * align  # noqa: E731
    up = lambda v, end: min(end, -(-(v + by) // align) * align)  # noqa: E731
    return down(y0), up(y1, height), down(x0), up(x1, width)


def _hull(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3])


def _merge(boxes: list[Box], grown: Callable[[Box], Box]) -> list[Box]:
    """Join boxes whose common window costs no more than the two, and the closest ones while there are too many."""
    while len(boxes) > 1:
        pairs = [(i, j) for i in range(len(boxes)) for j in range(i)]
        cost = [_area(grown(box)) for box in boxes]
        waste = {(i, j): _area(grown(_hull(boxes[i], boxes[j]))) - cost[i] - cost[j] for i, j in pairs}
        (i, j), extra = min(waste.items(), key=lambda item: item[1])
        if extra > 0 and len(boxes) <= MAX_WINDOWS:
            break
        boxes = [box for n, box in enumerate(boxes) if n not in (i, j)] + [_hull(boxes[i], boxes[j])]
    return sorted(boxes)


def _bounding_boxes(mask: np.ndarray, frame: tuple[int, int]) -> list[Box]:
    """Boxes around the patches of a mask (h, w), in cells of a frame (H, W). Patches that are near each other share one, the
    farther apart the more patches there are, so that there are never more than `MAX_BOXES` to be joined to windows."""
    reach = 0
    while True:
        near = ndimage.maximum_filter(mask, 2 * reach + 1) if reach else mask
        labels, count = ndimage.label(near, structure=np.ones((3, 3)))
        if count <= MAX_BOXES:
            break
        reach = 2 * reach + 1
    boxes = []
    for slices in ndimage.find_objects(labels * mask):
        scaled = [(s.start * full // n, -(-s.stop * full // n)) for s, n, full in zip(slices, mask.shape, frame, strict=True)]
        boxes.append((*scaled[0], *scaled[1]))
    return boxes


def find_region(
    heatmap: Tensor, frame: tuple[int, int], align: int, config: HighlightConfig, given: UserMasks | None = None,
    image: int = 0, prominence: float = math.inf, unfiltered: Tensor | None = None,
) -> tuple[Tensor, Region]:  # fmt: skip
    """One image's heatmap (1, 1, h, w) -> its highlight (1, h, w) and windows of its latent frame (H, W).

    `align` is the UNet's downsampling. prominence: as of `HeatmapAccumulator`. unfiltered: as of `highlighted`. Refused when no
    word stands out, or when the windows cover more than `config.max_area` of the frame; what a user gave as masks is never
    refused for its area, and a noise mask that is too large gives way to the heatmap.
    """
    heatmap = heatmap.float().cpu()
    given, size = given or UserMasks(), (heatmap.shape[-2], heatmap.shape[-1])
    mask, protect, noise = (given.highlight(name, image, size) for name in ("mask", "protect", "noise"))
    if mask is not None:
        highlight = mask if protect is None else mask | protect
        return highlight, _region(highlight, frame, align, config, 1.0, "the mask that was given")
    if (kept := _by_noise_mask(noise, protect, frame, align, config)) is not None:
        return kept
    highlight = highlighted(heatmap[0, 0], config.threshold, unfiltered)[None]
    if why := _flat(heatmap, prominence) if config.threshold else None:
        highlight, region = torch.zeros_like(highlight), Region((), (), frame, f"no highlight: {why}")
    else:
        region = _region(highlight, frame, align, config, config.max_area, "highlight")
    if protect is not None:
        highlight = (highlight if region.outer else torch.zeros_like(highlight)) | protect
        return highlight, _region(highlight, frame, align, config, 1.0, f"{region.reason}, and what is protected")
    return highlight, region


def _flat(heatmap: Tensor, prominence: float) -> str | None:
    """Why a heatmap points nowhere, or None."""
    if prominence < MIN_PROMINENCE:
        return f"no word stands out (attention to it varies by {prominence:.2f} of its mean, needs {MIN_PROMINENCE})"
    return None if heatmap.max() > heatmap.min() else "the heatmap is flat"


def _by_noise_mask(
    noise: Tensor | None, protect: Tensor | None, frame: tuple[int, int], align: int, config: HighlightConfig
) -> tuple[Tensor, Region] | None:
    """The highlight and windows of a noise mask (1, h, w), together with what is protected; None where there is no such mask,
    where nothing or too much is in it, or where everything is to be computed."""
    if noise is None or config.threshold == 0:
        return None
    highlight = noise if protect is None else noise | protect
    region = _region(highlight, frame, align, config, config.max_area, NOISE_MASK)
    return (highlight, region) if region.reason == NOISE_MASK else None


def _region(
    highlight: Tensor, frame: tuple[int, int], align: int, config: HighlightConfig, max_area: float, reason: str
) -> Region:
    """Windows around a highlight (1, h, w), or a refusal."""
    height, width = frame
    if bool(highlight.all()):
        whole = (0, height, 0, width)
        return Region((whole,), (whole,), frame, "the highlight is the whole frame")
    boxes = _bounding_boxes(highlight[0].numpy(), frame)
    if not boxes:
        return Region((), (), frame, "no highlight: the mask that was given is empty")

    def grown(box: Box) -> Box:
        return _grow(box, config.halo, align, height, width)

    inner = _merge(boxes, grown)
    region = Region(tuple(inner), tuple(grown(box) for box in inner), frame, reason)
    if region.area > max_area and max_area < 1:
        return Region((), (), frame, f"no highlight: it covers {region.area:.0%} of the frame, more than {max_area:.0%}")
    return region


def boxes_mask(boxes: tuple[Box, ...], frame: tuple[int, int]) -> Tensor:
    """Bool (H, W), true inside the boxes."""
    mask = torch.zeros(frame, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask
