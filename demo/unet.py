"""SD1.5's UNet in plain torch, small enough to read, with ComfyUI's parameter names.

Shapes: latents x (B, 4, H, W), timesteps (B,) in 0..999, context (B, tokens, context_dim) -> (B, 4, H, W).
H and W must be multiples of 8 (three stride-2 levels). The block layout (4 levels, 2 residual blocks a level,
attention at the first three) is that of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models", 2022, so packs that number SD1.5's blocks number these the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention1Patch = Callable[[Tensor, tuple], Tensor]


@dataclass(frozen=True)
class UNetConfig:
    """Widths are multiples of `model_channels`; attention at every level with `attention[level]` true."""

    in_channels: int = 4
    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2, 1)
    attention: tuple[bool, ...] = (True, True, True, False)
    num_res_blocks: int = 2
    context_dim: int = 128
    head_channels: int = 64


# The second model, which nothing is tuned to: SDXL's layout, with three levels and no attention at full resolution.
SECOND = UNetConfig(channel_mult=(1, 2, 3), attention=(False, True, True), head_channels=32)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding (B, dim), cosine half first (Ho et al. 2020, as in OpenAI's guided-diffusion)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=timesteps.device).float() / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


Attend = Callable[..., Tensor]  # queries, keys and values (B, heads, n, d) -> (B, heads, n, d)


class CrossAttention(nn.Module):
    attend: Attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, dim: int, context_dim: int | None, head_channels: int):
        super().__init__()
        self.heads = dim // head_channels
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens (B, n, dim) attend to context (B, m, context_dim), or to themselves."""
        context = x if context is None else context
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))  # fmt: skip
        return self.to_out(self.attend(q, k, v).transpose(1, 2).flatten(-2))


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Dropout(0.0), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, config: UNetConfig):
        super().__init__()
        self.attn1 = CrossAttention(dim, None, config.head_channels)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, config.context_dim, config.head_channels)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, config)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        height, width = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(-1, (height, width)).contiguous())


class ResBlock(nn.Module):
    def __init__(self, channels: int, embedding: int, out_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def width_of(stage: nn.Module) -> int:
    """Channels that a stage, or one layer of it, gives out."""
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


class Stage(nn.Sequential):
    """Layers in a row, each given what it needs."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    def __init__(self, config: UNetConfig | None = None):
        super().__init__()
        self.config = config = config or UNetConfig()
        width = config.model_channels
        embedding = width * 4
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))])
        skips, channels = [width], width
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, embedding, width * mult)]
                channels = width * mult
                if config.attention[level]:
                    layers.append(SpatialTransformer(channels, config))
                self.input_blocks.append(Stage(*layers))
                skips.append(channels)
            if level < last:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)
        self.middle_block = Stage(
            ResBlock(channels, embedding, channels),
            SpatialTransformer(channels, config),
            ResBlock(channels, embedding, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers = [ResBlock(channels + skips.pop(), embedding, width * mult)]
                channels = width * mult
                if config.attention[level]:
                    layers.append(SpatialTransformer(channels, config))
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, config.in_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        embedding = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, embedding, context)
            skips.append(x)
        x = self.middle_block(x, embedding, context)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding, context)
        return self.out(x)
