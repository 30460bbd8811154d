"""Train a demo model: `python run.py train denoiser --hours 2 --out runs/unet`, or with `--model mmdit` or `second`.

The UNets and their text encoders are trained together, the MMDiT beside the first UNet's text encoder, frozen.

Runs on a GPU when there is one, else on the CPU in bfloat16 with float32 master weights. The learning rate follows
the share of the time budget that is spent, so a run ends when it should on any machine; on a CPU the budget is that of the
process's own time on the processor, all threads together, so that it may run behind other work. It resumes from its own
checkpoint when started again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...demo.diffusion import corrupt_by_flow, corrupt_by_schedule
from ...demo.layout import LayoutHeads, answers, layout, teach_text
from ...demo.load import read_weights
from ...demo.mmdit import FinalLayer, JointBlock, MMDiT, StreamBlock
from ...demo.scenes import object_masks, render, training_scenes
from ...demo.text import TextEncoder, tokenize
from ...demo.unet import SECOND, CrossAttention, ResBlock, SpatialTransformer, UNet, UNetConfig
from ...demo.vae import PIXELS, ideal_latent

log = logging.getLogger("train.denoiser")
RENDER_SIZE = 256
OBJECT_WEIGHT = 4.0  # extra loss weight inside objects, which are a small part of the frame
LAYOUT_WEIGHT = 0.1  # of the layout loss; falls to nothing over the run
DROP_PROMPT = 0.1
EMA = 0.998
Frame = tuple[int, int]  # height and width of a latent


@dataclass(frozen=True)
class Examples:
    """Latents (B, 4, h, w), object weights (B, 1, h, w), layouts (B, 2, h', w'), token ids (B, 77)."""

    latents: Tensor
    weights: Tensor
    layouts: Tensor
    tokens: Tensor


def draw_examples(rng: np.random.Generator, frame: Frame, count: int) -> Examples:
    """Fresh scenes in a frame, none of them held out."""
    scenes = training_scenes(rng, count)
    pictures = np.stack([render(scene, (PIXELS * frame[0], PIXELS * frame[1])) for scene in scenes])
    masks = np.stack([object_masks(scene, frame).any(0) for scene in scenes])
    return Examples(
        ideal_latent(torch.from_numpy(pictures).permute(0, 3, 1, 2)),
        torch.from_numpy(masks)[:, None].float(),
        torch.from_numpy(np.stack([layout(scene, frame) for scene in scenes])),
        torch.stack([tokenize(scene.caption) for scene in scenes]),
    )


def kept_examples(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Make a training set once and keep it."""
    if not path.exists():
        made: dict[str, Any] = {**make()}  # of arrays, which none of its own settings is
        np.savez(path, **made)
    data = np.load(path)
    return {name: data[name] for name in data.files}


def fresh_unet(config: UNetConfig | None = None) -> UNet:
    """A UNet whose residual branches start silent, as in the original."""
    unet = UNet(config)
    for module in unet.modules():
        if isinstance(module, ResBlock):
            _silence(module.out_layers[-1])
        if isinstance(module, SpatialTransformer):
            _silence(module.proj_out)
    _silence(unet.out[-1])
    return unet


def _silence(layer: nn.Module) -> None:
    """Let a layer with a weight start at nothing."""
    nn.init.zeros_(layer.get_parameter("weight"))


def fresh_mmdit() -> MMDiT:
    """An MMDiT whose modulations start at nothing ("adaLN-Zero", Peebles and Xie, 2023)."""
    mmdit = MMDiT()
    for module in mmdit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in mmdit.modules():
        if isinstance(module, StreamBlock | FinalLayer):
            _silence(module.adaLN_modulation[-1])
    _silence(mmdit.final_layer.linear)
    return mmdit


FRESH: dict[str, Callable[[], UNet | MMDiT]] = {
    "unet": fresh_unet, "mmdit": fresh_mmdit, "second": lambda: fresh_unet(SECOND),
}  # fmt: skip


