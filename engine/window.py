"""Partial evaluation of a UNet: one window of the frame, its surroundings taken from earlier dense evaluations.

A bare crop of the latent is worse than not computing at all: its convolutions see zeros at the border, its
self-attention sees only itself and its group norms take the statistics of the crop. So a dense evaluation records,
for each window, what the crop would lack: the one-cell ring around it at every 3x3 convolution, the outside tokens of
every self-attention, and by how much every group norm's statistics differ between frame and crop. At the point where
they were recorded the window then equals the dense evaluation to rounding; further on, the surroundings are
extrapolated from the last two recordings.

It works on modules, by swapping `forward` for the length of one call: `nn.GroupNorm`, `nn.Conv2d` with a 3x3 kernel,
and self-attention modules named `attn1`, called with tokens (B, n, C). Those are the names in ComfyUI's and the
demo's UNets alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forecast import extrapolate, reach
from .trace import Box

Key = Hashable  # one image stream of a batch: a cond of the host
Affine = Callable[[nn.GroupNorm, Tensor], tuple[Tensor, Tensor]]


def module_affine(norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a group norm; hosts that offload or quantise weights pass their own."""
    return norm.weight, norm.bias


@dataclass
class Recording:
    """What one window lacks, from one dense evaluation: module -> stream -> tensors, on the model's device."""

    sigma: float
    parts: dict[nn.Module, dict[Key, tuple[Tensor, ...]]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        tensors = (t for streams in self.parts.values() for parts in streams.values() for t in parts)
        return sum(t.numel() * t.element_size() for t in tensors)


def _statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a group norm, each (B, groups), in float32."""
    flat = x.reshape(x.shape[0], groups, -1).float()
    variance, mean = torch.var_mean(flat, dim=-1, correction=0)
    return mean, variance


def _per_channel(values: Tensor, channels: int) -> Tensor:
    return values.repeat_interleave(channels // values.shape[1], dim=1)[:, :, None, None]


class Window:
    """One window (y0, y1, x0, x1) of a frame (H, W), in latent cells, and its last two recordings."""

    def __init__(self, box: Box, frame: tuple[int, int], affine: Affine = module_affine):
        self.box, self.frame, self.affine = box, frame, affine
        self.recordings: list[Recording] = []
        self._outsides: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(recording.bytes for recording in self.recordings)

    def begin(self, sigma: float) -> None:
        """Start the recording of a dense evaluation; the one before the last is dropped."""
        if self.recordings and sigma >= self.recordings[-1].sigma * (1 - 1e-6):
            self.recordings.pop()
        self.recordings.append(Recording(sigma))
        del self.recordings[:-2]

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

    def _keep(self, module: nn.Module, keys: Sequence[Key], parts: tuple[Tensor, ...]) -> None:
        streams = self.recordings[-1].parts.setdefault(module, {})
        for key, *rows in zip(keys, *(part.chunk(len(keys)) for part in parts), strict=True):
            streams[key] = tuple(row.detach().clone() for row in rows)

    def record_conv(self, conv: nn.Conv2d, x: Tensor, keys: Sequence[Key]) -> None:
        """Keep the ring of cells around the window, zeros outside the frame: top, bottom, left, right."""
        y0, y1, x0, x1 = self.at(x.shape[-2], x.shape[-1])
        ring = F.pad(x, (1, 1, 1, 1))[:, :, y0 : y1 + 2, x0 : x1 + 2]
        self._keep(conv, keys, (ring[:, :, 0], ring[:, :, -1], ring[:, :, 1:-1, 0], ring[:, :, 1:-1, -1]))

    def record_norm(self, norm: nn.GroupNorm, x: Tensor, keys: Sequence[Key]) -> None:
        """Keep frame mean minus window mean, and log of the ratio of their variances, per group."""
        (mean, var), (own_mean, own_var) = (_statistics(t, norm.num_groups) for t in (x, self.crop(x)))
        self._keep(norm, keys, (mean - own_mean, ((var + norm.eps) / (own_var + norm.eps)).log()))

    def record_attention(self, attention: nn.Module, tokens: Tensor, keys: Sequence[Key]) -> None:
        """Keep the tokens (B, n, C) outside the window."""
        self._keep(attention, keys, (tokens[:, self._outside(tokens.shape[1], tokens.device)],))

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

    def _parts(self, module: nn.Module, keys: Sequence[Key], sigma: float) -> list[Tensor]:
        """The recorded parts for these streams, extrapolated to sigma."""

        def gathered(recording: Recording) -> list[Tensor]:
            streams = recording.parts[module]
            return [torch.cat(parts) for parts in zip(*(streams[key] for key in keys), strict=True)]

        newer = self.recordings[-1]
        parts = gathered(newer)
        if len(self.recordings) == 2:
            older = self.recordings[0]
            weight = reach(sigma, newer.sigma, older.sigma)
            if weight and all(key in older.parts[module] for key in keys):
                parts = [extrapolate(a, b, weight) for a, b in zip(parts, gathered(older), strict=True)]
        return parts

    def ready(self, keys: Sequence[Key]) -> bool:
        """True when these streams have been recorded."""
        if not self.recordings or not self.recordings[-1].parts:
            return False
        streams = next(iter(self.recordings[-1].parts.values()))
        return all(key in streams for key in keys)

    def conv(self, conv: nn.Conv2d, x: Tensor, keys: Sequence[Key], sigma: float) -> Tensor:
        """The padded input (B, C, h + 2, w + 2) of a convolution whose padding is then 0."""
        top, bottom, left, right = self._parts(conv, keys, sigma)
        padded = x.new_empty(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
        padded[:, :, 1:-1, 1:-1], padded[:, :, 0], padded[:, :, -1] = x, top, bottom
        padded[:, :, 1:-1, 0], padded[:, :, 1:-1, -1] = left, right
        return padded

    def norm(self, norm: nn.GroupNorm, x: Tensor, keys: Sequence[Key], sigma: float) -> Tensor:
        """Normalise by the window's own statistics, shifted to what the frame's would be."""
        shift, log_ratio = self._parts(norm, keys, sigma)
        mean, variance = _statistics(x, norm.num_groups)
        mean, rstd = mean + shift, ((variance + norm.eps) * log_ratio.exp()).rsqrt()
        weight, bias = self.affine(norm, x)
        scale = _per_channel(rstd, x.shape[1]) * weight.float()[:, None, None]
        offset = bias.float()[:, None, None] - _per_channel(mean, x.shape[1]) * scale
        return torch.addcmul(offset, x.float(), scale).to(x.dtype)

    def attention(self, attention: nn.Module, tokens: Tensor, keys: Sequence[Key], sigma: float) -> Tensor:
        """The tokens to attend to: the window's own, then those outside."""
        (outside,) = self._parts(attention, keys, sigma)
        return torch.cat([tokens, outside], dim=1)


def _is_ring_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1)


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


