"""What training asks for beside the noise: say from the caption, and from the UNet's features, what lies where.

A text encoder and a UNet that learn from the denoising loss alone need a GPU's worth of steps to find out that words
name places. Stable Diffusion starts from a text encoder that was taught beforehand; `teach_text` does that here in
minutes. `LayoutHeads` aligns hidden features with the true scene, in the manner of Yu et al., "Representation
Alignment for Generation" (REPA), 2024. Both heads are thrown away after training, and neither looks at an attention
map: where the model attends, which is what this pack is about, is left to the model.
"""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mmdit import MMDiT
from .scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene, object_masks
from .text import TextEncoder
from .unet import UNet, width_of

log = logging.getLogger("demo.layout")
KINDS = (("shape", SHAPES), ("colour", tuple(COLOURS)))
CLASSES = tuple(1 + len(names) for _, names in KINDS)  # class 0: no object here
SIDE = 16  # cells of a layout along the shorter side of the frame
# Stages whose features are aligned: a UNet's at 1/8, 1/4 and 1/2 of the latent's side, two middle blocks of an MMDiT.
ALIGNED = {"UNet": ("output_blocks.1", "output_blocks.4", "output_blocks.7"), "MMDiT": ("joint_blocks.2", "joint_blocks.4")}
OBJECT_WEIGHT = 5.0  # of cells with an object, which are few


def layout(scene: Scene, frame: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Class of what lies at each cell, uint8 (2, h, w) for a frame (height, width) of any unit: shape and colour, 0 where there
    is no object."""
    height, width = (round(SIDE * side / min(frame)) for side in frame)
    found = np.zeros((len(KINDS), height, width), dtype=np.uint8)
    for thing, mask in zip(scene.things, object_masks(scene, (height, width)), strict=True):
        for row, (kind, names) in zip(found, KINDS, strict=True):
            row[mask] = 1 + names.index(getattr(thing, kind))
    return found


class LayoutHeads(nn.Module):
    """Per-cell classifiers on a denoiser's features. Call after its forward, on the same batch."""

    def __init__(self, denoiser: UNet | MMDiT):
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self.names = ALIGNED[type(denoiser).__name__]
        self.heads = nn.ModuleList()
        for name in self.names:
            stage = denoiser.get_submodule(name)
            channels = denoiser.config.width if isinstance(denoiser, MMDiT) else width_of(stage)
            self.heads.append(nn.Sequential(nn.Conv2d(channels, 128, 1), nn.SiLU(), nn.Conv2d(128, sum(CLASSES), 1)))
            stage.register_forward_hook(lambda module, inputs, output, name=name: self.features.update({name: output}))

    def _map(self, name: str, aspect: float) -> Tensor:
        """Features (B, C, h, w) of a stage; a joint block's are the image tokens of a frame with this height for its width."""
        features = self.features[name]
        if isinstance(features, tuple):
            tokens = features[1].transpose(1, 2)
            features = tokens.unflatten(-1, (round(math.sqrt(tokens.shape[-1] * aspect)), -1))
        return features

    def forward(self, layouts: Tensor) -> Tensor:
        """Mean cross-entropy in nats, for layouts (B, 2, h, w) uint8; scalar."""
        shares = torch.cat([F.one_hot(layouts[:, i].long(), n) for i, n in enumerate(CLASSES)], dim=-1)
        shares = shares.permute(0, 3, 1, 2).float()
        losses = []
        for name, head in zip(self.names, self.heads, strict=True):
            logits = head(self._map(name, layouts.shape[-2] / layouts.shape[-1])).float()
            truth = F.adaptive_avg_pool2d(shares, logits.shape[-2:])
            weight = 1 + OBJECT_WEIGHT * (1 - truth[:, :1])
            for part, target in zip(logits.split(CLASSES, 1), truth.split(CLASSES, 1), strict=True):
                losses.append(-(weight * target * part.log_softmax(1)).sum(1).sum() / weight.sum())
        return torch.stack(losses).mean()


QUESTIONS = (*POSITIONS, "frame", "background")
ANSWERS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "background": tuple(BACKGROUNDS),
           "texture": TEXTURES}  # fmt: skip


def answers(scene: Scene) -> np.ndarray:
    """For each question the class of each answer, 0 for "does not apply": uint8 (questions, answers)."""
    found = np.zeros((len(QUESTIONS), len(ANSWERS)), dtype=np.uint8)
    for thing in scene.things:
        place = "frame" if thing.size == "giant" else thing.position
        for column, name in enumerate(("shape", "colour", "size")):
            if (value := getattr(thing, name)) in ANSWERS[name]:
                found[QUESTIONS.index(place), column] = 1 + ANSWERS[name].index(value)
    for name in ("background", "texture"):
        found[-1, list(ANSWERS).index(name)] = 1 + ANSWERS[name].index(getattr(scene, name))
    return found


class TextReader(nn.Module):
    """Answers questions about a scene from its encoded caption by one attention layer."""

    def __init__(self, width: int):
        super().__init__()
        self.questions = nn.Parameter(torch.randn(len(QUESTIONS), width))
        self.to_k, self.to_v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(names)) for names in ANSWERS.values())

    def forward(self, context: Tensor) -> list[Tensor]:
        """Logits (B, classes, questions) for each kind of answer, from context (B, tokens, width)."""
        weight = (self.questions @ self.to_k(context).transpose(1, 2) / context.shape[-1] ** 0.5).softmax(-1)
        told = weight @ self.to_v(context)
        return [head(told).transpose(1, 2) for head in self.heads]


def teach_text(text: TextEncoder, tokens: Tensor, truth: Tensor, seconds: float, batch: int = 192) -> None:
    """Train `text` for `seconds` to carry what a caption says, on token ids (N, 77) and `answers` (N, Q, A)."""
    longest = int((tokens != tokens[:, -1:]).sum(1).max()) + 1  # causal, so the padding behind changes nothing
    device = next(text.parameters()).device
    reader = TextReader(text.config.hidden_size).to(device)
    parameters = [*text.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 50) * (1 - share)
        pick = torch.randint(len(tokens), (batch,))
        context = text(tokens[pick, :longest].to(device))
        target = truth[pick].long().to(device)
        logits = reader(context)
        loss = torch.stack([F.cross_entropy(part, target[..., i]) for i, part in enumerate(logits)]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 50 == 0:
            asked = target > 0
            right = torch.stack([part.argmax(1) for part in logits], -1) == target
            log.info("text step %d: loss %.4f, %.1f%% of answers right", step, loss, 100 * right[asked].float().mean())
        step += 1
