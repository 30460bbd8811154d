"""Heatmap -> highlight: sharpened by the picture that is forming, then divided where its values divide best."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..tuning import AUTOMATIC_THRESHOLD, GUIDE_EPSILON, GUIDE_RADIUS, LOST_SHARE, NEIGHBOURHOOD, PATCH_LEVEL, WORD_SHARE

MOST_PATCHES = 100
MOST_CHANNELS = 16  # of the guide, those that vary most; every cell takes the inverse of a matrix of that many
LACKING = ("mps",)  # devices that have no `cholesky_solve`; torch 2.11
COARSE = 32  # cells of the shorter side on which the filter's coefficients are found (He and Sun, "Fast Guided Filter", 2015)


def guided_filter(heat: Tensor, guide: Tensor) -> Tensor:
    """Heatmaps (B, K, h, w) with the edges of a guide (B, C, H, W): (B, K, H, W).

    In the neighbourhood of every cell the heat is fitted as a linear function of the guide's channels, and the fits that a cell
    takes part in are averaged (He, Sun and Tang, "Guided Image Filtering", 2010, in colour as in their section 3.5). The guide
    here is the denoised latent: what is one object in it gets one heat, and an edge in it is an edge of the heat. The
    neighbourhood reaches `GUIDE_RADIUS` of the frame's shorter side, since attention is much coarser than the picture.
    """
    if guide.device.type in LACKING:
        return guided_filter(heat.cpu(), guide.cpu()).to(heat.device)
    size = (guide.shape[-2], guide.shape[-1])
    guide = guide.float() - guide.float().mean(dim=(-2, -1), keepdim=True)
    if guide.shape[1] > MOST_CHANNELS:
        most = guide.square().mean(dim=(-2, -1)).topk(MOST_CHANNELS).indices
        guide = guide.take_along_dim(most[:, :, None, None], dim=1)
    guide = guide / guide.std(dim=(1, 2, 3), keepdim=True, unbiased=False).clamp(min=1e-6)
    factor = max(1, min(size) // COARSE)
    coarse = max(1, size[0] // factor), max(1, size[1] // factor)
    small = guide if factor == 1 else F.adaptive_avg_pool2d(guide, coarse)
    heat = resized(heat.float(), coarse)
    radius = max(1, round(GUIDE_RADIUS * min(coarse)))
    mean, mean_heat = _box(small, radius), _box(heat, radius)
    channels = guide.shape[1]
    products = _box((small[:, :, None] * small[:, None]).flatten(1, 2), radius).unflatten(1, (channels, channels))
    variance = products - mean[:, :, None] * mean[:, None]
    both = _box((small[:, :, None] * heat[:, None]).flatten(1, 2), radius).unflatten(1, (channels, heat.shape[1]))
    covariance = both - mean[:, :, None] * mean_heat[:, None]
    ridge = variance.permute(0, 3, 4, 1, 2) + GUIDE_EPSILON * torch.eye(channels, device=guide.device)
    factor_of = torch.linalg.cholesky_ex(ridge)[0]  # unlike `cholesky` it does not wait for a GPU to look for failures
    slope = torch.cholesky_solve(covariance.permute(0, 3, 4, 1, 2), factor_of).permute(0, 3, 4, 1, 2)  # (B, C, K, h, w)
    offset = _box(mean_heat - (slope * mean[:, :, None]).sum(1), radius)
    slope = _box(slope.flatten(1, 2), radius)
    slope, offset = resized(slope, size).unflatten(1, (channels, -1)), resized(offset, size)
    return (slope * guide[:, :, None]).sum(1) + offset


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    if (values.shape[-2], values.shape[-1]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", antialias=size[0] < values.shape[-2])


def _box(values: Tensor, radius: int) -> Tensor:
    """Means (B, C, h, w) over squares of 2 * radius + 1 cells, of which only what lies in the frame counts."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(values, (side, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, radius), count_include_pad=False)


