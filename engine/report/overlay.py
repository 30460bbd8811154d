"""A run drawn over its picture: heatmap, highlight, computed windows and a timeline. Plain tensors, values in 0..1."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..region.regions import boxes_mask
from ..trace import Evaluation, RunRecord
from .masks import prompt_masks

# Okabe and Ito's colours, told apart by colour-blind readers
KIND_COLOURS = {
    "dense": (0.0, 0.45, 0.70), "partial": (0.90, 0.62, 0.0), "shallow": (0.35, 0.71, 0.91), "skipped": (0.62, 0.62, 0.62),
}  # fmt: skip
OUTLINE = (1.0, 1.0, 1.0)
WINDOW = KIND_COLOURS["partial"]
# Nine samples of matplotlib's "inferno", a CC0 table whose lightness rises evenly
INFERNO = (
    (0.001, 0.000, 0.014), (0.121, 0.047, 0.283), (0.316, 0.072, 0.485), (0.494, 0.122, 0.508), (0.671, 0.195, 0.455),
    (0.841, 0.300, 0.331), (0.954, 0.468, 0.162), (0.988, 0.685, 0.072), (0.988, 0.998, 0.645),
)  # fmt: skip
TIMELINE = 14  # pixels
LARGEST = 1024  # and larger ones are drawn at this: a run has dozens of frames, which a graph's outputs keep
SMALLEST = 256  # pictures below this are enlarged, so that outlines stay thin
DIFFERENCE = 8  # times
DARK = 0.3  # of the brightness outside the highlight
Show = Literal["overlay", "heatmap", "highlight", "difference", "merged"]
SHOWS: tuple[Show, ...] = get_args(Show)


def colourise(heat: Tensor) -> Tensor:
    """Heat (h, w) in 0..1 -> RGB (h, w, 3)."""
    table = torch.tensor(INFERNO)
    position = heat.clamp(0, 1) * (len(table) - 1)
    low = position.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (position - low)[..., None])


def _outline(mask: Tensor, width: int) -> Tensor:
    """The inner edge of a bool mask (h, w)."""
    outside = F.max_pool2d((~mask)[None, None].float(), 2 * width + 1, stride=1, padding=width)[0, 0] > 0
    return mask & outside


def _resize(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(values[None, None].float(), size, mode=mode)[0, 0]


def _timeline(run: RunRecord, now: Evaluation, width: int) -> Tensor:
    """One cell an evaluation: colour by kind, height by active area, the current one marked on top."""
    strip = torch.ones(TIMELINE, width, 3)
    edges = torch.linspace(0, width, len(run.evaluations) + 1).round().int().tolist()
    for evaluation, left, right in zip(run.evaluations, edges, edges[1:], strict=False):
        right = max(left + 1, right - 1)
        height = max(2, round((TIMELINE - 4) * evaluation.active))
        strip[TIMELINE - height :, left:right] = torch.tensor(KIND_COLOURS[evaluation.kind])
        if evaluation is now:
            strip[:3, left:right] = 0.0
    return strip


def frames(
    run: RunRecord, picture: Tensor, image: int = 0, every: int = 1, show: Show = "overlay", word: str = "",
    reference: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Frames (n, H + 14, W, 3) over a picture (H, W, 3).

    One frame for every `every`-th evaluation, counted back from the last. A frame whose evaluation captured no map shows
    the latest one before it. `word` shows the heatmap of one word instead of the
    prompt's. Raises ValueError for a word without one, and for a difference without the `reference` (H, W, 3) to it.
    """
    _check_word(run, word)
    picture = _shrunk(_enlarged(_compared(picture, reference) if show == "difference" else picture))
    size = (picture.shape[0], picture.shape[1])
    masks = prompt_masks(run, size)
    highlight = None if run.highlight is None else masks[min(image, len(masks) - 1)] > 0.5
    wanted = [e.index for e in run.evaluations if not (len(run.evaluations) - 1 - e.index) % every]
    shown, heat = None, None
    for evaluation in run.evaluations:
        found = _map(run, evaluation, image, show, word)
        heat = heat if found is None else _resize(found, size, "nearest" if show == "merged" else "bilinear")
        if evaluation.index not in wanted:
            continue
        frame = _LAYERS[show](picture, heat, highlight)
        if show == "overlay":
            _outline_windows(frame, run, evaluation, image)
        frame = torch.cat([frame, _timeline(run, evaluation, size[1])])
        if shown is None:  # at once, since many frames of a large picture are gigabytes
            shown = frame.new_empty(len(wanted), *frame.shape)
        shown[wanted.index(evaluation.index)] = frame
    return picture[None] if shown is None else shown


