"""The worst pictures of the presets beside the dense ones, in one row: for readers whom averages do not convince."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np

from .fidelity import psnr

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

SHOWN = ("balanced", "fast")
NAME = "{}-worst.jpg"  # by the model's name, in the folder of its results
Picture = tuple[np.ndarray, str]  # RGB (H, W, 3) in 0..1, and what it is


def worst_of(rows: Sequence[dict[str, str]], method: str, setting: str) -> dict[str, str] | None:
    """The row of the picture furthest from the dense one, None where there is none."""
    own = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
    return min(own, key=lambda row: float(row["psnr"]), default=None)


def pair(dense: np.ndarray, own: np.ndarray, steps: int, setting: str) -> list[Picture]:
    """A dense picture and one of a preset, with their captions."""
    return [(dense, f"{steps} steps, dense"), (own, f"{setting}, {psnr(dense, own):.1f} dB")]


def draw(rows: Sequence[Sequence[Picture]], path: Path) -> None:
    """Rows of pictures, as many in each, under their captions, as a JPEG file."""
    size = (1.6 * len(rows[0]), 1.85 * len(rows))
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, layout="constrained", squeeze=False)
    for axis, (picture, caption) in zip(axes.flat, chain(*rows), strict=True):
        axis.imshow(np.clip(picture, 0, 1))
        axis.set_title(caption, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 88})
    plt.close(figure)
