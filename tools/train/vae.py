"""Train the demo VAE: `python run.py train vae --minutes 15 --out runs/vae`.

The encoder learns `ideal_latent`, the decoder learns the picture back from it. Resumes like `run.py train denoiser`.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...demo.scenes import render, sample_scene
from ...demo.vae import SCALE, VAE, ideal_latent
from .denoiser import learning_rate, note, save_checkpoint

log = logging.getLogger("train.vae")
CROP = 128
ENCODER_EVERY = 4  # the encoder's task is much the easier one
LATENT_NOISE = 0.03  # what a sampler leaves in a latent, so that the decoder forgives it


def make_batch(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Random crops of fresh scenes, (count, 3, CROP, CROP) in 0..1, aligned to the latent's grid."""
    crops = []
    for _ in range(count // 2):
        image = render(sample_scene(rng), 256)
        for _ in range(2):
            y, x = rng.integers(0, (256 - CROP) // 8 + 1, 2) * 8
            crops.append(image[y : y + CROP, x : x + CROP])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    vae = VAE().to(device, memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
    optimiser = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=0.0, betas=(0.9, 0.99))
    step, spent, checkpoint = 0, 0.0, args.out / "last.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["spent"]
    budget, saved_at, clock = args.minutes * 60, spent, time.monotonic()
    rng = np.random.default_rng(step + 7)
    while spent < budget:
        image = make_batch(rng, args.batch).to(device)
        latent = ideal_latent(image)
        noisy = (latent + LATENT_NOISE * torch.randn_like(latent)) / SCALE
        with torch.autocast(device.type, torch.bfloat16):
            decoded = vae.decode(noisy).float() / 2 + 0.5
        error = decoded - image
        loss = error.abs().mean() + 4 * (error**2).mean()
        if step % ENCODER_EVERY == 0:
            with torch.autocast(device.type, torch.bfloat16):
                encoded = vae.encode(image * 2 - 1).float() * SCALE
            encoder_error = F.mse_loss(encoded, latent)
            loss = loss + 0.2 * encoder_error
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spent / budget, args.lr)
        optimiser.step()
        step += 1
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        if step % 25 == 0:
            psnr = -10 * (error**2).mean().log10().item()
            row = {"step": step, "seconds": round(spent), "loss": round(loss.item(), 5), "psnr": round(psnr, 2),
                   "latent_mse": round(encoder_error.item(), 5)}  # fmt: skip
            note(log, args.out, row)
        if spent - saved_at > 120 or spent >= budget:
            saved_at = spent
            state = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            save_checkpoint(state, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())
