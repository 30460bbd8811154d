"""SD3's multimodal diffusion transformer in plain torch, small enough to read, with ComfyUI's parameter names.

Shapes: latents x (B, 4, H, W), timesteps (B,) in 0..1000, context (B, tokens, context_dim) -> (B, 4, H, W).
H and W must be multiples of the patch size. Image and text tokens have weights of their own in every block and attend
to each other in one joint attention, text first (Esser et al., "Scaling Rectified Flow Transformers", 2024); queries
and keys are normalised as in SD3.5. Positions are those ComfyUI gives a model without a stored table: the frame's
shorter side always spans 0 to 15.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import Attend, timestep_embedding


@dataclass(frozen=True)
class MMDiTConfig:
    """The width is 64 x `heads`; attention has 64 channels a head, as in SD3."""

    in_channels: int = 4
    patch_size: int = 2
    heads: int = 3
    blocks: int = 8
    context_dim: int = 128

    @property
    def width(self) -> int:
        return 64 * self.heads


def axis_embedding(positions: Tensor, dim: int) -> Tensor:
    """Positions (n,) -> (n, dim), sine half first."""
    frequencies = 10000.0 ** -(torch.arange(dim // 2, device=positions.device).float() / (dim / 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_embedding(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Table (height * width, dim) of a grid whose shorter side spans 0..15: x in the first half, y in the second."""
    short = min(height, width)
    rows, columns = (
        axis_embedding(torch.linspace(7.5 - 7.5 * n / short, 7.5 + 7.5 * n / short, n, device=device), dim // 2)
        for n in (height, width)
    )
    grid = torch.cat([columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
    return grid.flatten(0, 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens (B, n, c), shift and scale (B, c)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class RMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class Attention(nn.Module):
    """One stream's projections; the attention itself is the joint block's."""

    def __init__(self, config: MMDiTConfig, pre_only: bool):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.ln_q, self.ln_k = RMSNorm(64), RMSNorm(64)
        if not pre_only:
            self.proj = nn.Linear(config.width, config.width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, n, width) -> q, k, v (B, heads, n, 64)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        return self.ln_q(q), self.ln_k(k), v


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class StreamBlock(nn.Module):
    """One stream's half of a block. The last block's text stream ends in its keys and values (`pre_only`)."""

    def __init__(self, config: MMDiTConfig, pre_only: bool):
        super().__init__()
        self.pre_only = pre_only
        self.attn = Attention(config, pre_only)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, (2 if pre_only else 6) * config.width))
        if not pre_only:
            self.mlp = MLP(config.width)

    def begin(self, x: Tensor, vec: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        """q, k, v of the tokens, and the modulation `end` needs."""
        shift, scale, *rest = self.adaLN_modulation(vec).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.project(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)), rest

    def end(self, x: Tensor, attended: Tensor, rest: list[Tensor]) -> Tensor:
        gate, shift, scale, mlp_gate = rest
        x = x + gate[:, None] * self.attn.proj(attended)
        return x + mlp_gate[:, None] * self.mlp(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))


class JointBlock(nn.Module):
    attend: Attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, config: MMDiTConfig, pre_only: bool):
        super().__init__()
        self.context_block, self.x_block = StreamBlock(config, pre_only), StreamBlock(config, False)

    def forward(self, context: Tensor, x: Tensor, vec: Tensor) -> tuple[Tensor | None, Tensor]:
        """Text (B, m, width), image (B, n, width), conditioning vector (B, width) -> both after the block."""
        text, text_rest = self.context_block.begin(context, vec)
        image, image_rest = self.x_block.begin(x, vec)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text, image, strict=True))
        attended = self.attend(q, k, v).transpose(1, 2).flatten(2)
        told, seen = attended[:, : context.shape[1]], attended[:, context.shape[1] :]
        after = None if self.context_block.pre_only else self.context_block.end(context, told, text_rest)
        return after, self.x_block.end(x, seen, image_rest)


class PatchEmbed(nn.Module):
    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    FREQUENCIES = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(timestep_embedding(timesteps, self.FREQUENCIES).to(dtype))


class FinalLayer(nn.Module):
    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=1)
        return self.linear(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))


class MMDiT(nn.Module):
    def __init__(self, config: MMDiTConfig | None = None):
        super().__init__()
        self.config = config = config or MMDiTConfig()
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimestepEmbedder(config.width)
        self.context_embedder = nn.Linear(config.context_dim, config.width)
        self.joint_blocks = nn.ModuleList(JointBlock(config, i == config.blocks - 1) for i in range(config.blocks))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        p = self.config.patch_size
        rows, columns = x.shape[-2] // p, x.shape[-1] // p
        x = self.x_embedder(x)
        x = x + position_embedding(rows, columns, self.config.width, x.device).to(x.dtype)
        vec, context = self.t_embedder(timesteps, x.dtype), self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, vec)
        x = self.final_layer(x, vec)  # (B, n, p * p * channels), channels last
        x = x.unflatten(-1, (p, p, -1)).unflatten(1, (rows, columns))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
