"""Cross-attention -> heatmap: how much the prompt attends to each cell of the frame."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .refinement import resized

MOST_SCORES = 2**24  # of queries on keys in float32 at once; a video's have a hundred times as many, 64 MB a time
MAX_SKEWNESS = 3.0  # beyond it a map is a speck, not a place


def token_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Attention probabilities of image queries on text keys, heads averaged: (B, n, C), (B, m, C) -> (B, m, n).

    Softmax over the text, as in the model's own cross-attention (Hertz et al., "Prompt-to-Prompt", 2022).
    """
    batch, n, channels = q.shape
    q, k = q.detach(), k.detach()  # some samplers run outside no_grad
    q = q.view(batch, n, heads, -1).transpose(1, 2)
    k = k.view(batch, -1, heads, channels // heads).transpose(1, 2)
    at_once = max(1, MOST_SCORES // (batch * n * k.shape[2]))
    parts = zip(q.split(at_once, dim=1), k.split(at_once, dim=1), strict=True)
    sums = (((own.float() @ keys.float().mT) * (channels // heads) ** -0.5).softmax(-1).sum(1) for own, keys in parts)
    return sum(sums, next(sums)).mT / heads


def finest_levels(factors: Iterable[int]) -> tuple[int, ...]:
    """The levels of a UNet's decoder to listen to, by how many times smaller than the latent they are: the two finest of those
    that attend. The encoder's maps are of the noise still, and coarser ones do not tell objects from what is around them."""
    return tuple(sorted(set(factors))[:2])


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """The (h, w) of a UNet level with that many tokens, for a latent of height x width; None if no level has it."""
    h, w = height, width
    while h * w > tokens and h > 1 and w > 1:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == tokens else None


@dataclass(frozen=True)
class TokenWeights:
    """What each text token of a prompt counts in its heatmap, from the start token on; 0 leaves it out.

    named: these are words a user named, which count whatever their maps look like. words: the prompt's words that are to
    have a heatmap of their own, each with the places of its tokens.
    """

    values: tuple[float, ...]
    named: bool = False
    words: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def repeated(self, tokens: int) -> TokenWeights:
        """As a text of so many tokens has them, which a shorter prompt of a batch is repeated to fill."""
        times, left = divmod(tokens, len(self.values))
        return replace(self, values=self.values * times) if times > 1 and not left else self

    def fitted(self, count: int) -> TokenWeights:
        """As attention to so many tokens has them: what a model adds behind the text counts nothing, and what it does not look
        at is left out."""
        if len(self.values) == count:
            return self
        words = tuple((word, tuple(place for place in places if place < count)) for word, places in self.words)
        values = (*self.values, *[0.0] * (count - len(self.values)))[:count]
        return replace(self, values=values, words=tuple((word, places) for word, places in words if places))


class HeatmapAccumulator:
    """Collects token maps of several layers on the finest of their grids, for each prompt apart.

    Text tokens are weighted by how much their attention varies over the frame and by its skewness: a word that looks
    at one place stands out in a few cells, while padding and the background's words are looked at everywhere but
    there. So padding needs no telling apart, which the model's inputs would not allow. The start token, which
    attention uses as its rest place, is left out. Where a prompt comes with `TokenWeights`, they count besides.

    maps: of each prompt (B, m, h, w), where B counts the frames of a video as pictures of their own.
    """

    def __init__(self) -> None:
        self.maps: dict[Hashable, Tensor] = {}
        self.weights: dict[Hashable, TokenWeights | None] = {}

    def add(self, maps: Tensor, grid: tuple[int, int], prompt: Hashable = None, weights: TokenWeights | None = None) -> None:
        """maps (B, m, n) with n = grid[0] * grid[1]; those of coarser layers are resized to the finest grid."""
        maps = maps.unflatten(-1, grid)
        weights = weights and weights.fitted(maps.shape[1])
        if (others := self.maps.get(prompt)) is not None:
            finest = max(grid, (others.shape[-2], others.shape[-1]))
            maps = resized(maps, finest) + resized(others, finest)
        self.maps[prompt], self.weights[prompt] = maps, weights

    def heatmap(self) -> Tensor:
        """Float (B, 1, h, w), 0..1 for each image. Raises ValueError when nothing was collected.

        Several prompts count alike; where words were named in some of them, only those do.
        """
        if not self.maps:
            raise ValueError("no cross-attention was collected: the model has no text attention on this grid")
        named = [prompt for prompt, weights in self.weights.items() if weights and weights.named]
        first, *others = (combine(self.maps[prompt], self.weights[prompt]) for prompt in named or self.maps)
        return normalised(sum(others, first))

    def prominence(self) -> Tensor:
        """How far the words that the heatmap is made of stand out, float (B,), as of the function; infinite where a user named
        words, which count whatever their maps look like. Attention to the words of a background alone is even, whatever the
        scale of its small differences.
        """
        if any(weights and weights.named for weights in self.weights.values()):
            maps = next(iter(self.maps.values()))
            return maps.new_full((len(maps),), torch.inf)
        return torch.stack([prominence(maps, self.weights[prompt]) for prompt, maps in self.maps.items()]).amax(0)

    def words(self) -> dict[str, Tensor]:
        """A heatmap (B, h, w) in 0..1 for each word that is to have one; a word of two prompts has that of the first."""
        heard: dict[str, Tensor] = {}
        for prompt, weights in self.weights.items():
            for word, tokens in weights.words if weights else ():
                if word not in heard:
                    maps = self.maps[prompt][:, list(tokens)]
                    weight = importance(maps)
                    weight = weight.where(weight.amax(1, keepdim=True) > 0, 1.0)  # where none stands out all count
                    heard[word] = normalised((weight * normalised(maps)).sum(1))
        return heard


def normalised(heat: Tensor) -> Tensor:
    """Each map (..., h, w) stretched to 0..1."""
    low, high = heat.amin(dim=(-2, -1), keepdim=True), heat.amax(dim=(-2, -1), keepdim=True)
    return (heat - low) / (high - low).clamp(min=1e-8)


def combine(maps: Tensor, weights: TokenWeights | None = None) -> Tensor:
    """Token maps (B, m, h, w), probabilities up to a common factor -> heatmap (B, 1, h, w) in 0..1."""
    maps, given = _without_start(maps, weights)
    weight = given if weights is not None and weights.named else importance(maps) * given
    return normalised((weight * normalised(maps)).sum(1, keepdim=True))


def _without_start(maps: Tensor, weights: TokenWeights | None) -> tuple[Tensor, Tensor]:
    """The maps (B, m, h, w) of all tokens but the start token, where there are others, and what each counts, (m, 1, 1)."""
    given = maps.new_ones(maps.shape[1]) if weights is None else maps.new_tensor(weights.fitted(maps.shape[1]).values)
    given = given[:, None, None]
    return (maps[:, 1:], given[1:]) if maps.shape[1] > 1 else (maps, given)


def importance(maps: Tensor) -> Tensor:
    """What each token's map (B, m, h, w) counts, (B, m, 1, 1): how much it varies, and how skewed, and nothing where the
    token is looked at everywhere but in one place."""
    deviation = maps - maps.mean(dim=(-2, -1), keepdim=True)
    spread = deviation.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    skewness = deviation.pow(3).mean(dim=(-2, -1), keepdim=True) / spread.pow(3).clamp(min=1e-12)
    return spread * skewness.clamp(0, MAX_SKEWNESS)


def prominence(maps: Tensor, weights: TokenWeights | None = None) -> Tensor:
    """How far the tokens stand out of which the heatmap is made, float (B,), for maps (B, m, h, w): the coefficient of
    variation of each one's map over the frame, which knows no scale; a mean over the tokens by how much they count."""
    maps, given = _without_start(maps, weights)
    counts = importance(maps) * given
    varies = maps.std(dim=(-2, -1), keepdim=True, unbiased=False) / maps.mean(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    return (counts * varies).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1e-12)
