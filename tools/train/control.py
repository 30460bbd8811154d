"""Train the demo's ControlNet, outlines to scenes: `python run.py train control --hours 1 --out runs/control`.

The UNet and the text encoder stay as they are; the net starts as a copy of the UNet's encoder. Objects lie anywhere in
the frame, while captions name the nearest of the nine places, so where an object goes is learnt from the outline.
The budget counts this process's own time on the processor, so that it may run behind other work; it resumes from its
own checkpoint when started again with the same --out, and ends sooner with a smaller --hours.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.control import ControlNet, controlled, moved, outline
from ...demo.diffusion import corrupt_by_schedule
from ...demo.load import encode_prompt, load_plain
from ...demo.scenes import held_out, object_masks, render, sample_scene
from ...demo.vae import ideal_latent
from .denoiser import (
    EMA,
    OBJECT_WEIGHT,
    RENDER_SIZE,
    Masters,
    choose_attention,
    encode_captions,
    kept_examples,
    learning_rate,
    note,
    save_checkpoint,
)  # fmt: skip

log = logging.getLogger("train.control")
DROP_PROMPT = 0.2


def make_examples(seed: int, count: int) -> dict[str, np.ndarray]:
    """Latents (count, 4, 32, 32) and object masks (count, 32, 32), outlines as bits of (count, 256, 256), captions."""
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {"latents": [], "masks": [], "outlines": [], "captions": []}
    while len(found["captions"]) < count:
        scene = moved(sample_scene(rng, int(rng.integers(1, 4))), rng)
        if held_out(scene.caption):
            continue
        picture = torch.from_numpy(render(scene, RENDER_SIZE)).permute(2, 0, 1)[None]
        found["latents"].append(ideal_latent(picture)[0].half().numpy())
        found["masks"].append(object_masks(scene, 32).any(0))
        found["outlines"].append(np.packbits(outline(scene, RENDER_SIZE)))
        found["captions"].append(scene.caption)
    return {name: np.stack(values) if name != "captions" else np.array(values) for name, values in found.items()}


def hints(bits: np.ndarray, widths: Tensor) -> Tensor:
    """Packed outlines (B, bytes) -> the pictures that the net sees, (B, 3, 256, 256) in 0..1.

    widths (B,) 0, 1 or 2: lines of one pixel as an edge detector draws them, of two as they are, of four as a pen does.
    """
    drawn = np.unpackbits(bits, axis=-1).reshape(len(bits), 1, RENDER_SIZE, RENDER_SIZE)
    drawn = torch.from_numpy(drawn).float()
    thin = drawn * (1 - drawn.roll((1, 1), (2, 3)))
    thick = F.max_pool2d(drawn, 3, stride=1, padding=1)
    widths = widths.view(-1, 1, 1, 1)
    return torch.where(widths == 0, thin, torch.where(widths == 1, drawn, thick)).expand(-1, 3, -1, -1)


def fresh_control(unet: nn.Module) -> ControlNet:
    """A copy of the UNet's encoder that adds nothing yet."""
    net = ControlNet()
    missing = net.load_state_dict(unet.state_dict(), strict=False).missing_keys
    if unexpected := [name for name in missing if not name.startswith(("input_hint_block", "zero_convs", "middle_block_out"))]:
        raise RuntimeError(f"the UNet lacks {', '.join(unexpected)}")
    return net


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    examples = kept_examples(args.out / "examples.npz", lambda: make_examples(20261121, args.examples))
    latents, masks = torch.from_numpy(examples["latents"]), torch.from_numpy(examples["masks"])
    choose_attention()
    torch.manual_seed(0)
    unet, text, _ = load_plain()
    empty, contexts = encode_prompt(text, ""), encode_captions(text, examples["captions"]).half()
    net = fresh_control(unet)
    masters = Masters(net, args.lr)
    step, before, losses = 0, 0.0, []
    checkpoint = args.out / "last.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        masters.load(saved)
        step, before = saved["step"], saved["spent"]
        log.info("resumed at step %d, %.0f s spent", step, before)
    for module in (net, unet):
        module.to(torch.bfloat16)
    start, budget = time.process_time(), args.hours * 3600
    spent = saved_at = before
    generator = torch.Generator().manual_seed(step + 1)
    while spent < budget:
        masters.push()
        pick = torch.randint(len(latents), (args.batch,), generator=generator)
        x0, weight = latents[pick].float(), 1 + OBJECT_WEIGHT * masks[pick].float()[:, None]
        noise = torch.randn(x0.shape, generator=generator)
        strata = (torch.randperm(args.batch, generator=generator) + torch.rand(args.batch, generator=generator)) / args.batch
        noisy, timesteps, target = corrupt_by_schedule(x0, noise, strata)
        dropped = torch.rand(args.batch, 1, 1, generator=generator) < DROP_PROMPT
        context = torch.where(dropped, empty, contexts[pick].float()).bfloat16().clone()
        noisy = noisy.bfloat16()
        hint = hints(examples["outlines"][pick.numpy()], torch.randint(3, (args.batch,), generator=generator))
        residuals = net(noisy, hint.bfloat16(), timesteps, context)
        predicted = controlled(unet, noisy, timesteps, context, residuals)
        loss = (weight * (predicted.float() - target) ** 2).mean()
        loss.backward()
        masters.step(learning_rate(spent / budget, args.lr), min(EMA, (1 + step) / (10 + step)))
        step += 1
        losses.append(loss.item())
        spent = before + time.process_time() - start
        if step % 50 == 0:
            row = {"step": step, "seconds": round(spent), "loss": round(float(np.mean(losses[-50:])), 5)}
            note(log, args.out, row)
        if spent - saved_at > 120 or spent >= budget:
            saved_at = spent
            save_checkpoint({**masters.state(), "step": step, "spent": spent}, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/control"))
    parser.add_argument("--hours", type=float, default=1.0, help="budget of processor time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--examples", type=int, default=8000)
    parser.add_argument("--lr", type=float, default=7e-4)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())
