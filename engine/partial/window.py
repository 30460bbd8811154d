"""Partial evaluation of a UNet: one window of the frame, its surroundings taken from earlier dense evaluations.

A bare crop of the latent is worse than not computing at all: its convolutions see zeros at the border, its
self-attention sees only itself and its group norms take the statistics of the crop. So a dense evaluation records,
for each window, what the crop would lack: the one-cell ring around it at every 3x3 convolution, the outside tokens of
every self-attention, and by how much every group norm's statistics differ between frame and crop. At the point where
they were recorded the window then equals the dense evaluation to rounding; further on, the surroundings are
extrapolated from the last two recordings.

A window of the whole frame lacks nothing but what enters from within: that is a shallow evaluation.

A window need not be computed through the whole UNet. Inner blocks change slowly along the schedule (Ma et al.,
"DeepCache", CVPR 2024), so a window of `depth` d runs the outermost d blocks on either side only, and what enters them
from within is extrapolated like the rest. That also frees it from the alignment of the levels it never reaches.

It works on modules, by swapping `forward` for the length of one call: `nn.GroupNorm`, `nn.Conv2d` with a 3x3 kernel,
and self-attention modules named `attn1`, called with tokens (B, n, C). Those are the names in ComfyUI's and the
demo's UNets alike, as are the lists `input_blocks` and `output_blocks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..trace import Box
from .cache import Key, Keys, Surroundings

Affine = Callable[[nn.GroupNorm, Tensor], tuple[Tensor, Tensor]]


def module_affine(norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a group norm; hosts that offload or quantise weights pass their own."""
    return norm.weight, norm.bias