def otsu(values: np.ndarray) -> float:
    """The threshold that divides values into two groups which lie farthest apart for what they vary within (Otsu, "A Threshold
    Selection Method from Gray-Level Histograms", 1979), over all values instead of a histogram's."""
    ordered = np.sort(values, axis=None).astype(np.float64)
    if len(ordered) < 2:
        return float(ordered[0])
    below = np.arange(1, len(ordered))
    sums = ordered.cumsum()
    apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / below[::-1]
    best = int((below * below[::-1] * apart**2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def highlighted(heat: Tensor, threshold: float, unfiltered: Tensor | None = None) -> Tensor:
    """Heat (h, w) on the CPU -> highlight bool (h, w): first what is above the threshold of the whole frame, then, in each
    connected patch of that, what is above the threshold of the patch and its surroundings, so that no object is as wide as the
    faintest one asks for.

    threshold: strictness; `AUTOMATIC_THRESHOLD` takes Otsu's thresholds as they are, 0 everything, 1 the hottest cell alone.
    unfiltered: the same heat (h, w) before it was filtered. What the filter lost of it, where an object has the colours of its
    background, is highlighted as it was, peak by peak, since the heats of neighbouring objects join; and so are the holes of
    a highlight, where the filter took an object for its outline.
    """
    found = _patches(heat, threshold)
    if unfiltered is None or found.all():
        return found
    seen = _patches(unfiltered, threshold).numpy()
    peaks, count = _peaks(unfiltered.numpy(), seen)
    sizes, kept = (np.bincount(peaks.ravel(), weights, count + 1) for weights in (None, found.numpy().ravel()))
    lost = kept < LOST_SHARE * sizes
    lost[0] = False  # what is in no patch
    found |= torch.from_numpy(lost[peaks])
    return found | torch.from_numpy(ndimage.binary_fill_holes(found.numpy()) & seen)


def word_highlighted(heat: Tensor, threshold: float) -> Tensor:
    """The same for the heat (h, w) of a single word: of the patches only those that are nearly as hot as the hottest, since a
    phrase such as "red circle" is heard a little at everything red and at every circle."""
    found = _patches(heat, threshold).numpy()
    labels, count = ndimage.label(found, structure=np.ones((3, 3)))
    hottest = np.asarray(ndimage.maximum(heat.numpy(), labels, range(1, count + 1))) - float(heat.min())
    return torch.from_numpy(np.isin(labels, 1 + np.flatnonzero(hottest >= WORD_SHARE * hottest.max(initial=0))))


def _peaks(heat: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, int]:
    """Patches, bool (h, w), divided among the peaks of a heat (h, w) in them, every cell to the nearest: labels (h, w) from 1
    on, 0 outside the patches, and how many. Specks are not divided."""
    near, labels, count = 2 * max(1, round(NEIGHBOURHOOD * min(heat.shape))) + 1, np.zeros(heat.shape, dtype=int), 0
    numbered, found = ndimage.label(patches, structure=np.ones((3, 3)))
    if found > MOST_PATCHES:
        return numbered, found
    for patch, box in enumerate(ndimage.find_objects(numbered), 1):
        inside = numbered[box] == patch
        own = np.where(inside, heat[box], -np.inf)
        tops, more = ndimage.label(inside & (own == ndimage.maximum_filter(own, near)), structure=np.ones((3, 3)))
        nearest = ndimage.distance_transform_edt(tops == 0, return_distances=False, return_indices=True)
        labels[box][inside] = count + tops[tuple(nearest)][inside]
        count += more
    return labels, count


def _patches(heat: Tensor, threshold: float) -> Tensor:
    """What of a heat (h, w) is above the threshold of the frame and of its own patch, bool (h, w)."""
    values = heat.numpy()
    if threshold <= 0:
        return torch.ones(heat.shape, dtype=torch.bool)
    least = _level(values, threshold, 0.0)
    labels, count = ndimage.label(values >= least, structure=np.ones((3, 3)))
    found, reach = np.zeros(values.shape, dtype=bool), max(1, round(NEIGHBOURHOOD * min(values.shape)))
    if count > MOST_PATCHES:  # specks, as in noise, which are no objects with surroundings of their own
        return torch.from_numpy(labels > 0)
    for patch, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        around = (
            slice(max(0, rows.start - reach), rows.stop + reach),
            slice(max(0, columns.start - reach), columns.stop + reach),
        )
        own = max(least, _level(values[around], threshold, PATCH_LEVEL))
        inside = labels[around] == patch
        found[around] |= inside & (values[around] >= min(own, values[around][inside].max()))
    return torch.from_numpy(found)


def _level(values: np.ndarray, threshold: float, more: float) -> float:
    """The heat from which on cells are highlighted: Otsu's threshold, raised by a share `more` of what the hottest is above it,
    and moved towards the coolest or the hottest cell as `threshold` is below or above the automatic one."""
    low, high, middle = float(values.min()), float(values.max()), otsu(values)
    middle += more * (high - middle)
    if threshold <= AUTOMATIC_THRESHOLD:
        return low + (middle - low) * threshold / AUTOMATIC_THRESHOLD
    return middle + (high - middle) * (threshold - AUTOMATIC_THRESHOLD) / (1 - AUTOMATIC_THRESHOLD)
