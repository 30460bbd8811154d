"""One call of a model as ComfyUI makes it, and parts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..engine.partial.cache import ImageRows, Keys
from .context_windows import frames_of
from .control import Residuals

REFERENCE_LATENTS = "ref_latents"  # the input that most models are given reference pictures by
ATTENTION_OVERRIDE = "optimized_attention_override"  # in transformer_options: what is called in place of attention


@dataclass(frozen=True)
class ModelCall:
    """The arguments of APPLY_MODEL. A call's rows are its conds, of each of which every image of the batch is a row.

    function: ComfyUI's executor, which is called with them. x (rows, C, ...), t (rows,) and the next two: as ComfyUI passes
    them. control: residuals of control nets. options: transformer_options. extra: a model's further inputs by name.
    """

    function: Any
    x: Tensor
    t: Tensor
    c_concat: Tensor | None = None
    c_crossattn: Tensor | None = None
    control: Residuals | None = None
    options: dict = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Tensor:
        """Make the call; returns the denoised rows."""
        return self.function(self.x, self.t, self.c_concat, self.c_crossattn, self.control, self.options, **self.extra)

    @property
    def keys(self) -> Keys:
        """The streams of this call: its conds, whether each is a positive or a negative one, and the context window's frames
        where it is of one."""
        streams = zip(self.options["uuids"], self.options["cond_or_uncond"], strict=True)
        window = frames_of(self.options)
        return tuple(streams if window is None else ((*stream, window) for stream in streams))

    def rows_of(self, rows: ImageRows, value: Any) -> Any:
        """The rows of one image of whatever has all rows of this call; anything else as it is."""
        batched = isinstance(value, Tensor) and len(value) == len(self.x)
        return rows.of(value).contiguous() if batched else value  # some models view it

    def of_image(self, rows: ImageRows) -> ModelCall:
        """This call for one image of the batch; control and options stay."""

        def own(value: Any) -> Any:
            return [self.rows_of(rows, item) for item in value] if isinstance(value, list) else self.rows_of(rows, value)

        return replace(
            self, x=own(self.x), t=own(self.t), c_concat=own(self.c_concat), c_crossattn=own(self.c_crossattn),
            extra={name: own(value) for name, value in self.extra.items()},
        )  # fmt: skip

    def without_references(self) -> ModelCall:
        """This call without reference pictures."""
        return replace(self, extra={name: value for name, value in self.extra.items() if name != REFERENCE_LATENTS})

    def overriding(self, override: Callable[..., Tensor]) -> ModelCall:
        """This call with another function in place of attention."""
        return replace(self, options={**self.options, ATTENTION_OVERRIDE: override})
