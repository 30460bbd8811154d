"""The demo's weights: read for either host, and built into the plain modules."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .text import TextEncoder
from .unet import UNet
from .vae import VAE

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("unet", "text", "vae")


def read_weights(part: str) -> dict[str, Tensor]:
    """State dict of "unet", "text" or "vae", in float32.

    Raises FileNotFoundError, saying what to do, when the file is missing.
    """
    path = WEIGHTS / f"{part}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; reinstall the pack, or make it with python -m demo.export")
    return {name: weight.float() for name, weight in load_file(path).items()}


def load_plain() -> tuple[UNet, TextEncoder, VAE]:
    """The three modules in plain torch, ready for inference."""
    modules = UNet(), TextEncoder(), VAE()
    for module, part in zip(modules, PARTS, strict=True):
        module.load_state_dict(read_weights(part))
        module.eval().requires_grad_(False)
    return modules


def encode_prompt(text: TextEncoder, prompt: str) -> Tensor:
    """A prompt in the scenes' words -> context (1, 77, 128)."""
    from .text import tokenize

    with torch.inference_mode():
        return text(tokenize(prompt)[None])