class Pair(nn.Module):
    """A denoiser and its text encoder, and the heads that training alone uses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.text = kind, TextEncoder()
        self.add_module(kind, FRESH[kind]())
        self.heads = LayoutHeads(self.denoiser)
        if kind != "mmdit":
            nn.init.normal_(self.text.token_embedding.weight, std=0.5)
            nn.init.normal_(self.text.position_embedding.weight, std=0.1)
        else:
            self.text.load_state_dict(read_weights("text"))
            self.text.requires_grad_(False)

    @property
    def denoiser(self) -> UNet | MMDiT:
        return getattr(self, self.kind)

    def forward(self, x: Tensor, timesteps: Tensor, tokens: Tensor, layouts: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoiser(x, timesteps, self.text(tokens)), self.heads(layouts)


class Masters:
    """Float32 weights behind a model in lower precision, their running average, and the optimisers that move them.

    Matrices (a convolution counts as one, output channels by the rest) go by Muon (Jordan et al., 2024), all else
    by AdamW.
    """

    def __init__(self, model: nn.Module, lr: float):
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().float().flatten(1) if self._matrix(name, p) else p.detach().float().clone()
                        for name, p in self.trained.items()}  # fmt: skip
        self.average = {name: weight.clone() for name, weight in self.weights.items()}
        matrices = [w for name, w in self.weights.items() if self._matrix(name, w)]
        others = [w for name, w in self.weights.items() if not self._matrix(name, w)]
        self.optimisers = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.99)),
        )

    @staticmethod
    def _matrix(name: str, weight: Tensor) -> bool:
        ends = ("embed", ".out.", ".input_blocks.0.", "heads.", "adaLN", "final_layer")
        return weight.ndim >= 2 and not any(end in name for end in ends)

    @torch.no_grad()
    def push(self) -> None:
        """Give the model the present weights and clear its gradients."""
        for name, parameter in self.trained.items():
            parameter.copy_(self.weights[name].view(parameter.shape))
            parameter.grad = None

    def step(self, lr: float, decay: float) -> None:
        """Move the weights by the model's gradients, then the average towards them."""
        for name, parameter in self.trained.items():
            assert parameter.grad is not None, f"{name} took no part in the loss"
            self.weights[name].grad = parameter.grad.float().view(self.weights[name].shape)
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)

    def state(self) -> dict:
        shaped = {name: weight.view(self.trained[name].shape) for name, weight in self.average.items()}
        return {"weights": self.weights, "average": shaped, "optimisers": [o.state_dict() for o in self.optimisers]}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
            self.average[name].copy_(state["average"][name].view(weight.shape))
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by matrix products."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v


def choose_attention() -> None:
    """Let the models attend by what trains faster on this CPU.

    That is torch's fused kernel where the processor multiplies matrices of bfloat16 by itself (AMX: half the time for
    4096 tokens), and matrix products elsewhere (two to four times faster).
    """
    if not torch.cpu._is_amx_tile_supported():
        CrossAttention.attend = JointBlock.attend = staticmethod(attend_explicitly)


