"""The demo's weights: read for either host, and built into the plain modules."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .mmdit import MMDiT
from .text import TextEncoder
from .unet import SECOND, UNet
from .vae import VAE

WEIGHTS = Path(__file__).parent / "weights"
DENOISERS = {"unet": UNet, "mmdit": MMDiT}
# LoRAs that distil the MMDiT to so many steps at CFG 1, in a folder that ComfyUI's LoRA loaders are shown
TURBO_STEPS = {f"mmdit turbo {steps}": steps for steps in (8, 4)}
TURBO = {kind: f"loras/highlight_demo_turbo_{steps}_steps" for kind, steps in TURBO_STEPS.items()}
IN_MODEL = "diffusion_model."  # what those loaders call the network in a MODEL

# Of the model that nothing is tuned to, which is not part of a release: its UNet in two files, and its text encoder.
SECOND_UNET, SECOND_TEXT = ("second/encoder", "second/decoder"), "second/text"


def read_weights(part: str) -> dict[str, Tensor]:
    """State dict of "unet", "mmdit", "text", "vae", the control net, a LoRA or a file of the second model, in float32.

    Raises FileNotFoundError, saying what to do, when the file is missing.
    """
    path = WEIGHTS / f"{part}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; reinstall the pack, or make it with python run.py train export")
    return {name: weight.float() for name, weight in load_file(path).items()}


@overload
def load_plain(kind: Literal["unet"] = "unet") -> tuple[UNet, TextEncoder, VAE]: ...


@overload
def load_plain(kind: Literal["mmdit", "mmdit turbo 8", "mmdit turbo 4"]) -> tuple[MMDiT, TextEncoder, VAE]: ...


@overload
def load_plain(kind: str) -> tuple[UNet | MMDiT, TextEncoder, VAE]: ...


def load_plain(kind: str = "unet") -> tuple[UNet | MMDiT, TextEncoder, VAE]:
    """The denoiser of this kind, its text encoder and the VAE in plain torch, ready for inference. Besides `DENOISERS` there
    are those of `TURBO`, and "second", a UNet of another layout that constants are judged on and never tuned to."""
    lora = TURBO.get(kind)
    if kind == "second":
        denoiser, parts, text = UNet(SECOND), SECOND_UNET, SECOND_TEXT
    else:
        family = "mmdit" if lora else kind
        denoiser, parts, text = DENOISERS[family](), (family,), "text"
    modules = denoiser, TextEncoder(), VAE()
    for module, files in zip(modules, (parts, (text,), ("vae",)), strict=True):
        module.load_state_dict({name: weight for part in files for name, weight in read_weights(part).items()})
        module.eval().requires_grad_(False)
    if lora:
        add_lora(denoiser, read_weights(lora))
    return modules


@torch.no_grad()
def add_lora(network: nn.Module, lora: dict[str, Tensor]) -> None:
    """Add a LoRA, in the format of ComfyUI's loaders and without alphas, to the weights of a network."""
    for name, up in lora.items():
        if name.endswith(".lora_up.weight"):
            layer = name.removesuffix(".lora_up.weight")
            network.get_parameter(f"{layer.removeprefix(IN_MODEL)}.weight").add_(up @ lora[f"{layer}.lora_down.weight"])


def encode_prompt(text: TextEncoder, prompt: str) -> Tensor:
    """A prompt in the scenes' words -> context (1, 77, 128)."""
    from .text import tokenize

    with torch.inference_mode():
        return text(tokenize(prompt)[None])
