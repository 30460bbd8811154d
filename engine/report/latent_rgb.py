"""Rough pictures of a latent by a linear map, as ComfyUI's own latent previews are made. Small, and never in the way."""

from __future__ import annotations

import torch
from torch import Tensor

from ..trace import LatentColours

MAX_VALUES = 2**17  # of a sample, about: half a megabyte that leaves the model's device an evaluation
MAX_PICTURES = 16


def sample(latent: Tensor, most: int = MAX_VALUES, images_most: int = MAX_PICTURES) -> Tensor:
    """At most `images_most` pictures of a latent (B, C, H, W) or a video (B, C, F, H, W), as (P, f, C, h, w), of about `most`
    values. Sound and other sequences (B, C, L) are pictures of one channel, C high and L wide.

    Only slices are taken: no arithmetic on the sampler's thread. Of a video as many frames as there is room for, evenly
    spread, with its first and its last.
    """
    latent = latent.detach().unsqueeze(1) if latent.ndim == 3 else latent.detach()
    video = latent if latent.ndim == 5 else latent.unsqueeze(2)
    video = video[:images_most].movedim(1, 2)
    images, frames = video.shape[:2]
    wanted = min(frames, max(1, MAX_PICTURES // images))
    values, stride = video.numel() // frames * wanted, 1
    while values > most * stride**2:
        stride += 1
    video = video[..., ::stride, ::stride]
    if wanted < frames:
        places = [frames // 2] if wanted == 1 else [i * (frames - 1) // (wanted - 1) for i in range(wanted)]
        video = video[:, places]
    return video


def pictures(latent: Tensor, colours: LatentColours) -> Tensor:
    """A sample (P, f, C, h, w) -> rough pictures, uint8 (P, f, h, w, 3) on the CPU."""
    shape, flat = latent.shape[:2], colours.reshape(latent.float().cpu().flatten(0, 1))
    factors = torch.tensor(colours.factors)
    if len(factors) != flat.shape[1]:
        grey = flat.mean(1, keepdim=True)
        low, high = grey.amin((1, 2, 3), keepdim=True), grey.amax((1, 2, 3), keepdim=True)
        rgb = ((grey - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)
    else:
        bias = torch.tensor(colours.bias)[:, None, None]
        rgb = (torch.einsum("bchw,cr->brhw", flat, factors) + bias + 1) / 2
    return (rgb.clamp(0, 1) * 255).byte().movedim(1, -1).unflatten(0, shape)


def picture_of_latent(samples: Tensor, colours: LatentColours) -> Tensor:
    """Rough pictures (P, 8h, 8w, 3) in 0..1 of a latent as nodes pass it on: all of a batch, of a video some frames."""
    whole = sample(colours.scale(samples.float().cpu()), samples.numel(), len(samples))
    rough = pictures(whole, colours).flatten(0, 1).float() / 255
    return rough.repeat_interleave(8, 1).repeat_interleave(8, 2)
