"""SD's discrete noise schedule with v-prediction, rectified flow, and a plain Euler sampler with guidance.

x_t = alpha_t x0 + sigma_t eps with alpha^2 + sigma^2 = 1; the network predicts v = alpha eps - sigma x0 (Salimans
and Ho, "Progressive Distillation", 2022). The sampler works in the variance-exploding form that k-diffusion and
ComfyUI use: x = x0 + sigma eps with sigma = sigma_t / alpha_t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 1000


def alphas_cumprod() -> Tensor:
    """alpha_t^2 for t = 0..999: SD's scaled-linear betas from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


Corrupted = tuple[Tensor, Tensor, Tensor]  # noisy latents, timesteps (B,), what the network is to predict
HIGH_NOISE = 0.65  # timesteps are STEPS * u ** HIGH_NOISE for uniform u: the layout is decided at high noise
FLOW_SHIFT = 2.0  # of the timesteps that a flow is trained on, towards noise


def corrupt_by_schedule(x0: Tensor, noise: Tensor, u: Tensor) -> Corrupted:
    """Latents x0 and noise (B, 4, H, W), u (B,) uniform in 0..1: v-prediction on SD's schedule."""
    timesteps = (u**HIGH_NOISE * STEPS).long().clamp(max=STEPS - 1)
    signal = alphas_cumprod().float()[timesteps][:, None, None, None]
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    return alpha * x0 + sigma * noise, timesteps, alpha * noise - sigma * x0


def shifted(t: Tensor, shift: float) -> Tensor:
    """Timesteps of a flow, 0..1, moved towards noise (Esser et al., "Scaling Rectified Flow Transformers", 2024)."""
    return shift * t / (1 + (shift - 1) * t)


def corrupt_by_flow(x0: Tensor, noise: Tensor, u: Tensor) -> Corrupted:
    """The same for rectified flow (Liu et al., 2023): x = (1 - t) x0 + t noise, velocity noise - x0, t shifted as in
    SD3; the network is told 1000 t."""
    t = shifted(u, FLOW_SHIFT)
    share = t[:, None, None, None]
    return (1 - share) * x0 + share * noise, t * STEPS, noise - x0


def schedule_sigmas() -> Tensor:
    """sigma for t = 0..999, ascending, float32 (1000,)."""
    squares = alphas_cumprod()
    return ((1 - squares) / squares).sqrt().float()


def normal_sigmas(steps: int) -> Tensor:
    """ComfyUI's scheduler "normal": timesteps evenly from 999 to 0, then a final 0. Descending, (steps + 1,)."""
    log_sigmas = schedule_sigmas().log()
    timesteps = torch.linspace(STEPS - 1, 0, steps)
    low = timesteps.floor().long()
    high, part = timesteps.ceil().long(), timesteps.frac()
    sigmas = ((1 - part) * log_sigmas[low] + part * log_sigmas[high]).exp()
    return torch.cat([sigmas, torch.zeros(1)])


def flow_sigmas(steps: int, shift: float = FLOW_SHIFT) -> Tensor:
    """ComfyUI's scheduler "simple" for a flow: from the shifted table of 1000 timesteps, evenly; then 0. (steps + 1,)."""
    table = shifted(torch.arange(1, STEPS + 1) / STEPS, shift)
    return torch.stack([table[-(1 + i * STEPS // steps)] for i in range(steps)] + [torch.tensor(0.0)])


def timestep_of(sigma: Tensor) -> Tensor:
    """Index of the nearest schedule sigma, as k-diffusion's discrete schedule rounds it."""
    return (sigma.log() - schedule_sigmas().log()[:, None]).abs().argmin(dim=0)


Denoise = Callable[[Tensor, Tensor], Tensor]


def denoiser(unet: Callable[[Tensor, Tensor, Tensor], Tensor], context: Tensor) -> Denoise:
    """(x, sigma) -> denoised image x0, for x (B, 4, H, W), a scalar sigma and context (B, tokens, dim)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scale = (sigma**2 + 1) ** 0.5
        timestep = timestep_of(sigma.view(1)).expand(x.shape[0])
        v = unet(x / scale, timestep, context)
        return x / scale**2 - v * sigma / scale

    return denoise


def sample_euler(
    positive: Denoise, negative: Denoise, noise: Tensor, sigmas: Tensor, cfg: float,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Euler from noise (B, 4, H, W) of unit variance along sigmas (n + 1,) to a latent of the same shape."""
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    for i in range(len(sigmas) - 1):
        if callback:
            callback(i, x)
        uncond = negative(x, sigmas[i])
        denoised = uncond + cfg * (positive(x, sigmas[i]) - uncond)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x
