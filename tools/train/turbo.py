"""Distill the demo transformer: `python run.py train turbo --steps 8 --out runs/turbo8`, then
`python run.py train turbo --steps 4 --teacher runs/turbo8/last.pt --out runs/turbo4`.

What comes out is a LoRA with which a few steps at CFG 1 go where the teacher goes in more of them with guidance: on each
interval of the schedule the student learns the mean velocity of the teacher's path from the state that the student itself
arrived at (progressive distillation, Salimans and Ho, 2022, with guidance distilled too as in Meng et al., "On Distillation of
Guided Diffusion Models", 2023; on the student's own states as in imitation learning, Ross et al., 2011, so that its errors do
not add up). No pictures are needed, only captions, and none of the held-out ones.

Runs behind other work as the denoiser's trainer does: its budget is the process's own time, and it resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...demo.diffusion import STEPS, flow_sigmas
from ...demo.load import IN_MODEL, add_lora, encode_prompt, load_plain
from ...demo.mmdit import MMDiT
from ...demo.scenes import Scene, object_masks, training_scenes
from .denoiser import EMA, OBJECT_WEIGHT, choose_attention, learning_rate, note, save_checkpoint

log = logging.getLogger("train.turbo")
RANK = 24
GUIDANCE = 3.0  # of the teacher without a LoRA
SUBSTEPS = 2  # of the teacher in each interval
Denoise = Callable[[Tensor, float, Tensor], Tensor]  # x (B, 4, H, W), sigma, contexts (B, 77, 128) -> velocity


class LowRank(nn.Module):
    """What a LoRA adds to a weight (out, in): up @ down (Hu et al., "LoRA", 2021). It starts at nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, linear.in_features) * linear.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def with_lora(mmdit: MMDiT, state: dict[str, Tensor] | None = None) -> MMDiT:
    """A copy of a transformer of which every linear layer in a block has a low-rank addition, which alone is trained."""
    mmdit = copy.deepcopy(mmdit).requires_grad_(False)
    for module in mmdit.joint_blocks.modules():
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module))
    if state is not None:
        load_lora(mmdit, state)
    return mmdit


def lora_of(mmdit: MMDiT) -> dict[str, nn.Parameter]:
    """The low-rank additions by the names that ComfyUI's LoRA loaders take."""
    found = {}
    for name, module in mmdit.named_modules():
        if isinstance(module, LowRank):
            layer = IN_MODEL + name.removesuffix(".parametrizations.weight.0")
            found[f"{layer}.lora_up.weight"], found[f"{layer}.lora_down.weight"] = module.up, module.down
    return found


@torch.no_grad()
def load_lora(mmdit: MMDiT, state: dict[str, Tensor]) -> None:
    for name, parameter in lora_of(mmdit).items():
        parameter.copy_(state[name])


def velocity_of(mmdit: MMDiT, guidance: float = 1.0, empty: Tensor | None = None) -> Denoise:
    """The velocity of a transformer, guided away from the empty context where one is given; its products in bfloat16."""

    def velocity(x: Tensor, sigma: float, context: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if empty is None:
                return mmdit(x, torch.full((len(x),), sigma * STEPS), context).float()
            both = torch.cat([context, empty.expand_as(context)])
            told, untold = mmdit(torch.cat([x, x]), torch.full((2 * len(x),), sigma * STEPS), both).float().chunk(2)
        return untold + guidance * (told - untold)

    return velocity


@torch.no_grad()
def arrive(velocity: Denoise, x: Tensor, sigmas: list[float], context: Tensor) -> Tensor:
    """Where Euler's method gets from x along the sigmas."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x = x + (following - sigma) * velocity(x, sigma, context)
    return x


Lesson = tuple[Tensor, float, Tensor]  # state, sigma, the teacher's mean velocity


def lessons(student: Denoise, teacher: Denoise, x: Tensor, steps: int, context: Tensor) -> Iterator[Lesson]:
    """What the teacher does at every state of the student's run from noise x (B, 4, H, W)."""
    fine = flow_sigmas(steps * SUBSTEPS).tolist()
    for first in range(0, len(fine) - 1, SUBSTEPS):
        interval = fine[first : first + SUBSTEPS + 1]
        sigma, following = interval[0], interval[-1]
        yield x, sigma, (arrive(teacher, x, interval, context) - x) / (following - sigma)
        x = arrive(student, x, [sigma, following], context)


def weights_of(scenes: list[Scene], side: int) -> Tensor:
    """What an error counts in each cell, (B, 1, side, side)."""
    masks = [object_masks(s, side).any(0) for s in scenes]
    return 1 + OBJECT_WEIGHT * torch.from_numpy(np.stack(masks)).float()[:, None]


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    choose_attention()
    torch.manual_seed(0)
    base, text, _ = load_plain("mmdit")
    empty, checkpoint = encode_prompt(text, "").clone(), args.out / "last.pt"
    lora = torch.load(args.teacher)["average"] if args.teacher else None
    network = with_lora(base, lora)
    if lora:
        add_lora(base, lora)
    teacher = velocity_of(base) if lora else velocity_of(base, GUIDANCE, empty)
    student, trained = velocity_of(network), lora_of(network)
    average = {name: weight.detach().clone() for name, weight in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=0.0, betas=(0.9, 0.99))
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        load_lora(network, saved["weights"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        optimiser.load_state_dict(saved["optimiser"])
        log.info("resumed at step %d, %.0f s spent", step, spent)
    budget, clock, saved_at, losses = args.hours * 3600, time.process_time(), spent, []
    rng, generator = np.random.default_rng(step + 1), torch.Generator().manual_seed(step + 1)
    while spent < budget:
        side = args.side if spent < (1 - args.fine) * budget else 2 * args.side
        scenes = training_scenes(rng, args.batch)
        context = torch.cat([encode_prompt(text, scene.caption) for scene in scenes]).clone()
        noise = torch.randn(args.batch, 4, side, side, generator=generator)
        weight = weights_of(scenes, side)
        for x, sigma, target in lessons(student, teacher, noise, args.steps, context):
            loss = (weight * (student(x, sigma, context) - target) ** 2).mean()
            loss.backward()
            losses.append(loss.item())
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(spent / budget, args.lr)
            optimiser.step()
            optimiser.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - min(EMA, (1 + step) / (10 + step)))
            step += 1
        now = time.process_time()
        spent, clock = spent + now - clock, now
        if step % (4 * args.steps) == 0:
            row = {"step": step, "seconds": round(spent), "side": side, "loss": round(float(np.mean(losses)), 5)}
            note(log, args.out, row)
            losses.clear()
        if spent - saved_at > 240 or spent >= budget:
            saved_at, weights = spent, {name: weight.detach() for name, weight in trained.items()}
            state = {"weights": weights, "average": average, "optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            save_checkpoint(state, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="of the student at CFG 1")
    parser.add_argument("--teacher", type=Path, help="checkpoint of a LoRA for twice as many steps; else the guided base model")
    parser.add_argument("--out", type=Path, default=Path("runs/turbo8"))
    parser.add_argument("--hours", type=float, default=1.0, help="time budget, everything included")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--fine", type=float, default=0.2, help="share of the budget spent last on frames twice as wide")
    parser.add_argument("--lr", type=float, default=7e-4)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())
