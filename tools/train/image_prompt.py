"""Train the demo's image prompt: `python run.py train image_prompt --minutes 80 --out runs/image`.

First the vision encoder learns to see: what lies in each patch, and the answers to questions about the scene, as texts had
to. Then the UNet and its text encoder, which stay as they are, teach: at each cross-attention, what the picture's tokens
add to the empty prompt is to be what the scene's caption would have brought there. So the UNet runs without gradients, and
there are sixteen targets for every place of the frame instead of one picture's noise. A black picture, which IPAdapter_plus
takes for the negative prompt, is to add nothing.

The budget counts this process's own time on the processor; it resumes from its own checkpoint.
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

from ...demo.diffusion import corrupt_by_schedule
from ...demo.image_prompt import (
    ADAPTER,
    CONFIG,
    IMAGE_SIZE,
    PATCH,
    VISION,
    Adapter,
    VisionEncoder,
    attend,
    pixels,
    places,
    queries,
)
from ...demo.layout import CLASSES, TextReader, answers
from ...demo.load import encode_prompt, load_plain, read_weights
from ...demo.scenes import render, training_scenes
from ...demo.unet import UNet
from ...demo.vae import ideal_latent
from .denoiser import RENDER_SIZE, choose_attention, encode_captions, kept_examples, learning_rate, note, save_checkpoint

log = logging.getLogger("train.image_prompt")
BLACK = 0.1  # share of black pictures
SEEING_FIRST = 0.1  # share of the budget in which the encoder only learns to see
SEEING_WEIGHT = 0.1  # after that


def make_examples(seed: int, count: int) -> dict[str, np.ndarray]:
    """Latents (count, 4, 32, 32), pictures uint8 (count, 224, 224, 3), answers and captions."""
    found: dict[str, list] = {"latents": [], "pictures": [], "answers": [], "captions": []}
    for scene in training_scenes(np.random.default_rng(seed), count):
        picture = torch.from_numpy(render(scene, RENDER_SIZE)).permute(2, 0, 1)[None]
        small = F.interpolate(picture, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        found["latents"].append(ideal_latent(picture)[0].half().numpy())
        found["pictures"].append((255 * small[0].movedim(0, -1)).clip(0, 255).round().byte().numpy())
        found["answers"].append(answers(scene))
        found["captions"].append(scene.caption)
    return {name: np.stack(values) for name, values in found.items()}


def whiten(embedding: nn.Conv2d, pictures: Tensor, count: int = 400) -> None:
    """Let the embedding of patches begin as their principal components, all of one size.

    Random weights see little but a patch's mean colour, which is most of what sets patches apart; of shapes an encoder then
    learns nothing for thousands of steps.
    """
    patches = F.unfold(pixels(pictures[:count].float() / 255), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    _, sizes, components = torch.pca_lowrank(patches, embedding.out_channels)
    scale = len(patches) ** 0.5 / sizes.clamp_min(1e-2 * sizes[0])
    embedding.weight.data = (components * scale).T.reshape(embedding.weight.shape).contiguous()


class Student(nn.Module):
    """What is trained, and the head that training alone uses."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.vision, self.adapter = VisionEncoder(), Adapter(unet)
        self.reader = TextReader(unet.config.context_dim)
        self.patches = nn.Linear(CONFIG.hidden_size, sum(CLASSES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the encoder and tokens for the UNet."""
        hidden = self.vision(pixels(pictures.float() / 255))
        return hidden, self.adapter(hidden)

    def unseen(self, hidden: Tensor, tokens: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of what lies at the nine places, told by their patches, and of the answers, in nats."""
        lies = [
            F.cross_entropy(part.transpose(1, 2), truth[:, : hidden.shape[1] - 1, i].long())
            for i, part in enumerate(self.patches(hidden[:, 1:]).split(CLASSES, -1))
        ]
        asked = [F.cross_entropy(part, truth[..., i].long()) for i, part in enumerate(self.reader(tokens))]
        return torch.stack(lies).mean(), torch.stack(asked).mean()


class Teacher:
    """The UNet, and what arrives at its cross-attentions."""

    def __init__(self, unet: UNet):
        self.unet, self.places, self.seen = unet, places(unet), {}
        for number, place in enumerate(self.places):
            place.register_forward_pre_hook(lambda _, args, number=number: self.seen.update({number: args[0]}))

    @torch.no_grad()
    def lesson(self, noisy: Tensor, timesteps: Tensor, context: Tensor, empty: Tensor) -> list[tuple[Tensor, Tensor]]:
        """At each place its queries, and what the caption brings there beyond the empty prompt."""
        self.unet(noisy, timesteps, context)
        found = []
        for number, place in enumerate(self.places):
            q = queries(place, self.seen[number])
            said, silent = (attend(q, place.to_k(c), place.to_v(c)) for c in (context, empty.expand_as(context)))
            found.append((q.float(), (said - silent).float()))
        return found


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    examples = kept_examples(args.out / "examples.npz", lambda: make_examples(20261122, args.examples))
    latents, pictures, truth = (torch.from_numpy(examples[name]) for name in ("latents", "pictures", "answers"))
    choose_attention()
    unet, text, _ = load_plain()
    empty, contexts = encode_prompt(text, "").bfloat16(), encode_captions(text, examples["captions"]).bfloat16()
    torch.manual_seed(0)
    student = Student(unet)
    teacher = Teacher(unet.to(torch.bfloat16))
    optimiser = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    step, before, rows, checkpoint = 0, 0.0, [], args.out / "last.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        step, before = saved["step"], saved["spent"]
        torch.manual_seed(step)
        log.info("resumed at step %d, %.0f s spent", step, before)
    elif args.init:
        student.vision.load_state_dict(read_weights(VISION))
        student.adapter.load_state_dict(read_weights(ADAPTER))
    else:
        whiten(student.vision.vision_model.embeddings.patch_embedding, pictures)
    start, budget = time.process_time(), 60 * args.minutes
    spent = saved_at = before
    while spent < budget:
        first = spent < SEEING_FIRST * budget and not args.init
        pick = torch.randint(len(latents), (args.batch * (16 if first else 1),))
        black = torch.rand(len(pick)) < (0 if first else BLACK)
        hidden, tokens = student(torch.where(black.view(-1, 1, 1, 1), 0, pictures[pick]))
        lies, asked = student.unseen(hidden[~black], tokens[~black], truth[pick][~black])
        taught = torch.zeros(())
        if not first:
            strata = (torch.randperm(len(pick)) + torch.rand(len(pick))) / len(pick)
            x0 = latents[pick].float()
            noisy, timesteps, _ = corrupt_by_schedule(x0, torch.randn_like(x0), strata)
            context = torch.where(black.view(-1, 1, 1), empty, contexts[pick].clone())
            taught = distance(student.adapter, teacher.lesson(noisy.bfloat16(), timesteps, context, empty), tokens)
        loss = taught + (1 if first else SEEING_WEIGHT) * (lies + asked)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spent / budget, args.lr)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        step += 1
        rows.append((lies.item(), asked.item(), taught.item()))
        spent = before + time.process_time() - start
        if step % 50 == 0:
            means = dict(zip(("patches", "questions", "attention"), np.mean(rows[-50:], 0).round(4).tolist(), strict=True))
            row = {"step": step, "seconds": round(spent), **means}
            note(log, args.out, row)
        if spent - saved_at > 120 or spent >= budget:
            saved_at = spent
            state = {"student": student.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            save_checkpoint(state, checkpoint)


def distance(adapter: Adapter, lesson: list[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor:
    """Error of what the tokens add, relative to what sets captions apart, mean over the places; scalar.

    Relative to the variance over the batch: most of what captions bring they have in common, and that alone is no scene.
    """
    errors = []
    for place, (q, target) in enumerate(lesson):
        error = (adapter.added(place, q, tokens) - target).square().mean()
        errors.append(error / (target - target.mean((0, 1))).square().mean().clamp_min(1e-6))
    return torch.stack(errors).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/image"))
    parser.add_argument("--minutes", type=float, default=80.0, help="budget of processor time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--init", action="store_true", help="start from the bundled encoder and adapter, after another UNet")
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1e-3)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())