def _statistics(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of a group norm, each (B, groups), by torch's own fused kernel."""
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


class Window(Surroundings):
    """One window (y0, y1, x0, x1) of a frame (H, W), in latent cells, and its last two recordings.

    image: which image of a batch it belongs to, and how many there are. A call's rows are its streams, of each of
    which every image is a row; a window records and computes its own image's alone.
    depth: how many of the outermost blocks on either side are computed; None for the whole UNet.
    """

    def __init__(
        self, box: Box, frame: tuple[int, int], affine: Affine = module_affine, image: tuple[int, int] = (0, 1),
        depth: int | None = None,
    ):  # fmt: skip
        super().__init__(image)
        self.box, self.frame, self.affine, self.depth = box, frame, affine, depth
        self._outsides: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def whole(self) -> bool:
        """True for the whole frame, which has no surroundings."""
        return self.box == (0, self.frame[0], 0, self.frame[1])

    def paste(self, full: Tensor, part: Tensor) -> None:
        """Write what was computed into a tensor of a whole call, in place."""
        y0, y1, x0, x1 = self.box
        self.rows(full)[..., y0:y1, x0:x1] = part

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

    def record_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """The ring of cells around the window, zeros outside the frame: top, bottom, left, right in a row."""
        y0, y1, x0, x1 = self.at(x.shape[-2], x.shape[-1])
        rows = (_edge(x, y, y + 1, x0 - 1, x1 + 1) for y in (y0 - 1, y1))
        columns = (_edge(x, y0, y1, c, c + 1) for c in (x0 - 1, x1))
        return torch.cat([strip.flatten(-2) for strip in (*rows, *columns)], dim=-1)

    def record_norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Frame mean minus window mean, and the log of the ratio of their 1 / deviation: (B, groups, 2)."""
        (mean, rstd), (own_mean, own_rstd) = (_statistics(t, norm) for t in (x, self.crop(x)))
        return torch.stack([mean - own_mean, (rstd / own_rstd).log()], dim=-1)

    def record_attention(self, attention: nn.Module, tokens: Tensor) -> Tensor:
        """The tokens (B, n, C) outside the window."""
        return tokens[:, self._outside(tokens.shape[1], tokens.device)]

    def record_entering(self, layer: nn.Module, entering: Tensor) -> Tensor:
        """What enters the outer blocks from within."""
        return self.crop(entering)

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
        """Height and width of the level with that many tokens."""
        height, width = self.frame
        while height * width > tokens:
            height, width = height // 2, width // 2
        if height * width != tokens:
            raise ValueError(f"no level of a {self.frame[0]}x{self.frame[1]} frame has {tokens} tokens")
        return height, width

    # -- computing -----------------------------------------------------------------------------------------------

    def entering(self, layer: nn.Module, keys: Keys, sigma: float) -> Tensor:
        """What enters the outer blocks from within."""
        return self.part(layer, keys, sigma)

    def conv(self, conv: nn.Conv2d, x: Tensor, keys: Keys, sigma: float) -> Tensor:
        """The padded input (B, C, h + 2, w + 2) of a convolution whose padding is then 0."""
        height, width = x.shape[-2:]
        top, bottom, left, right = self.part(conv, keys, sigma).split((width + 2, width + 2, height, height), dim=-1)
        padded = x.new_empty(*x.shape[:2], height + 2, width + 2)
        padded[:, :, 1:-1, 1:-1], padded[:, :, 0], padded[:, :, -1] = x, top, bottom
        padded[:, :, 1:-1, 0], padded[:, :, 1:-1, -1] = left, right
        return padded

    def norm(self, norm: nn.GroupNorm, x: Tensor, keys: Keys, sigma: float) -> Tensor:
        """Normalise by the window's own statistics, shifted to what the frame's would be."""
        shift, log_ratio = self.part(norm, keys, sigma).unbind(-1)
        mean, rstd = _statistics(x, norm)
        rstd = rstd * log_ratio.exp()
        weight, bias = (t.float() for t in self.affine(norm, x))
        channels = x.shape[1]
        scale = _per_channel(rstd, channels) * weight
        offset = bias - _per_channel(mean + shift, channels) * scale
        return torch.addcmul(offset[..., None, None], x.float(), scale[..., None, None]).to(x.dtype)

    def attention(self, attention: nn.Module, tokens: Tensor, keys: Keys, sigma: float) -> Tensor:
        """The tokens to attend to: the window's own, then those outside."""
        return torch.cat([tokens, self.part(attention, keys, sigma)], dim=1)


def shallow_window(frame: tuple[int, int], affine: Affine = module_affine) -> Window:
    """What shallow evaluations compute: the frame of all images through the outermost block on either side."""
    return Window((0, frame[0], 0, frame[1]), frame, affine, depth=1)


def windows_of(frame: tuple[int, int], affine: Affine = module_affine, depth: int | None = None):
    """Windows for the boxes of each image of a batch."""

    def surround(boxes: Sequence[tuple[Box, ...]]) -> list[Window]:
        return [Window(box, frame, affine, (image, len(boxes)), depth) for image, own in enumerate(boxes) for box in own]

    return surround


@dataclass(frozen=True)
class Shell:
    """The outermost blocks of a UNet, which a window computes.

    last_inner: the layer whose output enters them from within; first_inner: the one their inward path ends at; inner:
    the other layers within. None and empty where the whole UNet is computed.
    """

    norms: tuple[nn.Module, ...]
    convs: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    last_inner: nn.Module | None = None
    first_inner: nn.Module | None = None
    inner: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, unet: nn.Module, depth: int | None) -> Shell:
        """The outermost `depth` blocks of `unet` on either side, or all of it for None."""
        if depth is None:
            named = dict(unet.named_modules())
            return cls(*_targets(named))
        count = len(unet.output_blocks)
        if not 1 <= depth < count:
            raise ValueError(f"depth is {depth}; this UNet has {count} blocks on either side, so it must be 1 to {count - 1}")
        inwards = [layer for block in unet.input_blocks[depth:] for layer in block]
        outwards = [layer for block in unet.output_blocks[: count - depth] for layer in block]
        inner = (*inwards[1:], *(unet.middle_block or ()), *outwards[:-1])  # Koala's UNet has none
        within = {id(m) for layer in (inwards[0], *inner, outwards[-1]) for m in layer.modules()}
        named = {name: m for name, m in unet.named_modules() if id(m) not in within}
        return cls(*_targets(named), outwards[-1], inwards[0], inner)


def _targets(named: dict[str, nn.Module]) -> tuple[tuple[nn.Module, ...], ...]:
    norms = tuple(m for m in named.values() if isinstance(m, nn.GroupNorm))
    convs = tuple(m for m in named.values() if _is_ring_conv(m))
    attentions = tuple(m for name, m in named.items() if name.rsplit(".", 1)[-1] == "attn1")
    return norms, convs, attentions


def _is_ring_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1)


