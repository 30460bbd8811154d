"""The demo's 8x VAE: the layout of TAESD (Bohan, "Tiny AutoEncoder for Stable Diffusion", 2023) in plain torch, with
ComfyUI's parameter names. No normalisation, so that colours stay what they are.

Its latent space is chosen, not found: `ideal_latent` defines it, the encoder is trained to compute it and the decoder
to invert it, so the UNet can be trained before the VAE is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.18215  # SD1.5's latent scale: what the UNet sees is SCALE times what the VAE encodes
WIDTH, CHANNELS = 64, 4
PIXELS = 8  # of a picture, to a side of a latent's cell
MEAN = (0.42, 0.0, 0.0, 0.012)
SPREAD = (0.18, 0.12, 0.12, 0.05)


def ideal_latent(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in 0..1 -> (B, 4, H/8, W/8): brightness, red and blue opponent colours, local contrast.

    Each is an average over 8x8 pixels, shifted and scaled to about unit variance over the scenes.
    """
    brightness = image.mean(1, keepdim=True)
    parts = torch.cat([brightness, image[:, :1] - brightness, image[:, 2:] - brightness, brightness**2], dim=1)
    parts = F.avg_pool2d(parts, PIXELS)
    parts[:, 3] = (parts[:, 3] - parts[:, 0] ** 2).clamp(min=0).sqrt()
    mean, spread = (torch.tensor(v, dtype=image.dtype, device=image.device)[:, None, None] for v in (MEAN, SPREAD))
    return (parts - mean) / spread


def rgb_factors() -> tuple[list[list[float]], list[float]]:
    """R, G, B in -1..1 from a scaled latent: a row of factors for each of its channels, and what is added.

    Brightness and the opponent colours make up the colour; their mean and spread are undone, local contrast is left out.
    """
    brightness, red, blue, _ = (2 * spread / SCALE for spread in SPREAD)
    rows = [[brightness] * 3, [red, -red, 0.0], [0.0, -blue, blue], [0.0] * 3]
    means = [2 * (MEAN[0] + part) - 1 for part in (MEAN[1], -MEAN[1] - MEAN[2], MEAN[2])]
    return rows, means


def _conv(channels: int, out_channels: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1, **kwargs)


class Block(nn.Module):
    """Three convolutions around a skip; `skip` has no weights where the width stays."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class Clamp(nn.Module):
    """Softly to -3..3, the range of a latent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, WIDTH), Block(WIDTH)]
    for _ in range(3):
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH) for _ in range(3))]
    return nn.Sequential(*layers, _conv(WIDTH, CHANNELS))


def decoder() -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), _conv(CHANNELS, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [*(Block(WIDTH) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(WIDTH), _conv(WIDTH, 3))


class VAE(nn.Module):
    """Images (B, 3, H, W) in -1..1 <-> latents (B, 4, H/8, W/8) of SD1.5's scale (1 / 0.18215 of unit variance)."""

    vae_scale: Tensor
    vae_shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder, self.taesd_decoder = encoder(), decoder()
        self.register_buffer("vae_scale", torch.tensor(SCALE))
        self.register_buffer("vae_shift", torch.tensor(0.0))

    def encode(self, image: Tensor) -> Tensor:
        return self.taesd_encoder(image * 0.5 + 0.5) / self.vae_scale + self.vae_shift

    def decode(self, latent: Tensor) -> Tensor:
        return self.taesd_decoder((latent - self.vae_shift) * self.vae_scale) * 2 - 1


def picture_of(vae: VAE, latent: Tensor) -> Tensor:
    """The RGB picture (H, W, 3) in 0..1 of the first of the latents (B, 4, H/8, W/8) that a denoiser gives."""
    return (vae.decode(latent / SCALE)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
