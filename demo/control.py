"""SD1.5's ControlNet in plain torch at the demo's widths, with ComfyUI's parameter names, and the outlines it follows.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", 2023: a copy of the UNet's encoder that
sees a picture beside the latent and adds, through convolutions that start at zero, to the UNet's skips and middle.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .scenes import POSITIONS, SIZES, Scene, Thing, apart, grid, signed_distance
from .unet import UNet, UNetConfig, timestep_embedding, width_of

WEIGHTS = "controlnet/highlight_demo_outline"  # a folder of its own, which ComfyUI's loader is shown
RADII = (0.10, 0.19)  # of objects that are placed freely
LINE = 1 / 128  # width of an outline, of the frame
HINT_WIDTHS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))  # channels and stride, to 1/8 of the side


def moved(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its objects anywhere in the frame, in any size, and called by the nearest place and size."""
    things: list[Thing] = []
    for thing in scene.things:
        while True:
            radius = float(rng.uniform(*RADII))
            centre = tuple(float(c) for c in rng.uniform(radius + 0.03, 0.97 - radius, 2))
            place = min(POSITIONS, key=lambda name: np.hypot(*np.subtract(POSITIONS[name], centre)))
            size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
            thing = replace(thing, size=size, position=place, radius=radius, centre=centre)
            if all(apart(thing, other) for other in things):
                things.append(thing)
                break
    return replace(scene, things=tuple(things))


def outline(scene: Scene, size: int) -> np.ndarray:
    """The objects' outlines as white lines on black, bool (size, size). An object hides what lies behind it."""
    y, x = grid(size)
    drawn = np.zeros((size, size), bool)
    for thing in scene.things:
        near = tuple(slice(max(0, int((c - 1.2 * thing.radius) * size)), int((c + 1.2 * thing.radius) * size) + 1)
                     for c in thing.centre)  # fmt: skip
        place = [(axis[near] - c) / thing.radius for axis, c in zip((y, x), thing.centre, strict=True)]
        distance = signed_distance(thing.shape, *place) * thing.radius
        drawn[near] = (drawn[near] & (distance > 0)) | (np.abs(distance) <= LINE / 2)
    return drawn


def _zero_conv(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(conv)


def _hint_block(width: int) -> nn.Sequential:
    """A picture (B, 3, 8h, 8w) to features (B, width, h, w)."""
    layers: list[nn.Module] = []
    channels = 3
    for out_channels, stride in HINT_WIDTHS:
        layers += [nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1), nn.SiLU()]
        channels = out_channels
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 3, padding=1))


class ControlNet(nn.Module):
    """Residuals for a `UNet`: one for each of its skips, in order, and one for its middle."""

    def __init__(self, config: UNetConfig | None = None):
        super().__init__()
        unet = UNet(config)
        self.config = unet.config
        self.time_embed, self.input_blocks, self.middle_block = unet.time_embed, unet.input_blocks, unet.middle_block
        self.input_hint_block = _hint_block(self.config.model_channels)
        widths = [width_of(stage) for stage in self.input_blocks]
        self.zero_convs = nn.ModuleList(_zero_conv(width) for width in widths)
        self.middle_block_out = _zero_conv(widths[-1])

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        """x (B, 4, h, w) as the UNet gets it, hint (B, 3, 8h, 8w) in 0..1 -> residuals of the skips, then the middle's."""
        embedding = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))
        residuals, guide = [], self.input_hint_block(hint)
        for stage, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            x = stage(x, embedding, context) + guide
            guide = 0
            residuals.append(zero_conv(x))
        return [*residuals, self.middle_block_out(self.middle_block(x, embedding, context))]


def controlled(unet: UNet, x: Tensor, timesteps: Tensor, context: Tensor, residuals: list[Tensor]) -> Tensor:
    """`UNet.forward` with a ControlNet's residuals added, through which alone gradients flow back."""
    *added, middle = residuals
    embedding = unet.time_embed(timestep_embedding(timesteps, unet.config.model_channels).to(x.dtype))
    skips = []
    with torch.no_grad():
        for stage in unet.input_blocks:
            x = stage(x, embedding, context)
            skips.append(x)
        x = unet.middle_block(x, embedding, context)
    x = x + middle
    for stage in unet.output_blocks:
        x = stage(torch.cat([x, skips.pop() + added.pop()], dim=1), embedding, context)
    return unet.out(x)