def fit(unet: nn.Module, frame: tuple[int, int], levels: int) -> tuple[int | None, int]:
    """Depth and alignment of windows through the finest `levels` of a UNet, 0 for all of it.

    Fewer levels where these do not divide the frame (H, W) evenly; the finest alone fits every frame.
    """
    starts = [i for i, block in enumerate(unet.input_blocks) if any(type(layer).__name__ == "Downsample" for layer in block)]
    depths: list[int | None] = [*starts, None]
    reached = depths[: levels or None]
    while frame[0] % 2 ** (len(reached) - 1) or frame[1] % 2 ** (len(reached) - 1):
        reached.pop()
    return reached[-1], 2 ** (len(reached) - 1)


@contextlib.contextmanager
def swapped(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """Give modules another `forward` for the length of one call, whatever it was before."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


@contextlib.contextmanager
def recording(unet: nn.Module, windows: Sequence[Window], keys: Sequence[Key]) -> Iterator[None]:
    """While this holds, a dense call of `unet` on the streams `keys` also records what each window lacks.

    Call `Window.begin` once per evaluation before it; several calls (streams run apart) add to one recording.
    """
    with contextlib.ExitStack() as stack:
        for depth in dict.fromkeys(window.depth for window in windows):
            own = [window for window in windows if window.depth == depth]
            stack.enter_context(_recording(unet, own, Shell.of(unet, depth), keys))
        yield


@contextlib.contextmanager
def _recording(unet: nn.Module, windows: Sequence[Window], shell: Shell, keys: Sequence[Key]) -> Iterator[None]:
    """The same for windows of one depth."""
    parts = [window for window in windows if not window.whole]
    forwards: dict[nn.Module, Callable] = {}
    streams = tuple(keys)

    def watch(module: nn.Module, record: str) -> None:
        forward = module.forward

        def recorded(x: Tensor, *args, **kwargs) -> Tensor:
            for window in parts:
                part = getattr(window, record)(module, window.rows(x))
                window.keep(module, streams, part, tokens=record == "record_attention")
            return forward(x, *args, **kwargs)

        forwards[module] = recorded

    def watch_last(layer: nn.Module) -> None:
        forward = layer.forward

        def recorded(*args, **kwargs) -> Tensor:
            entering = forward(*args, **kwargs)
            for window in windows:
                window.keep(layer, streams, window.record_entering(layer, window.rows(entering)))
            return entering

        forwards[layer] = recorded

    for modules, record in (
        (shell.norms, "record_norm"), (shell.convs, "record_conv"), (shell.attentions, "record_attention"),
    ):  # fmt: skip
        for module in modules if parts else ():
            watch(module, record)
    if shell.last_inner is not None:
        watch_last(shell.last_inner)
    with swapped(forwards):
        yield


@contextlib.contextmanager
def computing(unet: nn.Module, window: Window, keys: Sequence[Key], sigma: float) -> Iterator[None]:
    """While this holds, a call of `unet` on the window's crop of the streams `keys` sees its surroundings at sigma."""
    shell = Shell.of(unet, window.depth)
    forwards: dict[nn.Module, Callable] = {}
    streams = tuple(keys)

    def swap_conv(conv: nn.Conv2d) -> None:
        forward = conv.forward

        def ringed(x: Tensor) -> Tensor:
            padded = window.conv(conv, x, streams, sigma)
            conv.padding = (0, 0)
            try:
                return forward(padded)
            finally:
                conv.padding = (1, 1)

        forwards[conv] = ringed

    def swap_attention(attention: nn.Module) -> None:
        forward = attention.forward

        def attending(x: Tensor, *args, **kwargs) -> Tensor:
            kwargs.pop("context", None)
            kwargs.pop("value", None)
            return forward(x, context=window.attention(attention, x, streams, sigma), **kwargs)

        forwards[attention] = attending

    if not window.whole:
        for conv in shell.convs:
            swap_conv(conv)
        for attention in shell.attentions:
            swap_attention(attention)
        for norm in shell.norms:
            forwards[norm] = lambda x, norm=norm: window.norm(norm, x, streams, sigma)
    if shell.last_inner is not None:
        for layer in shell.inner:
            forwards[layer] = lambda x, *args, **kwargs: x
        forwards[shell.first_inner] = lambda x, *args, **kwargs: x[..., :1, :1]
        forwards[shell.last_inner] = lambda x, *args, **kwargs: window.entering(shell.last_inner, streams, sigma)
    with swapped(forwards):
        yield
