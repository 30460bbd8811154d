"""How redundant features are over steps and space: a picture for the benchmarks, from the demo model in plain torch."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.load import encode_prompt, load_plain
from ..demo.plain import PlainModel, sample
from ..demo.vae import picture_of
from ..engine.config import HighlightConfig
from ..tools.server import PACK
from .prompts import demo as demo_prompts

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

SIDE = 32


def _blocks(unet: nn.Module) -> dict[str, nn.Module]:
    return {
        **{f"in {i}": block for i, block in enumerate(unet.input_blocks)},
        "middle": unet.middle_block,
        **{f"out {i}": block for i, block in enumerate(unet.output_blocks)},
    }


def changes(
    prompt: str, steps: int = 30, cfg: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Relative change of every block's output from one step to the next, in the positive stream of a dense run.

    Returns it by block and step (blocks, steps - 1), by place (SIDE, SIDE) averaged over blocks and steps, the picture
    (H, W, 3), and the blocks' names.
    """
    unet, text, vae = load_plain()
    before: dict[str, Tensor] = {}
    by_step: dict[str, list[float]] = {}
    space, count = torch.zeros(SIDE, SIDE), 0

    def listen(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            nonlocal space, count
            now = output[:1].detach()
            if name in before:
                change = (now - before[name]).square().sum(1, keepdim=True).sqrt()
                size = now.square().sum(1, keepdim=True).mean().sqrt()
                by_step.setdefault(name, []).append(float(change.square().mean().sqrt() / size))
                space += F.interpolate(change / size, (SIDE, SIDE), mode="bilinear")[0, 0]
                count += 1
            before[name] = now

        return hook

    handles = [block.register_forward_hook(listen(name)) for name, block in _blocks(unet).items()]
    model = PlainModel(unet, encode_prompt(text, prompt), encode_prompt(text, ""))
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    latent, _ = sample(model, noise, steps, cfg, HighlightConfig(enabled=False))
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        picture = picture_of(vae, latent).numpy()
    return np.array(list(by_step.values())), (space / count).numpy(), picture, list(by_step)


def draw(prompt: str, path: Path) -> None:
    """The changes as a picture."""
    over_steps, over_space, picture, names = changes(prompt)
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", width_ratios=(2, 1, 1))
    shown = axes[0].imshow(np.log10(over_steps), aspect="auto", cmap="inferno")
    axes[0].set(xlabel="step", yticks=range(len(names)), yticklabels=names, title="change from step to step, log10")
    axes[0].tick_params(axis="y", labelsize=6)
    figure.colorbar(shown, ax=axes[0])
    axes[1].imshow(over_space, cmap="inferno")
    axes[1].set(title="where features change", xticks=[], yticks=[])
    axes[2].imshow(picture)
    axes[2].set(title="the picture", xticks=[], yticks=[])
    figure.suptitle(prompt)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> int:
    """Draw it into docs/benchmarks/."""
    draw(demo_prompts(1)[0].text, PACK / "docs" / "benchmarks" / "unet-redundancy.png")
    return 0
