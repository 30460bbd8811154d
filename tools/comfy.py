"""The real ComfyUI in this process, for measurements: nodes are applied and models sampled without a server between."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def find_core() -> None:
    """Make ComfyUI's modules importable from COMFYUI_PATH, without any node; on the CPU where there is no GPU.

    Raises SystemExit where COMFYUI_PATH is not set.
    """
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise SystemExit("the bench runs on the real ComfyUI; set COMFYUI_PATH to a checkout")
    sys.path.insert(0, str(Path(path)))
    from comfy import cli_args

    cli_args.args.cpu = not torch.cuda.is_available()  # before anything imports comfy.model_management
    cli_args.args.database_url = "sqlite:///:memory:"
    logging.getLogger().setLevel(logging.ERROR)


@cache
def boot() -> None:
    """Import ComfyUI from COMFYUI_PATH with its own and all installed nodes; once a process.

    Raises SystemExit where COMFYUI_PATH is not set.
    """
    find_core()
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_api_nodes=False))


def node(kind: str, /, **inputs: Any) -> tuple:
    """The outputs of a node, run once. Raises KeyError for a node that is not installed."""
    import nodes

    made = nodes.NODE_CLASS_MAPPINGS[kind]
    if hasattr(made, "define_schema"):  # V3
        output = made.execute(**inputs)
        return getattr(output, "args", output)
    return getattr(made(), made.FUNCTION)(**inputs)


def installed(kind: str) -> bool:
    import nodes

    return kind in nodes.NODE_CLASS_MAPPINGS


@dataclass(frozen=True)
class Sampling:
    """How to sample: the KSampler's settings."""

    sampler: str = "euler"
    steps: int = 30
    cfg: float = 3.0
    scheduler: str = "normal"


class Subject:
    """A MODEL with its CLIP and VAE, and the latent size it is sampled at.

    unet, transformer: whether it is a UNet of Stable Diffusion's layout, or an SD3. flow: whether sigma is a flow's time.
    sampling: how it is to be sampled, where that comes with it.
    """

    sampling: Sampling | None = None

    def __init__(self, model: Any, clip: Any, vae: Any, size: int):
        self.model, self.clip, self.vae, self.size = model, clip, vae, size
        from ..host.run import time_axis_of

        network = model.get_model_object("diffusion_model")
        self.unet, self.transformer = hasattr(network, "input_blocks"), hasattr(network, "joint_blocks")
        self.flow = time_axis_of(model).is_flow
        self._conds: dict[str, Any] = {}

    @classmethod
    def demo(cls, kind: str = "unet", size: int = 32) -> Subject:
        """One of the demo models, or "second", the one that nothing is tuned to."""
        from ..host.demo import load_demo

        return cls(*load_demo(kind), size=size)

    @classmethod
    def checkpoint(cls, path: Path, size: int) -> Subject:
        """Any checkpoint ComfyUI can load. `size` is the latent's side."""
        import comfy.sd

        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(path))[:3]
        if clip is None or vae is None:
            raise ValueError(
                f"{path} has no text encoder or no VAE; give it as --diffusion-model, with --text-encoders and --vae"
            )
        return cls(model, clip, vae, size)

    @classmethod
    def files(cls, diffusion: Path, encoders: list[Path], kind: str, vae: Path, size: int) -> Subject:
        """A diffusion model, its text encoders of ComfyUI's CLIP type `kind`, and a VAE, each from a file of its own. Raises
        ValueError for a type that there is not."""
        import comfy.sd
        import comfy.utils

        types = {own.name.lower(): own for own in comfy.sd.CLIPType}
        if kind.lower() not in types:
            raise ValueError(f'the CLIP type is "{kind}"; this ComfyUI has {", ".join(types)}')
        clip = comfy.sd.load_clip([str(path) for path in encoders], clip_type=types[kind.lower()])
        decoder = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae)))
        return cls(comfy.sd.load_diffusion_model(str(diffusion)), clip, decoder, size)

    @torch.no_grad()
    def cond(self, prompt: str) -> Any:
        if prompt not in self._conds:
            self._conds[prompt] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        return self._conds[prompt]

    @torch.no_grad()
    def sample(self, model: Any, prompt: str, seed: int, sampling: Sampling, negative: str = "") -> tuple[Tensor, float]:
        """Latent (1, C, h, w) and the seconds the sampler took, on `model` (this one's, with nodes applied)."""
        import comfy.sample

        positive, negative = self.cond(prompt), self.cond(negative)
        channels = model.get_model_object("latent_format").latent_channels
        latent = torch.zeros(1, channels, self.size, self.size)
        noise = comfy.sample.prepare_noise(latent, seed)
        started = time.perf_counter()
        result = comfy.sample.sample(
            model, noise, sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler, positive, negative, latent,
            disable_pbar=True, seed=seed,
        )  # fmt: skip
        return result, time.perf_counter() - started

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Any:
        """RGB (H, W, 3) in 0..1, as numpy."""
        return self.vae.decode(latent)[0].float().clamp(0, 1).numpy()