def learning_rate(share: float, peak: float) -> float:
    """Warm up over the first 1% of the budget, then a cosine to zero."""
    return peak * min(1.0, share / 0.01) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def encode_captions(text: nn.Module, captions: np.ndarray) -> Tensor:
    """Contexts (count, 77, 128) of many captions."""
    with torch.inference_mode():
        return torch.cat([text(torch.stack([tokenize(str(c)) for c in part]))
                          for part in np.array_split(captions, 1 + len(captions) // 64)])  # fmt: skip


def note(log: logging.Logger, folder: Path, row: dict) -> None:
    """Tell how training goes, and add it to the folder's log."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    log.info("%s", row)


def save_checkpoint(state: dict, path: Path) -> None:
    """Never half of one, whenever the process ends."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def teach(text: TextEncoder, count: int, seconds: float) -> None:
    """Teach a text encoder what the captions of so many scenes say."""
    scenes = training_scenes(np.random.default_rng(0), count)
    tokens = torch.stack([tokenize(scene.caption) for scene in scenes])
    teach_text(text, tokens, torch.from_numpy(np.stack([answers(scene) for scene in scenes])), seconds)


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    empty = tokenize("")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    read_clock = time.process_time if device.type == "cpu" else time.monotonic
    clock = read_clock()
    if device.type == "cpu":
        choose_attention()
    torch.manual_seed(0)
    model = Pair(args.model).to(device)
    checkpoint = args.out / "last.pt"
    saved = torch.load(checkpoint, map_location=device) if checkpoint.exists() else None
    if args.init:
        model.text.load_state_dict(read_weights("text"))  # it is the other models' too, so no checkpoint has it
        model.text.requires_grad_(False)
    if saved is None:
        if args.init:
            model.denoiser.load_state_dict(read_weights(args.model))
        elif args.text and args.model != "mmdit":
            teach(model.text, args.captions, args.text * args.hours * 3600)
    masters = Masters(model, args.lr)
    model.to(torch.bfloat16)
    step, spent = 0, 0.0
    if saved:
        masters.load(saved)
        step, spent = saved["step"], saved["spent"]
        log.info("resumed at step %d, %.0f s spent", step, spent)
    predict = torch.compile(model, dynamic=True) if args.compile else model
    corrupt = corrupt_by_flow if args.model == "mmdit" else corrupt_by_schedule
    budget, saved_at, losses = args.hours * 3600, spent, []
    generator, rng = torch.Generator().manual_seed(step + 1), np.random.default_rng(step + 1)
    while spent < budget:
        masters.push()
        share = spent / budget
        frame = args.frames[rng.integers(len(args.frames))]
        frame = frame if rng.integers(2) else frame[::-1]
        if share < args.coarse:
            frame = (frame[0] // 2, frame[1] // 2)
        batch = max(1, args.batch * 32**2 // math.prod(frame))
        examples = draw_examples(rng, frame, batch)
        noise = torch.randn(examples.latents.shape, generator=generator)
        strata = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
        noisy, timesteps, target = (part.to(device) for part in corrupt(examples.latents, noise, strata))
        words = torch.where(torch.rand(batch, 1, generator=generator) < DROP_PROMPT, empty, examples.tokens)
        weight = (1 + OBJECT_WEIGHT * examples.weights).to(device)
        predicted, misplaced = predict(noisy.bfloat16(), timesteps, words.to(device), examples.layouts.to(device))
        loss = (weight * (predicted.float() - target) ** 2).mean()
        (loss + LAYOUT_WEIGHT * (1 - share) * misplaced).backward()
        masters.step(learning_rate(share, args.lr), min(EMA, (1 + step) / (10 + step)))
        step += 1
        now = read_clock()
        spent, clock = spent + now - clock, now
        losses.append((loss.item(), misplaced.item()))
        if step % 50 == 0:
            mean, layout_mean = np.mean(losses[-50:], 0)
            row = {"step": step, "seconds": round(spent), "loss": round(float(mean), 5), "layout": round(float(layout_mean), 5)}
            note(log, args.out, row)
        if spent - saved_at > 240 or spent >= budget:
            saved_at = spent
            save_checkpoint({**masters.state(), "step": step, "spent": spent}, checkpoint)


def frame_of(text: str) -> Frame:
    """Height and width of "64x96", in latent cells."""
    height, width = (int(side) for side in text.split("x"))
    if height % 16 or width % 16:
        raise ValueError(f"{text}: sides of a frame are multiples of 16 cells")
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(FRESH), default="unet")
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--hours", type=float, default=2.0, help="time budget, everything included")
    parser.add_argument("--frames", type=frame_of, nargs="+", default=[(32, 32)],
                        help="of the latents, such as 64x96, each as often as named, in both orientations")  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, help="pictures of 32x32 cells in a step; of larger ones fewer")
    parser.add_argument("--coarse", type=float, default=0.4, help="share of the budget spent first on half-size frames")
    parser.add_argument("--text", type=float, default=0.03, help="share of the budget that teaches the text encoder first")
    parser.add_argument("--captions", type=int, default=24000, help="that teach the text encoder")
    parser.add_argument("--compile", action="store_true", help="torch.compile: worth it on a GPU")
    parser.add_argument("--init", action="store_true", help="go on from the committed weights, the text encoder as it is")
    parser.add_argument("--lr", type=float, default=1e-3)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())
