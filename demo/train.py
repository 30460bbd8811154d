"""Train the demo UNet and its text encoder together: `python -m demo.train --hours 2 --out runs/unet`.

Runs on a GPU when there is one, else on the CPU in bfloat16 with float32 master weights. The learning rate follows
the share of the time budget that is spent, so a run ends when it should on any machine; it resumes from its own
checkpoint when started again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusion import STEPS, alphas_cumprod
from .load import read_weights
from .scenes import held_out, object_masks, render, sample_scene
from .text import TextEncoder, tokenize
from .unet import UNet
from .vae import ideal_latent

log = logging.getLogger("demo.train")
RENDER_SIZE = 256
OBJECT_WEIGHT = 2.0  # extra loss weight inside objects, which are a small part of the frame
DROP_PROMPT = 0.1
EMA = 0.998


def make_examples(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Latents (count, 4, 32, 32) and object weights (count, 32, 32) in float16, and captions, none held out."""
    rng, latents, weights, captions = np.random.default_rng(seed), [], [], []
    while len(captions) < count:
        scene = sample_scene(rng)
        if held_out(scene.caption):
            continue
        latent = ideal_latent(torch.from_numpy(render(scene, RENDER_SIZE)).permute(2, 0, 1)[None])[0]
        mask = object_masks(scene, 32).any(0) if scene.things else np.zeros((32, 32), bool)
        latents.append(latent.half().numpy())
        weights.append(mask.astype(np.float16))
        captions.append(scene.caption)
    return np.stack(latents), np.stack(weights), captions


def load_examples(path: Path, count: int, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make the training set once and keep it: latents, object weights, token ids."""
    if not path.exists():
        chunk = 500
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(make_examples, range(count // chunk), [chunk] * (count // chunk)))
        captions = [caption for part in parts for caption in part[2]]
        np.savez(path, latents=np.concatenate([p[0] for p in parts]), weights=np.concatenate([p[1] for p in parts]),
                 captions=np.array(captions))  # fmt: skip
    data = np.load(path)
    tokens = torch.stack([tokenize(str(caption)) for caption in data["captions"]])
    return torch.from_numpy(data["latents"]), torch.from_numpy(data["weights"]), tokens


class Pair(nn.Module):
    """The UNet and its text encoder, trained as one."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.text = UNet(), TextEncoder()
        for module in self.unet.modules():  # residual branches start silent, as in the original
            if hasattr(module, "out_layers"):
                nn.init.zeros_(module.out_layers[-1].weight)
            if hasattr(module, "proj_out"):
                nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(self.unet.out[-1].weight)
        nn.init.normal_(self.text.token_embedding.weight, std=0.5)
        nn.init.normal_(self.text.position_embedding.weight, std=0.1)

    def forward(self, x: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, timesteps, self.text(tokens))


def learning_rate(share: float, peak: float) -> float:
    """Warm up over the first 1% of the budget, then a cosine to zero."""
    return peak * min(1.0, share / 0.01) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    latents, weights, tokens = load_examples(args.out / "examples.npz", args.examples, args.workers)
    empty = tokenize("")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    master = Pair().to(device)
    working = Pair().to(device, torch.bfloat16)
    predict = torch.compile(working, dynamic=False) if args.compile else working
    average = {name: value.detach().clone() for name, value in master.state_dict().items()}
    optimiser = torch.optim.AdamW(master.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    signal = alphas_cumprod().float()
    step, spent, checkpoint = 0, 0.0, args.out / "last.pt"
    if args.init and not checkpoint.exists():
        master.unet.load_state_dict(read_weights("unet"))
        master.text.load_state_dict(read_weights("text"))
        average = {name: value.detach().clone() for name, value in master.state_dict().items()}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        master.load_state_dict(saved["master"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        log.info("resumed at step %d, %.0f s spent", step, spent)
    budget, saved_at, losses = args.hours * 3600, spent, []
    generator = torch.Generator().manual_seed(step + 1)
    clock = time.monotonic()
    while spent < budget:
        with torch.no_grad():
            for target, source in zip(working.parameters(), master.parameters(), strict=True):
                target.copy_(source)
                target.grad = None
        coarse = spent < budget * args.coarse
        batch = args.batch * (2 if coarse else 1)
        pick = torch.randint(len(latents), (batch,), generator=generator)
        x0, mask = latents[pick].float(), weights[pick].float()[:, None]
        if coarse:
            x0, mask = F.avg_pool2d(x0, 2), F.avg_pool2d(mask, 2)
        noise = torch.randn(x0.shape, generator=generator)
        strata = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
        timesteps = (strata * STEPS).long()
        alpha, sigma = signal[timesteps].sqrt()[:, None, None, None], (1 - signal[timesteps]).sqrt()[:, None, None, None]
        words = torch.where(torch.rand(batch, 1, generator=generator) < DROP_PROMPT, empty, tokens[pick])
        noisy, target_v = (alpha * x0 + sigma * noise).to(device), (alpha * noise - sigma * x0).to(device)
        weight = (1 + OBJECT_WEIGHT * mask).to(device)
        predicted = predict(noisy.bfloat16(), timesteps.to(device), words.to(device)).float()
        loss = (weight * (predicted - target_v) ** 2).mean()
        loss.backward()
        for target, source in zip(master.parameters(), working.parameters(), strict=True):
            target.grad = source.grad.float()
        nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spent / budget, args.lr)
        optimiser.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in master.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        step += 1
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        losses.append(loss.item())
        if step % 50 == 0:
            row = {"step": step, "seconds": round(spent), "loss": round(float(np.mean(losses[-50:])), 5)}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            log.info("%s", row)
        if spent - saved_at > 240 or spent >= budget:
            saved_at = spent
            state = {"master": master.state_dict(), "optimiser": optimiser.state_dict(), "average": average,
                     "step": step, "spent": spent}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--hours", type=float, default=2.0, help="time budget, checkpoints included")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--coarse", type=float, default=0.3, help="share of the budget spent first on half-size frames")
    parser.add_argument("--examples", type=int, default=24000)
    parser.add_argument("--compile", action="store_true", help="torch.compile: minutes to start, a third faster after")
    parser.add_argument("--init", action="store_true", help="start from the committed weights")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
