"""The demo's weights: read for either host, and built into the plain modules."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

import torch
from safetensors.torch import load_file
from torch import Tensor

from .mmdit import MMDiT
from .text import TextEncoder
from .unet import SECOND, UNet
from .vae import VAE

WEIGHTS = Path(__file__).parent / "weights"
DENOISERS = {"unet": UNet, "mmdit": MMDiT}


# Of the model that nothing is tuned to, which is not part of a release: its UNet in two files, and its text encoder.
SECOND_UNET, SECOND_TEXT = ("second/encoder", "second/decoder"), "second/text"


def read_weights(part: str) -> dict[str, Tensor]:
    """State dict of "unet", "mmdit", "text", "vae", the control net or a file of the second model, in float32.

    Raises FileNotFoundError, saying what to do, when the file is missing.
    """
    path = WEIGHTS / f"{part}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; reinstall the pack, or make it with python run.py train export")
    return {name: weight.float() for name, weight in load_file(path).items()}


@overload
def load_plain(kind: Literal["unet"] = "unet") -> tuple[UNet, TextEncoder, VAE]: ...


@overload
def load_plain(kind: Literal["mmdit"]) -> tuple[MMDiT, TextEncoder, VAE]: ...


@overload
def load_plain(kind: str) -> tuple[UNet | MMDiT, TextEncoder, VAE]: ...


def load_plain(kind: str = "unet") -> tuple[UNet | MMDiT, TextEncoder, VAE]:
    """The denoiser of this kind, its text encoder and the VAE in plain torch, ready for inference. Besides `DENOISERS` there is
    "second", a UNet of another layout that constants are judged on and never tuned to."""
    if kind == "second":
        denoiser, parts, text = UNet(SECOND), SECOND_UNET, SECOND_TEXT
    else:
        denoiser, parts, text = DENOISERS[kind](), (kind,), "text"
    modules = denoiser, TextEncoder(), VAE()
    for module, files in zip(modules, (parts, (text,), ("vae",)), strict=True):
        module.load_state_dict({name: weight for part in files for name, weight in read_weights(part).items()})
        module.eval().requires_grad_(False)
    return modules


def encode_prompt(text: TextEncoder, prompt: str) -> Tensor:
    """A prompt in the scenes' words -> context (1, 77, 128)."""
    from .text import tokenize

    with torch.inference_mode():
        return text(tokenize(prompt)[None])
