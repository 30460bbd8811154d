"""ComfyUI's context windows: a long video is computed window by window, and forecast as a whole.

Where windows are stretches of frames, a transformer's are computed in part and merged too: what is recorded of them is kept by
window, so that each finds its own again as long as it stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONTEXT_HANDLER = "context_handler"  # in model_options: what slides over the frames
WINDOW = "context_window"  # in transformer_options: the window of one call
IN_USE = "context windows are in use"
FRAMES = 2  # the axis of frames in a video's latent (B, C, frames, H, W)


class WholeVideo:
    """Stands in for a context handler during one run, so that an evaluation is decided once for all of its windows.

    ComfyUI calls the wrappers of CALC_COND_BATCH inside of each window, where the windows of one step need not be those of
    the next. What the handler puts together of them is the prediction of the whole video, which a forecast can stand for.

    handler: the one that is stood in for; all else is its own. evaluate: answers one batch of conds, as
    `ModelRun.calc_cond_batch`. active: whether an evaluation of the whole video is under way, so that batches of conds are
    those of its windows.
    """

    def __init__(self, handler: Any, evaluate: Callable):
        self.handler, self.evaluate, self.active = handler, evaluate, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handler, name)

    def execute(self, calc_cond_batch: Callable, *args):
        """Answer one evaluation of the whole video."""
        self.active = True
        try:
            return self.evaluate(lambda *inner: self.handler.execute(calc_cond_batch, *inner), *args)
        finally:
            self.active = False


def in_windows(model_options: dict) -> bool:
    """Whether an evaluation that is under way is computed in windows."""
    return getattr(model_options.get(CONTEXT_HANDLER), "active", False) is True


def over_frames(model_options: dict) -> bool:
    """Whether the windows are stretches of frames of a latent (B, C, frames, H, W)."""
    return getattr(model_options.get(CONTEXT_HANDLER), "dim", None) == FRAMES


def frames_of(options: dict) -> tuple[int, ...] | None:
    """The frames of the video that a call of the model has where it is that of a window, in their order; None elsewhere.

    options: its transformer_options. ComfyUI may put the frame before a window ahead of it, and drop that afterwards.
    """
    window = options.get(WINDOW)
    if window is None:
        return None
    ahead = getattr(window, "causal_anchor_index", None)  # not in the oldest ComfyUI
    return (*([] if ahead is None or ahead < 0 else [ahead]), *window.index_list)
