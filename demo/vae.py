"""The demo's 8x VAE: a small AutoencoderKL in plain torch with ComfyUI's parameter names.

Its latent space is chosen, not found: `ideal_latent` defines it, the encoder is trained to compute it and the decoder
to invert it, so the UNet can be trained before the VAE is. Images are (B, 3, H, W) in 0..1 here; ComfyUI's are
-1..1 inside the VAE, and so are this module's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.18215  # SD1.5's latent scale: what the UNet sees is SCALE times what the VAE encodes
MEAN = (0.42, 0.0, 0.0, 0.012)
SPREAD = (0.18, 0.12, 0.12, 0.05)


def ideal_latent(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in 0..1 -> (B, 4, H/8, W/8): brightness, red and blue opponent colours, local contrast.

    Each is an average over 8x8 pixels, shifted and scaled to about unit variance over the scenes.
    """
    brightness = image.mean(1, keepdim=True)
    parts = torch.cat([brightness, image[:, :1] - brightness, image[:, 2:] - brightness, brightness**2], dim=1)
    parts = F.avg_pool2d(parts, 8)
    parts[:, 3] = (parts[:, 3] - parts[:, 0] ** 2).clamp(min=0).sqrt()
    mean, spread = (torch.tensor(v, dtype=image.dtype, device=image.device)[:, None, None] for v in (MEAN, SPREAD))
    return (parts - mean) / spread


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (p(h).flatten(2).transpose(1, 2)[:, None] for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(-1, x.shape[-2:])
        return x + self.proj_out(h)


class Resample(nn.Module):
    def __init__(self, channels: int, down: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResnetBlock(channels, channels),
            AttnBlock(channels),
            ResnetBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, then a resampling where there is one."""

    def __init__(self, channels: int, out_channels: int, blocks: int, resample: str | None):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if i == 0 else out_channels, out_channels) for i in range(blocks))
        if resample:
            setattr(self, resample, Resample(out_channels, resample == "downsample"))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return getattr(self, self.resample)(x) if self.resample else x


class Encoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths, last = [ch * m for m in ch_mult], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(([ch] + widths)[i], widths[i], num_res_blocks, "downsample" if i < last else None) for i in range(last + 1)
        )
        self.mid, self.norm_out = Middle(widths[-1]), _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths, last = [ch * m for m in ch_mult], len(ch_mult) - 1
        self.conv_in, self.mid = nn.Conv2d(z_channels, widths[-1], 3, padding=1), Middle(widths[-1])
        self.up = nn.ModuleList(
            Level((widths + [widths[-1]])[i + 1], widths[i], num_res_blocks + 1, "upsample" if i else None)
            for i in range(last + 1)
        )
        self.norm_out, self.conv_out = _norm(ch), nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


CONFIG = {"ch": 32, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 1, "z_channels": 4}


class VAE(nn.Module):
    """Images (B, 3, H, W) in -1..1 <-> latents (B, 4, H/8, W/8) of SD1.5's scale (1 / 0.18215 of unit variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(**CONFIG), Decoder(**CONFIG)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)[0]

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))
