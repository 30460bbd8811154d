"""Heatmap -> highlight -> what is computed of the frame, or a refusal with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..config import HighlightConfig
from ..trace import Box
from ..tuning import MAX_BOXES, MAX_TILES, MAX_WINDOWS, MIN_PROMINENCE, MOVED_SHARE, SHRUNK_SHARE
from .refinement import highlighted

# Why a region is where it is.
NOISE_MASK, BY_PROMPT, BY_REFERENCE = "the noise mask", "highlight", "what differs from the reference"


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
    """What of one image's latent is computed, in boxes (y0, y1, x0, x1).

    inner: those whose values count: windows around the highlight, or boxes that tile it; outer: the same with their halo,
    snapped outwards to what the model can compute by itself. A refused region has no boxes and says why.
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


def grow(box: Box, by: int, align: int, frame: tuple[int, int]) -> Box:
    """Widen a box and snap it outwards to the alignment, within the frame."""
    y0, y1, x0, x1 = box
    height, width = frame
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


def _tiles(cells: Tensor, align: int) -> tuple[Box, ...]:
    """Boxes that cover a mask (1, H, W) of 0 and 1, snapped outwards to the alignment, and overlap nowhere: the runs of every
    row, those between the same columns of consecutive rows in one."""
    height, width = cells.shape[-2:]
    rows = F.max_pool2d(cells, align, ceil_mode=True)[0].numpy()
    tiles: list[Box] = []
    growing: dict[tuple[int, int], int] = {}  # runs of the last row, and the row where each began
    for row, own in enumerate([*rows, np.zeros(rows.shape[1])]):
        steps = np.diff(own, prepend=0, append=0)
        runs = set(zip(np.flatnonzero(steps > 0).tolist(), np.flatnonzero(steps < 0).tolist(), strict=True))
        tiles += [(growing.pop(run), row, *run) for run in growing.keys() - runs]
        growing |= dict.fromkeys(runs - growing.keys(), row)
    return tuple((y0 * align, min(y1 * align, height), x0 * align, min(x1 * align, width)) for y0, y1, x0, x1 in sorted(tiles))


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
    image: int = 0, prominence: float = math.inf, unfiltered: Tensor | None = None, exact: bool = False,
    reason: str = BY_PROMPT,
) -> tuple[Tensor, Region]:  # fmt: skip
    """One image's heatmap (1, 1, h, w) -> its highlight (1, h, w) and the region of its latent frame (H, W).

    align: a UNet's downsampling, or the side of a token. exact: whether any cells can be computed by themselves, as tokens can,
    and not windows alone. prominence: as of `HeatmapAccumulator`. unfiltered: as of `highlighted`. reason: what the heatmap is
    of. Refused when no word stands out, or when the region covers more than `config.max_area` of the frame; what a user gave as
    masks is never refused for its area, and a noise mask that is too large gives way to the heatmap.
    """
    heatmap = heatmap.float().cpu()
    given, size = given or UserMasks(), (heatmap.shape[-2], heatmap.shape[-1])
    place = partial(_region, frame=frame, align=align, config=config, exact=exact)
    mask, protect, noise = (given.highlight(name, image, size) for name in ("mask", "protect", "noise"))
    if mask is not None:
        highlight = mask if protect is None else mask | protect
        return highlight, place(highlight, max_area=1.0, reason="the mask that was given")
    if (kept := _by_noise_mask(noise, protect, config, place)) is not None:
        return kept
    if why := _flat(heatmap, prominence) if config.threshold else None:
        highlight, region = torch.zeros(1, *size, dtype=torch.bool), Region((), (), frame, f"no highlight: {why}")
    else:
        highlight = highlighted(heatmap[0, 0], config.threshold, unfiltered)[None]
        region = place(highlight, max_area=config.max_area, reason=reason)
    if protect is not None:
        highlight = (highlight if region.outer else torch.zeros_like(highlight)) | protect
        return highlight, place(highlight, max_area=1.0, reason=f"{region.reason}, and what is protected")
    return highlight, region


def _flat(heatmap: Tensor, prominence: float) -> str | None:
    """Why a heatmap points nowhere, or None."""
    if prominence < MIN_PROMINENCE:
        return f"no word stands out (their prominence is {prominence:.2f}, needs {MIN_PROMINENCE})"
    return None if heatmap.max() > heatmap.min() else "the heatmap is flat"


def _by_noise_mask(
    noise: Tensor | None, protect: Tensor | None, config: HighlightConfig, place: Callable[..., Region]
) -> tuple[Tensor, Region] | None:
    """The highlight and region of a noise mask (1, h, w), together with what is protected; None where there is no such mask,
    where nothing or too much is in it, or where everything is to be computed."""
    if noise is None or config.threshold == 0:
        return None
    highlight = noise if protect is None else noise | protect
    region = place(highlight, max_area=config.max_area, reason=NOISE_MASK)
    return (highlight, region) if region.reason == NOISE_MASK else None


def _region(
    highlight: Tensor, frame: tuple[int, int], align: int, config: HighlightConfig, exact: bool, max_area: float, reason: str
) -> Region:
    """The region of a highlight (1, h, w), or a refusal."""
    if bool(highlight.all()):
        whole = (0, frame[0], 0, frame[1])
        return Region((whole,), (whole,), frame, "the highlight is the whole frame")
    if not highlight.any():
        return Region((), (), frame, "no highlight: the mask that was given is empty")
    region = _tiled(highlight, frame, align, config.halo, reason) if exact else None
    if region is None:
        boxes, grown = _bounding_boxes(highlight[0].numpy(), frame), partial(grow, by=config.halo, align=align, frame=frame)
        inner = _merge(boxes, grown)
        region = Region(tuple(inner), tuple(grown(box) for box in inner), frame, reason)
    if region.area > max_area and max_area < 1:
        return Region((), (), frame, f"no highlight: it covers {region.area:.0%} of the frame, more than {max_area:.0%}")
    return region


def _tiled(highlight: Tensor, frame: tuple[int, int], align: int, halo: int, reason: str) -> Region | None:
    """The cells of a highlight (1, h, w) and no others, and the same with a halo; None where that takes too many boxes."""
    cells = F.adaptive_max_pool2d(highlight.float(), frame)
    inner, outer = (_tiles(F.max_pool2d(cells, 2 * by + 1, stride=1, padding=by), align) for by in (0, halo))
    return Region(inner, outer, frame, reason) if max(len(inner), len(outer)) <= MAX_TILES else None


def boxes_mask(boxes: tuple[Box, ...], frame: tuple[int, int]) -> Tensor:
    """Bool (H, W), true inside the boxes."""
    mask = torch.zeros(frame, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask
