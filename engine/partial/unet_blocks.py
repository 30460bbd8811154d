"""Which layers of a UNet a window is computed through, and the patching of those layers for one call.

A window need not be computed through the whole UNet. Inner blocks change slowly along the schedule (Ma et al., "DeepCache",
CVPR 2024), so a window of `depth` d runs the outermost d blocks on either side only, and what enters them from within is
extrapolated like the rest. That also frees it from the alignment of the levels it never reaches. A window of the whole frame
lacks nothing but what enters from within: that is a shallow evaluation.

The layers are found by what they are: `nn.GroupNorm`, `nn.Conv2d` with a 3x3 kernel, and self-attention modules named `attn1`,
called with tokens (B, n, C). Those are the names in ComfyUI's and the demo's UNets alike, as are the lists `input_blocks` and
`output_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Key, Keys
from .patching import patched_forward
from .unet_window import Window

Forward = Callable[..., Tensor]
Recorder = Callable[[Window, Any, Tensor], Tensor]


@dataclass(frozen=True)
class OuterBlocks:
    """The outermost blocks of a UNet, which a window is computed through.

    norms, convs, attentions: their layers. branch_input: the layer whose output enters them from within. inward_end: the first
    layer within, where the inward path ends. inner: the other layers within. The last three are None and empty where the whole
    UNet is computed.
    """

    norms: tuple[nn.GroupNorm, ...]
    convs: tuple[nn.Conv2d, ...]
    attentions: tuple[nn.Module, ...]
    branch_input: nn.Module | None = None
    inward_end: nn.Module | None = None
    inner: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, unet: Any, depth: int | None) -> OuterBlocks:
        """The outermost `depth` blocks of `unet` on either side, or all of it for None. Raises ValueError for a depth that
        the UNet does not have."""
        if depth is None:
            return cls(*_layers(dict(unet.named_modules())))
        count = len(unet.output_blocks)
        if not 1 <= depth < count:
            raise ValueError(f"depth is {depth}; this UNet has {count} blocks on either side, so it must be 1 to {count - 1}")
        inwards = [layer for block in unet.input_blocks[depth:] for layer in block]
        outwards = [layer for block in unet.output_blocks[: count - depth] for layer in block]
        inner = (*inwards[1:], *(unet.middle_block or ()), *outwards[:-1])  # Koala's UNet has no middle block
        within = {id(m) for layer in (inwards[0], *inner, outwards[-1]) for m in layer.modules()}
        named = {name: m for name, m in unet.named_modules() if id(m) not in within}
        return cls(*_layers(named), outwards[-1], inwards[0], inner)


def _looks_at_itself(name: str, named: Mapping[str, nn.Module]) -> bool:
    """Whether the first attention of a block is self-attention: in some upscalers' blocks it looks at the text as well."""
    return not getattr(named.get(name.rpartition(".")[0]), "disable_self_attn", False)


def _layers(
    named: Mapping[str, nn.Module],
) -> tuple[tuple[nn.GroupNorm, ...], tuple[nn.Conv2d, ...], tuple[nn.Module, ...]]:
    """Group norms, convolutions and self-attentions among modules by name."""
    norms = tuple(m for m in named.values() if isinstance(m, nn.GroupNorm))
    convs = tuple(m for m in named.values() if isinstance(m, nn.Conv2d) and _reads_a_ring(m))
    attentions = tuple(m for name, m in named.items() if name.rsplit(".", 1)[-1] == "attn1" and _looks_at_itself(name, named))
    return norms, convs, attentions


def _reads_a_ring(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def pads_otherwise(unet: nn.Module) -> bool:
    """Whether convolutions take something else than zeros beyond the frame, as for pictures that can be tiled: then the ring
    around a window is not all that a window lacks."""
    convs = (m for m in unet.modules() if isinstance(m, nn.Conv2d) and _reads_a_ring(m))
    return any(conv.padding_mode != "zeros" or "_conv_forward" in vars(conv) for conv in convs)


def _is_downsample(layer: nn.Module) -> bool:
    """Whether a layer halves the frame, by the name that its class has in ComfyUI and in the demo alike."""
    return type(layer).__name__ == "Downsample"


def depth_and_alignment(unet: Any, frame: tuple[int, int], levels: int) -> tuple[int | None, int]:
    """Depth and alignment, in latent cells, of windows through the finest `levels` of a UNet, 0 for all of it.

    Fewer levels where these do not divide the frame (H, W) evenly; the finest alone fits every frame.
    """
    starts = [i for i, block in enumerate(unet.input_blocks) if any(map(_is_downsample, block))]
    depths: list[int | None] = [*starts, None]
    reached = depths[: levels or None]
    while frame[0] % 2 ** (len(reached) - 1) or frame[1] % 2 ** (len(reached) - 1):
        reached.pop()
    return reached[-1], 2 ** (len(reached) - 1)


@contextmanager
def recording_windows(unet: nn.Module, windows: Sequence[Window], keys: Sequence[Key]) -> Iterator[None]:
    """While this holds, a dense call of `unet` on the streams `keys` also records what each window lacks.

    Call `Window.begin` once per evaluation before it; several calls (streams run apart) add to one recording.
    """
    with ExitStack() as stack:
        for depth in dict.fromkeys(window.depth for window in windows):
            own = [window for window in windows if window.depth == depth]
            stack.enter_context(patched_forward(_recording_forwards(own, OuterBlocks.of(unet, depth), tuple(keys))))
        yield


def _recording_forwards(windows: Sequence[Window], blocks: OuterBlocks, keys: Keys) -> dict[nn.Module, Forward]:
    """The layers of windows of one depth, with forwards that record."""
    parts = [window for window in windows if not window.covers_frame]
    forwards: dict[nn.Module, Forward] = {}
    kinds: tuple[tuple[Sequence[nn.Module], Recorder, bool], ...] = (
        (blocks.norms, Window.norm_shift, False), (blocks.convs, Window.conv_ring, False),
        (blocks.attentions, Window.outside_tokens, True),
    )  # fmt: skip
    for modules, recorder, tokens in kinds if parts else ():
        for module in modules:
            forwards[module] = _recording_input(module, parts, recorder, keys, tokens)
    if blocks.branch_input is not None:
        forwards[blocks.branch_input] = _recording_output(blocks.branch_input, windows, keys)
    return forwards


def _recording_input(
    module: nn.Module, windows: Sequence[Window], recorder: Recorder, keys: Keys, tokens: bool
) -> Forward:  # fmt: skip
    forward = module.forward

    def recorded(x: Tensor, *args, **kwargs) -> Tensor:
        for window in windows:
            window.put(module, keys, recorder(window, module, window.rows.of(x)), tokens)
        return forward(x, *args, **kwargs)

    return recorded


def _recording_output(layer: nn.Module, windows: Sequence[Window], keys: Keys) -> Forward:
    forward = layer.forward

    def recorded(*args, **kwargs) -> Tensor:
        output = forward(*args, **kwargs)
        for window in windows:
            window.put(layer, keys, window.crop(window.rows.of(output)))
        return output

    return recorded


@contextmanager
def computing_window(unet: nn.Module, window: Window, keys: Sequence[Key], sigma: float) -> Iterator[None]:
    """While this holds, a call of `unet` on the window's crop of the streams `keys` is given what it lacks at sigma."""
    blocks, streams = OuterBlocks.of(unet, window.depth), tuple(keys)
    forwards: dict[nn.Module, Forward] = {}
    if not window.covers_frame:
        forwards |= {conv: _conv_with_ring(conv, window, streams, sigma) for conv in blocks.convs}
        forwards |= {own: _attention_to_outside(own, window, streams, sigma) for own in blocks.attentions}
        forwards |= {own: lambda x, own=own: window.norm(own, x, streams, sigma) for own in blocks.norms}
    if blocks.branch_input is not None and blocks.inward_end is not None:
        forwards |= {layer: lambda x, *args, **kwargs: x for layer in blocks.inner}
        forwards[blocks.inward_end] = lambda x, *args, **kwargs: x[..., :1, :1]
        forwards[blocks.branch_input] = lambda x, *args, **kwargs: window.get(blocks.branch_input, streams, sigma)
    with patched_forward(forwards):
        yield


def _conv_with_ring(conv: nn.Conv2d, window: Window, keys: Keys, sigma: float) -> Forward:
    forward = conv.forward

    def ringed(x: Tensor) -> Tensor:
        padded = window.conv(conv, x, keys, sigma)
        narrow = padded.shape[-1] < conv.kernel_size[1] + conv.stride[1]  # one column of output
        conv.padding = (0, 0)
        try:
            # on CPUs with AMX, in bf16, a strided convolution to one column reads foreign memory (oneDNN of torch 2.11)
            return forward(F.pad(padded, (0, conv.stride[1])))[..., :1] if narrow else forward(padded)
        finally:
            conv.padding = (1, 1)

    return ringed


def _attention_to_outside(attention: nn.Module, window: Window, keys: Keys, sigma: float) -> Forward:
    forward = attention.forward

    def attending(x: Tensor, *args, **kwargs) -> Tensor:
        kwargs.pop("context", None)
        kwargs.pop("value", None)
        return forward(x, context=window.attention(attention, x, keys, sigma), **kwargs)

    return attending
