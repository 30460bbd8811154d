"""A window of a UNet's frame: what it lacks of each layer's input, and how a layer is computed with that.

A bare crop of the latent is worse than not computing at all: its convolutions see zeros at the border, its self-attention sees
only itself, and its group norms take the statistics of the crop. So a dense evaluation records, for each window, what the crop
would lack: the one-cell ring around it at every 3x3 convolution, the outside tokens of every self-attention, and by how much
every group norm's statistics differ between frame and crop. At the sigma where they were recorded the window then equals the
dense evaluation to rounding; further on, what was recorded is extrapolated from the last two recordings.

`unet_blocks` says which layers a window is computed through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..trace import Box
from .cache import ONE_IMAGE, ActivationCache, ImageRows, Keys

Affine = Callable[[nn.GroupNorm, Tensor], tuple[Tensor, Tensor]]


def module_affine(norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias (C,) of a group norm; a host that offloads or quantises weights passes its own."""
    return norm.weight, norm.bias


def _statistics(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of a group norm on x (B, C, h, w), each (B, groups), by torch's fused kernel."""
    batch, channels, height, width = x.shape
    x = x.contiguous()
    _, mean, rstd = torch.native_group_norm(x, None, None, batch, channels, height * width, norm.num_groups, norm.eps)
    return mean.float(), rstd.float()


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """(B, groups) -> (B, channels)."""
    return values[..., None].expand(-1, -1, channels // values.shape[1]).flatten(1)


def _edge(x: Tensor, y0: int, y1: int, x0: int, x1: int) -> Tensor:
    """x[..., y0:y1, x0:x1] where the range may stick out of the frame by one cell, which then is zero."""
    height, width = x.shape[-2:]
    inside = x[..., max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    outside = (max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0))
    return F.pad(inside, outside) if any(outside) else inside


class Window(ActivationCache):
    """One window (y0, y1, x0, x1) of a frame (H, W), in latent cells, and the last two recordings of what it lacks.

    rows: the image of a batch that it belongs to. affine: gives weight and bias of a group norm.
    depth: how many of the outermost blocks on either side are computed; None for the whole UNet.
    """

    def __init__(
        self, box: Box, frame: tuple[int, int], affine: Affine = module_affine, rows: ImageRows = ONE_IMAGE,
        depth: int | None = None,
    ):  # fmt: skip
        super().__init__(rows)
        self.box, self.frame, self.affine, self.depth = box, frame, affine, depth
        self._outsides: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def covers_frame(self) -> bool:
        """Whether it is the whole frame, which lacks nothing but what enters the outer blocks."""
        return self.box == (0, self.frame[0], 0, self.frame[1])

    def paste(self, full: Tensor, part: Tensor) -> None:
        """Write what was computed into a tensor (rows, C, H, W) of a whole call, in place."""
        y0, y1, x0, x1 = self.box
        self.rows.of(full)[..., y0:y1, x0:x1] = part

    def crop(self, x: Tensor) -> Tensor:
        """The window's part of a tensor (..., h, w) on any level of the UNet."""
        y0, y1, x0, x1 = self.at(x.shape[-2], x.shape[-1])
        return x[..., y0:y1, x0:x1]

    def at(self, height: int, width: int) -> Box:
        """The box on a level of height x width. Exact where the box is aligned to the level's downsampling."""
        y0, y1, x0, x1 = self.box
        full_h, full_w = self.frame
        return y0 * height // full_h, y1 * height // full_h, x0 * width // full_w, x1 * width // full_w

    # -- recording -----------------------------------------------------------------------------------------------

    def conv_ring(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """The ring of cells around the window in the input (B, C, h, w) of a convolution, zeros outside the frame: top,
        bottom, left and right in a row, (B, C, cells)."""
        y0, y1, x0, x1 = self.at(x.shape[-2], x.shape[-1])
        rows = (_edge(x, y, y + 1, x0 - 1, x1 + 1) for y in (y0 - 1, y1))
        columns = (_edge(x, y0, y1, c, c + 1) for c in (x0 - 1, x1))
        return torch.cat([rearrange(strip, "b c h w -> b c (h w)") for strip in (*rows, *columns)], dim=-1)

    def norm_shift(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Frame mean minus window mean, and the log of the ratio of their 1 / deviation: (B, groups, 2)."""
        (mean, rstd), (own_mean, own_rstd) = (_statistics(t, norm) for t in (x, self.crop(x)))
        return torch.stack([mean - own_mean, (rstd / own_rstd).log()], dim=-1)

    def outside_tokens(self, attention: nn.Module, tokens: Tensor) -> Tensor:
        """The tokens (B, n, C) outside the window."""
        return tokens[:, self._outside(tokens.shape[1], tokens.device)]

    def _outside(self, count: int, device: torch.device) -> Tensor:
        """Indices of the tokens outside the window, on the level of that many tokens."""
        if (count, device) not in self._outsides:
            height, width = self.level(count)
            y0, y1, x0, x1 = self.at(height, width)
            outside = torch.ones(height, width, dtype=torch.bool)
            outside[y0:y1, x0:x1] = False
            self._outsides[count, device] = outside.flatten().nonzero()[:, 0].to(device)
        return self._outsides[count, device]

    def level(self, tokens: int) -> tuple[int, int]:
        """Height and width of the UNet's level with that many tokens. Raises ValueError where no level has them."""
        height, width = self.frame
        while height * width > tokens:
            height, width = height // 2, width // 2
        if height * width != tokens:
            raise ValueError(f"no level of a {self.frame[0]}x{self.frame[1]} frame has {tokens} tokens")
        return height, width

    # -- computing -----------------------------------------------------------------------------------------------

    def conv(self, conv: nn.Conv2d, x: Tensor, keys: Keys, sigma: float) -> Tensor:
        """The padded input (B, C, h + 2, w + 2) of a convolution whose padding is then 0."""
        height, width = x.shape[-2:]
        top, bottom, left, right = self.get(conv, keys, sigma).split((width + 2, width + 2, height, height), dim=-1)
        padded = x.new_empty(*x.shape[:2], height + 2, width + 2)
        padded[:, :, 1:-1, 1:-1], padded[:, :, 0], padded[:, :, -1] = x, top, bottom
        padded[:, :, 1:-1, 0], padded[:, :, 1:-1, -1] = left, right
        return padded

    def norm(self, norm: nn.GroupNorm, x: Tensor, keys: Keys, sigma: float) -> Tensor:
        """Normalise by the window's own statistics, shifted to what the frame's would be."""
        shift, log_rstd_ratio = self.get(norm, keys, sigma).unbind(-1)
        mean, rstd = _statistics(x, norm)
        rstd = rstd * log_rstd_ratio.exp()
        weight, bias = (t.float() for t in self.affine(norm, x))
        channels = x.shape[1]
        scale = _per_channel(rstd, channels) * weight
        offset = bias - _per_channel(mean + shift, channels) * scale
        return torch.addcmul(offset[..., None, None], x.float(), scale[..., None, None]).to(x.dtype)

    def attention(self, attention: nn.Module, tokens: Tensor, keys: Keys, sigma: float) -> Tensor:
        """The tokens to attend to: the window's own, then those outside."""
        return torch.cat([tokens, self.get(attention, keys, sigma)], dim=1)


def shallow_window(frame: tuple[int, int], affine: Affine = module_affine) -> Window:
    """What shallow evaluations compute: the frame of all images through the outermost block on either side."""
    return Window((0, frame[0], 0, frame[1]), frame, affine, depth=1)


def windows_of(
    frame: tuple[int, int], affine: Affine = module_affine, depth: int | None = None
) -> Callable[[Sequence[tuple[Box, ...]]], list[Window]]:
    """Makes a window for each of the boxes of each image of a batch."""

    def make(boxes: Sequence[tuple[Box, ...]]) -> list[Window]:
        return [
            Window(box, frame, affine, ImageRows(image, len(boxes)), depth) for image, own in enumerate(boxes) for box in own
        ]

    return make
