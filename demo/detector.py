"""The exact judge of the demo scenes: which objects are in a picture, and are they the ones asked for?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, Scene, Thing, signed_distance

MIN_AREA = 0.006  # of the shorter side's square: below any object, above decoder speckle
MIN_OVERLAP = 0.60  # intersection over union with the best of the ideal outlines
MAX_OFFSET = 0.14  # of the frame: half the way to the neighbouring position


@dataclass(frozen=True)
class Found:
    """A detected object: centre (y, x) in fractions of the frame, overlap with the ideal outline in 0..1."""

    colour: str
    shape: str
    centre: tuple[float, float]
    overlap: float


def colour_map(image: np.ndarray) -> np.ndarray:
    """Index of the object colour of each pixel of an RGB image (H, W, 3) in 0..1; -1 is background."""
    shades = [np.array(c) * s for c in COLOURS.values() for s in (0.9, 1.0, 1.1)]
    grounds = [np.array(c) * s for c in BACKGROUNDS.values() for s in (0.55, 0.75, 0.88, 1.0, 1.12)]
    palette = np.clip(np.stack(shades + grounds), 0, 1).astype(np.float32)
    nearest = ((image[:, :, None].astype(np.float32) - palette) ** 2).sum(-1).argmin(-1)
    return np.where(nearest < len(shades), nearest // 3, -1)


def _outline(shape: str, height: int, width: int) -> np.ndarray:
    """The ideal outline stretched to a bounding box, bool (height, width)."""
    y, x = np.meshgrid(np.linspace(-1.1, 1.1, 96), np.linspace(-1.1, 1.1, 96), indexing="ij")
    inside = signed_distance(shape, y, x) <= 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pick = lambda n, m: ((np.arange(n) + 0.5) * m / n).astype(int)  # noqa: E731
    return inside[np.ix_(pick(height, inside.shape[0]), pick(width, inside.shape[1]))]


def detect(image: np.ndarray) -> list[Found]:
    """Every object in an RGB image (H, W, 3) in 0..1: a connected patch of one colour, named by its best outline."""
    height, width = image.shape[:2]
    colours, found = colour_map(image), []
    for index, name in enumerate(COLOURS):
        mask = ndimage.binary_opening(colours == index, iterations=max(1, height // 128))
        labels, _ = ndimage.label(mask)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            patch = labels[rows, columns] == number
            if patch.sum() < MIN_AREA * min(height, width) ** 2:
                continue
            overlaps: dict[str, float] = {}
            for shape in SHAPES:
                ideal = _outline(shape, *patch.shape)
                overlaps[shape] = float((ideal & patch).sum() / (ideal | patch).sum())
            shape = max(overlaps, key=overlaps.__getitem__)
            centre = ((rows.start + rows.stop) / 2 / height, (columns.start + columns.stop) / 2 / width)
            found.append(Found(name, shape, centre, overlaps[shape]))
    return found


def matches(thing: Thing, found: Found) -> bool:
    """Right in colour, shape and rough position."""
    wanted = POSITIONS[thing.position]
    offset = max(abs(found.centre[0] - wanted[0]), abs(found.centre[1] - wanted[1]))
    same = found.colour == thing.colour and found.shape == thing.shape
    return same and found.overlap >= MIN_OVERLAP and offset <= MAX_OFFSET


def objects_right(scene: Scene, image: np.ndarray) -> int:
    """How many of the scene's objects the picture shows; each detected object serves once."""
    found, right = detect(image), 0
    for thing in scene.things:
        hit = next((f for f in found if matches(thing, f)), None)
        if hit is not None:
            found.remove(hit)
            right += 1
    return right


def all_right(scene: Scene, image: np.ndarray) -> bool:
    """Every object asked for is there, and a background-only prompt shows none."""
    if not scene.things:
        return not detect(image)
    return objects_right(scene, image) == len(scene.things)
