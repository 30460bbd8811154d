"""What a run tells a browser: plain JSON, piece by piece while it samples, or all at once afterwards.

The same messages serve both, so the browser has one way to take them up (js/run.js). Images are raw bytes in base64, one
byte a cell, colours and outlines are put on in the browser; pictures are small JPEGs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from itertools import takewhile

from PIL import Image
from torch import Tensor

from ..trace import Evaluation, RunRecord
from .latent_rgb import MAX_PICTURES
from .numbers import as_line

MAX_CELLS = 2**16  # of one map, all images of a batch together
QUALITY = 85


def encoded(maps: Tensor) -> dict:
    """Maps (n, h, w) in 0..1 or bool -> {"shape", "data"}, 255 standing for 1. At most 16 maps and `MAX_CELLS` cells."""
    maps, stride = maps[:MAX_PICTURES].float(), 1
    while maps[:, ::stride, ::stride].numel() > MAX_CELLS:
        stride += 1
    maps = (maps[:, ::stride, ::stride].clamp(0, 1) * 255).round().byte()
    return {"shape": list(maps.shape), "data": base64.b64encode(maps.numpy().tobytes()).decode()}


def jpeg(pictures: Tensor) -> str:
    """Pictures (P, h, w, 3), uint8, one below the other in one JPEG, base64."""
    buffer = io.BytesIO()
    Image.fromarray(pictures.flatten(0, 1).contiguous().numpy()).save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def cell(evaluation: Evaluation) -> dict:
    """An evaluation in numbers."""
    error = evaluation.forecast_error
    return {
        "index": evaluation.index, "step": evaluation.step, "sigma": round(evaluation.sigma, 5), "kind": evaluation.kind,
        "planned": evaluation.planned, "reason": evaluation.reason, "active": round(evaluation.active, 4),
        "ms": round(evaluation.seconds * 1000, 2), "error": None if error is None else round(error, 5),
        "boxes": evaluation.boxes[:MAX_PICTURES],
    }  # fmt: skip


class Messages:
    """Tells one run, from where the last message ended. `latest`: of maps and pictures only the newest, as for a viewer
    who watches; else all of them."""

    def __init__(self, run: RunRecord, latest: bool = False):
        self.run, self.latest = run, latest
        self.told = 0
        self._maps_told = -1
        self._pictures_told = -1

    def next(self, done: bool = False) -> dict:
        """Everything since the last message. With `done` how the run ended, and all durations, then known."""
        run, evaluations = self.run, list(self.run.evaluations)
        fresh, self.told = evaluations[self.told :], len(evaluations)
        message = {
            "key": run.key, "nodes": list(run.node_ids), "sampler": run.sampler, "shape": list(run.shape),
            "expected": len(run.sigmas) - 1, "words": list(run.words), "started": run.started, "note": run.highlight_reason,
            "fidelity": run.expected_error, "cells": [cell(e) for e in fresh],
        }  # fmt: skip
        self._add_maps(message, evaluations, done)
        self._add_pictures(message, evaluations)
        if done:
            message["done"] = {
                "completed": run.completed, "seconds": round(run.seconds, 3), "summary": as_line(run),
                "ms": [round(e.seconds * 1000, 2) for e in evaluations],
            }  # fmt: skip
        return message

    def _add_maps(self, message: dict, evaluations: list[Evaluation], done: bool) -> None:
        news = [e for e in self._arrived(evaluations, done) if e.index > self._maps_told]
        if not news:
            return
        self._maps_told = news[-1].index
        for name, wanted in (("heatmaps", "heatmap"), ("merged", "merged")):
            found = [(e.index, getattr(e, wanted)) for e in news if getattr(e, wanted) is not None]
            maps = {i: encoded(m[:, 0] if m.ndim == 4 else m) for i, m in (found[-1:] if self.latest else found)}
            if maps:
                message[name] = maps
        if self.run.highlight is not None:
            message["highlight"] = encoded(self.run.highlight)

    @staticmethod
    def _arrived(evaluations: list[Evaluation], done: bool) -> Iterator[Evaluation]:
        """The evaluations that have maps, up to the first whose merge map may still be on its way from a GPU: it is not where a
        picture of that evaluation, or of a later one, is there, or the run has ended."""
        drawn = max((e.index for e in evaluations if e.picture is not None), default=-1)
        with_maps = (e for e in evaluations if e.heatmap is not None or e.merged is not None)
        return takewhile(lambda e: done or e.merged is None or e.index <= drawn, with_maps)

    def _add_pictures(self, message: dict, evaluations: list[Evaluation]) -> None:
        news = [(e.index, e.picture) for e in evaluations if e.index > self._pictures_told and e.picture is not None]
        if not news:
            return
        self._pictures_told, newest = news[-1]
        images, frames, height, width = newest.shape[:4]
        message["pictures"] = {
            "images": images, "frames": frames, "size": [height, width],
            "jpegs": {i: jpeg(picture.flatten(0, 1)) for i, picture in (news[-1:] if self.latest else news)},
        }  # fmt: skip


def word_maps(run: RunRecord) -> dict:
    """Heatmaps of single words, for a viewer who asks: {"key", "words", "maps": {evaluation: images * words maps}}."""
    told = {}
    for evaluation in run.evaluations:
        if evaluation.words is not None:
            own = evaluation.words[:MAX_PICTURES]
            told[evaluation.index] = [encoded(own[:, i]) for i in range(own.shape[1])]
    return {"key": run.key, "words": list(run.words), "maps": told}