def _compared(picture: Tensor, reference: Tensor | None) -> Tensor:
    """How far a picture is from the reference. Raises ValueError where there is none."""
    if reference is None:
        raise ValueError("show is difference, but there is nothing to compare with; connect the dense picture as reference")
    return difference(picture, reference)


def _check_word(run: RunRecord, word: str) -> None:
    """Raises ValueError for a word without a heatmap."""
    if word and word not in run.words:
        known = f"it has {', '.join(run.words)}" if run.words else "put Highlight Words between text encoder and sampler"
        raise ValueError(f'this run has no heatmap of the word "{word}"; {known}')


def _outline_windows(frame: Tensor, run: RunRecord, evaluation: Evaluation, image: int) -> None:
    """Draw the outline of what an evaluation computed of an image into a frame (H, W, 3)."""
    boxes = evaluation.boxes[min(image, len(evaluation.boxes) - 1)] if evaluation.boxes else ()
    if boxes:
        size = (frame.shape[0], frame.shape[1])
        windows = _resize(boxes_mask(boxes, (run.shape[-2], run.shape[-1])), size, "nearest") > 0.5
        frame[_outline(windows, 2 * max(1, min(size) // 256))] = torch.tensor(WINDOW)


def difference(picture: Tensor, reference: Tensor) -> Tensor:
    """How far two pictures (H, W, 3) are apart, 8 times, as a picture. Raises ValueError when their sizes differ."""
    if picture.shape != reference.shape:
        raise ValueError(f"the reference is {tuple(reference.shape[:2])} and the picture {tuple(picture.shape[:2])}")
    return colourise(((picture - reference).abs().mean(-1) * DIFFERENCE).clamp(0, 1))


def _enlarged(picture: Tensor) -> Tensor:
    factor = -(-SMALLEST // min(picture.shape[:2]))
    return picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def _shrunk(picture: Tensor) -> Tensor:
    """A picture (H, W, 3) with no side above `LARGEST`."""
    side = max(picture.shape[:2])
    if side <= LARGEST:
        return picture
    size = [max(1, round(own * LARGEST / side)) for own in picture.shape[:2]]
    return F.interpolate(picture.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)


def _map(run: RunRecord, evaluation: Evaluation, image: int, show: Show, word: str) -> Tensor | None:
    """The map (h, w) of one image that an evaluation has to show, if any."""
    maps = evaluation.merged if show == "merged" else None if evaluation.heatmap is None else evaluation.heatmap[:, 0]
    if word and show != "merged":
        maps = None if evaluation.words is None else evaluation.words[:, run.words.index(word)]
    return None if maps is None else maps[min(image, len(maps) - 1)]


def _overlaid(picture: Tensor, heat: Tensor | None, highlight: Tensor | None) -> Tensor:
    """The heatmap over the picture, the stronger the hotter, and the highlight's outline."""
    frame = picture.clone()
    if heat is not None:
        strength = 0.1 + 0.55 * heat[..., None]
        frame = frame * (1 - strength) + colourise(heat) * strength
        if highlight is not None:
            frame[_outline(highlight, max(1, min(heat.shape) // 256))] = torch.tensor(OUTLINE)
    return frame


def _alone(picture: Tensor, heat: Tensor | None, highlight: Tensor | None) -> Tensor:
    """A map by itself, black before there is one."""
    return torch.zeros_like(picture) if heat is None else colourise(heat)


def _lit(picture: Tensor, heat: Tensor | None, highlight: Tensor | None) -> Tensor:
    """The picture, dark outside the highlight."""
    return picture.clone() if highlight is None or heat is None else picture * (DARK + (1 - DARK) * highlight[..., None])


def _bare(picture: Tensor, heat: Tensor | None, highlight: Tensor | None) -> Tensor:
    return picture.clone()


_LAYERS = {"overlay": _overlaid, "heatmap": _alone, "highlight": _lit, "difference": _bare, "merged": _alone}