def _targets(unet: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    norms = [m for m in unet.modules() if isinstance(m, nn.GroupNorm)]
    convs = [m for m in unet.modules() if _is_ring_conv(m)]
    attentions = [m for name, m in unet.named_modules() if name.rsplit(".", 1)[-1] == "attn1"]
    return norms, convs, attentions


@contextlib.contextmanager
def recording(unet: nn.Module, windows: Sequence[Window], keys: Sequence[Key]) -> Iterator[None]:
    """While this holds, a dense call of `unet` on the streams `keys` also records what each window lacks.

    Call `Window.begin` once per evaluation before it; several calls (streams run apart) add to one recording.
    """
    norms, convs, attentions = _targets(unet)
    forwards: dict[nn.Module, Callable] = {}

    def watch(module: nn.Module, record: str) -> None:
        forward = module.forward

        def recorded(x: Tensor, *args, **kwargs) -> Tensor:
            for window in windows:
                getattr(window, record)(module, x, keys)
            return forward(x, *args, **kwargs)

        forwards[module] = recorded

    for modules, record in ((norms, "record_norm"), (convs, "record_conv"), (attentions, "record_attention")):
        for module in modules:
            watch(module, record)
    with swapped(forwards):
        yield


@contextlib.contextmanager
def computing(unet: nn.Module, window: Window, keys: Sequence[Key], sigma: float) -> Iterator[None]:
    """While this holds, a call of `unet` on the window's crop of the streams `keys` sees its surroundings at sigma."""
    norms, convs, attentions = _targets(unet)
    forwards: dict[nn.Module, Callable] = {}

    def swap_conv(conv: nn.Conv2d) -> None:
        forward = conv.forward

        def ringed(x: Tensor) -> Tensor:
            padded = window.conv(conv, x, keys, sigma)
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
            return forward(x, context=window.attention(attention, x, keys, sigma), **kwargs)

        forwards[attention] = attending

    for conv in convs:
        swap_conv(conv)
    for attention in attentions:
        swap_attention(attention)
    for norm in norms:
        forwards[norm] = lambda x, norm=norm: window.norm(norm, x, keys, sigma)
    with swapped(forwards):
        yield
