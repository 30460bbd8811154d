"""A picture as prompt of the demo UNet, in plain torch: a tiny CLIP vision encoder and an IP-Adapter, with the names that
ComfyUI and IPAdapter_plus read.

Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter", 2023: each cross-attention gets keys and values of its own
for the picture's tokens, and adds what they bring to what the text brings. Of the published kinds this is "full": a small
MLP makes a token of every patch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .text import Layer, TextConfig
from .unet import CrossAttention, UNet, UNetConfig

VISION, ADAPTER = "vision", "ipadapter/highlight_demo_image_prompt"  # the latter in a folder that IPAdapter_plus is shown
CONFIG = TextConfig(192, 4, 6, 768)  # the pack reads what the last layer but one gives, and so the last is not trained
IMAGE_SIZE, PATCH = 224, 74  # a patch for each of the nine places that captions name
TOKENS = 1 + (IMAGE_SIZE // PATCH) ** 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def pixels(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in 0..1 -> what the encoder sees, (B, 3, 224, 224), as ComfyUI prepares square ones."""
    images = F.interpolate(images.movedim(-1, 1), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
    images = (255 * images).clip(0, 255).round() / 255
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Embeddings(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.class_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.position_embedding = nn.Embedding(TOKENS, width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(CONFIG, causal=False) for _ in range(CONFIG.num_hidden_layers))


class VisionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(CONFIG.hidden_size), Encoder()
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(CONFIG.hidden_size), nn.LayerNorm(CONFIG.hidden_size)


class VisionEncoder(nn.Module):
    """Pixels (B, 3, 224, 224) -> hidden states of the last layer but one, (B, 10, width)."""

    def __init__(self):
        super().__init__()
        self.vision_model = VisionModel()
        self.visual_projection = nn.Linear(CONFIG.hidden_size, CONFIG.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        model = self.vision_model
        x = model.pre_layrnorm(model.embeddings(x))
        for layer in model.encoder.layers[:-1]:
            x = layer(x)
        return x


class Projection(nn.Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, context), nn.LayerNorm(context))


def places(unet: UNet) -> list[CrossAttention]:
    """Cross-attentions in the order in which adapters number them: inwards, outwards, middle."""
    parts = (unet.input_blocks, unet.output_blocks, unet.middle_block)
    return [m for part in parts for name, m in part.named_modules() if name.endswith("attn2")]


class Adapter(nn.Module):
    """Tokens of a picture for a `UNet`, and keys and values for each of its cross-attentions, that begin as the text's."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.image_proj = Projection(CONFIG.hidden_size, UNetConfig().context_dim)
        self.ip_adapter = nn.ModuleDict()
        for number, place in enumerate(places(unet)):
            parts = {}
            for name in ("to_k", "to_v"):
                weight = getattr(place, name).weight
                parts[f"{name}_ip"] = nn.Linear(*weight.shape[::-1], bias=False)
                parts[f"{name}_ip"].weight.data = weight.detach().clone()
            self.ip_adapter[str(2 * number + 1)] = nn.ModuleDict(parts)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states of the vision encoder -> tokens (B, 10, context_dim)."""
        return self.image_proj.proj(hidden)

    def added(self, place: int, q: Tensor, tokens: Tensor) -> Tensor:
        """What the tokens add at the place of that number, before its last layer: queries (B, heads, n, d) -> (B, n, dim)."""
        to = cast(nn.ModuleDict, self.ip_adapter[str(2 * place + 1)])
        return attend(q, to["to_k_ip"](tokens), to["to_v_ip"](tokens))


def queries(place: CrossAttention, x: Tensor) -> Tensor:
    """x (B, n, dim) -> (B, heads, n, d)."""
    return place.to_q(x).unflatten(-1, (place.heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of q (B, heads, n, d) to keys and values (B, m, dim), without the layer after it: (B, n, dim)."""
    k, v = (t.unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for t in (k, v))
    return CrossAttention.attend(q, k, v).transpose(1, 2).flatten(-2)
