"""The demo's text encoder: a tiny CLIP with ComfyUI's parameter names, and a tokenizer for the scenes' words.

In the graph ComfyUI's own CLIP runs these weights behind stock CLIPTextEncode. This file serves training and
machines without ComfyUI; its word list holds the ids that the SD1 tokenizer gives those words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH = 77
START, END = 49406, 49407
VOCABULARY_SIZE = 49408
TOKENS = {
    "<start>": START,
    "<end>": END,
    ",": 267,
    "a": 320,
    "an": 550,
    "and": 537,
    "at": 536,
    "background": 5994,
    "beige": 26677,
    "blue": 1746,
    "bottom": 5931,
    "brown": 2866,
    "center": 2119,
    "checked": 10387,
    "circle": 7117,
    "cloudy": 13106,
    "cross": 3417,
    "dotted": 47950,
    "empty": 7893,
    "filling": 9736,
    "frame": 6481,
    "giant": 4687,
    "gray": 7048,
    "green": 1901,
    "large": 3638,
    "left": 1823,
    "navy": 5598,
    "on": 525,
    "plain": 10709,
    "purple": 5496,
    "red": 736,
    "right": 1155,
    "small": 2442,
    "square": 3999,
    "star": 1565,
    "striped": 22192,
    "teal": 22821,
    "the": 518,
    "top": 1253,
    "triangle": 14615,
    "white": 1579,
    "yellow": 4481,
}


@dataclass(frozen=True)
class TextConfig:
    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    intermediate_size: int = 512


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig, causal: bool):
        super().__init__()
        self.heads, self.causal = config.num_attention_heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick_gelu, as in OpenAI's CLIP


class Layer(nn.Module):
    """Of CLIP's encoders; causal: whether a token sees those before it alone, as in that of texts."""

    def __init__(self, config: TextConfig, causal: bool = True):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(config.hidden_size), SelfAttention(config, causal)
        self.layer_norm2, self.mlp = nn.LayerNorm(config.hidden_size), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Token ids (B, 77) -> hidden states (B, 77, hidden_size). `rows` maps an id to its embedding row."""

    rows: Tensor

    def __init__(self, config: TextConfig | None = None):
        super().__init__()
        self.config = config = config or TextConfig()
        self.token_embedding = nn.Embedding(len(TOKENS) + 1, config.hidden_size)
        self.position_embedding = nn.Embedding(LENGTH, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        rows = torch.full((VOCABULARY_SIZE,), len(TOKENS))
        rows[torch.tensor(list(TOKENS.values()))] = torch.arange(len(TOKENS))
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(self.rows[tokens]) + self.position_embedding.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


def tokenize(prompt: str) -> Tensor:
    """Ids (77,) as ComfyUI's SD1 tokenizer gives them: start, words, end, padded with end.

    Raises ValueError for a word the demo model was never taught.
    """
    words = prompt.lower().replace(",", " , ").split()
    unknown = [word for word in words if word not in TOKENS]
    if unknown:
        known = ", ".join(word for word in TOKENS if not word.startswith("<"))
        raise ValueError(f"the demo model does not know the word(s) {', '.join(unknown)}; it knows: {known}")
    if len(words) > LENGTH - 2:
        raise ValueError(f"a demo prompt has at most {LENGTH - 2} words, not {len(words)}")
    ids = [START, *(TOKENS[word] for word in words)]
    return torch.tensor(ids + [END] * (LENGTH - len(ids)))


def full_embedding(rows: Tensor) -> Tensor:
    """Token embedding (49408, hidden) of a full CLIP from the rows that were trained; other words get the spare row."""
    full = rows[-1].repeat(VOCABULARY_SIZE, 1)
    full[torch.tensor(list(TOKENS.values()))] = rows[:-1]
    return full
