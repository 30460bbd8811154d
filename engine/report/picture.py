"""A report as a picture: its words above the timeline of its run."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..trace import RunRecord
from .numbers import as_text, report
from .overlay import KIND_COLOURS

WIDTH, MARGIN, TEXT, HEADING, BAR = 768, 24, 17, 34, 90  # pixels
INK, PAPER, FAINT = (32, 32, 32), (255, 255, 255), (232, 232, 232)
COLUMNS = 84


def picture(run: RunRecord) -> Tensor:
    """RGB (1, H, 768, 3) in 0..1."""
    told = report(run)
    lines = [part for line in as_text(told).split("\n") for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ")]
    spacing = TEXT + 8
    top = MARGIN + HEADING + 16
    height = top + len(lines) * spacing + BAR + 3 * MARGIN
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    heading = f"{told['ratio']:.2f}x faster" if told["ratio"] else "Highlight Diffusion"
    draw.text((MARGIN, MARGIN), heading, INK, ImageFont.load_default(HEADING))
    font = ImageFont.load_default(TEXT)
    for row, line in enumerate(lines):
        draw.text((MARGIN, top + row * spacing), line, INK, font)
    _timeline(draw, run, (MARGIN, height - BAR - 2 * MARGIN, WIDTH - MARGIN, height - 2 * MARGIN))
    _legend(draw, (MARGIN, height - 2 * MARGIN + 8), font)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)[None]


def _colour(kind: str) -> tuple[int, ...]:
    return tuple(round(255 * v) for v in KIND_COLOURS[kind])


def _timeline(draw: ImageDraw.ImageDraw, run: RunRecord, box: tuple[int, int, int, int]) -> None:
    """One bar an evaluation: colour by kind, height by active area."""
    left, top, right, bottom = box
    draw.rectangle(box, FAINT)
    step = (right - left) / max(len(run.evaluations), 1)
    for i, evaluation in enumerate(run.evaluations):
        x0, x1 = left + i * step, left + (i + 1) * step
        y = bottom - max(4, (bottom - top) * evaluation.active)
        draw.rectangle((x0, y, max(x0, x1 - 2), bottom), _colour(evaluation.kind))


def _legend(draw: ImageDraw.ImageDraw, place: tuple[int, int], font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    x, y = place
    for kind in KIND_COLOURS:
        draw.rectangle((x, y + 4, x + 12, y + 16), _colour(kind))
        draw.text((x + 18, y), kind, INK, font)
        x += 120
