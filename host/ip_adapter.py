"""IPAdapter_plus beside partial evaluations.

It fills the attn2 slots with attention to text plus attention to image prompts, token by token, so a window's tokens get
what they would get in the whole frame. But for its masks, which it fits to the frame of the call, and for what it has of
its own for each image of a batch: there it is called with the window's queries in their places of the whole call.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..engine.partial.unet_window import Window


def is_ip_adapter(replacement: Any) -> bool:
    """Whether what fills an attn2 slot is IPAdapter_plus's, which chains several adapters as `callback` and `kwargs`."""
    callbacks = getattr(replacement, "callback", None)
    return isinstance(callbacks, list) and all(getattr(c, "__name__", "") == "ipadapter_attention" for c in callbacks)


def adapters(options: dict) -> list[dict]:
    """The settings of each adapter in each slot."""
    slots = options.get("patches_replace", {}).get("attn2", {}).values()
    return [settings for slot in slots if is_ip_adapter(slot) for settings in slot.kwargs]


def active(options: dict, sigma: float) -> tuple[bool, ...]:
    """Which adapters act at this sigma: those between their start and end percent."""
    return tuple(settings["sigma_end"] <= sigma <= settings["sigma_start"] for settings in adapters(options))


def in_window(options: dict, window: Window) -> dict:
    """A copy of transformer_options for a call on a window."""
    replace = options.get("patches_replace", {})
    slots = replace.get("attn2", {})
    if window.rows.images == 1 and all(settings.get("mask") is None for settings in adapters(options)):
        return options
    placed = {site: _Placed(slot, window) if is_ip_adapter(slot) else slot for site, slot in slots.items()}
    return {**options, "patches_replace": {**replace, "attn2": placed}}


class _Placed:
    """An attn2 replacement that is called as if for the whole frame and batch, for a window's queries."""

    def __init__(self, replacement: Any, window: Window):
        self.replacement, self.window = replacement, window

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        y0, y1, x0, x1 = self.window.box
        height, width = self.window.frame
        factor = math.isqrt((y1 - y0) * (x1 - x0) // q.shape[1])  # of this level's downsampling
        level = height // factor, width // factor
        whole = [self._rows(k), self._rows(v)]
        queries = self._rows(q.new_zeros(len(q), level[0] * level[1], q.shape[2]))
        self._inside(queries, level).copy_(q.view(*self._inside(queries, level).shape))
        shape = [len(queries), *extra["original_shape"][1:-2], height, width]
        output = self.replacement(queries, *whole, {**extra, "original_shape": shape})
        return self._inside(output, level).reshape(q.shape)

    def _rows(self, own: Tensor) -> Tensor:
        """A tensor of a whole call, zero but for this image's rows."""
        if self.window.rows.images == 1:
            return own
        whole = own.new_zeros(len(own), self.window.rows.images, *own.shape[1:])
        whole[:, self.window.rows.image] = own
        return whole.flatten(0, 1)

    def _inside(self, tokens: Tensor, level: tuple[int, int]) -> Tensor:
        """The window's part of the tokens (rows, level's, C) of a whole call, a view (streams, h, w, C)."""
        y0, y1, x0, x1 = self.window.at(*level)
        return self.window.rows.of(tokens).unflatten(1, level)[:, y0:y1, x0:x1]
