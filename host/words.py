"""Which text tokens a prompt's words are, by its own tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..engine.region.heatmap import TokenWeights

WORDS = "highlight_words"  # of a cond, holding TokenWeights
MAX_WORDS = 24  # that have heatmaps of their own
Token = tuple[Any, float, int]  # as ComfyUI has them: id or embedding, weight, number of its word; 0 is no word


def token_weights(clip: Any, prompt: str, words: Sequence[str] = (), length: int | None = None) -> TokenWeights:
    """Weights of `prompt`'s tokens in its heatmap: those of `words` alone, or without any those of all its content.

    Emphasis such as (word:1.3) counts. length: of the conditioning, in tokens, by which the tokenizer is found where a
    text encoder has several, and what it leaves out of the template around the prompt. Raises ValueError for a word, named
    with its place in the prompt or spelling, that is not there, for a prompt without content, and for another length.
    """
    found = [_Encoder(partial(_tokens, clip, name), prompt) for name in clip.tokenize("", return_word_ids=True)]
    if not any(encoder.content for encoder in found):
        raise ValueError("the prompt is empty; write the same prompt as in the text encoder")
    parts = [encoder.weights(words) for encoder in (found[:1] if length is None else _of_length(found, length))]
    values = tuple(value for part in parts for value in part.values)
    starts = [sum(len(part.values) for part in parts[:i]) for i in range(len(parts))]
    shown: dict[str, tuple[int, ...]] = {}
    for start, part in zip(starts, parts, strict=True):
        for word, places in part.words:
            shown[word] = (*shown.get(word, ()), *(start + place for place in places))
    for word in words:
        if word not in shown:
            raise ValueError(f'the prompt has no "{word}"; write words as they stand in it, a comma between: {prompt}')
    return TokenWeights(values, named=bool(words), words=tuple(shown.items())[:MAX_WORDS])


class _Encoder:
    """A prompt in one tokenizer of a text encoder.

    content: where its own words are, without those of a template around it.
    """

    def __init__(self, tokenize: partial, prompt: str):
        self.tokenize, self.prompt, self.left_out = tokenize, prompt, 0
        self.empty = [token for token in tokenize("") if token[2]]
        self.tokens = tokenize(prompt)
        self.content = self._content(self.tokens)

    def _content(self, tokens: list[Token]) -> list[int]:
        worded = [i for i, token in enumerate(tokens) if token[2]]
        own = [tokens[i] for i in worded]
        return worded[_shared(own, self.empty) : len(own) - _shared(own[::-1], self.empty[::-1])]

    def __len__(self) -> int:
        return len(self.tokens) - self.left_out

    def weights(self, words: Sequence[str]) -> TokenWeights:
        places = {word: self._places(word) for word in words or _distinct(self.prompt)}
        chosen = {i for found in places.values() for i in found} if words else set(self.content)
        values = tuple(max(0.0, float(token[1])) if i in chosen else 0.0 for i, token in enumerate(self.tokens))
        shown = [(word, tuple(i - self.left_out for i in found)) for word, found in places.items() if found]
        return TokenWeights(values[self.left_out :], words=tuple(shown))

    def _places(self, word: str) -> list[int]:
        """Where a word's tokens are; in the middle of a prompt some tokenizers count the space before it in."""
        ids, found = [self.tokens[i][0] for i in self.content], set()
        for spelt in (word, " " + word):
            tokens = self.tokenize(spelt)
            wanted = [tokens[i][0] for i in self._content(tokens)]
            for at in range(len(ids) - len(wanted) + 1):
                if wanted and _same(ids[at : at + len(wanted)], wanted):
                    found |= {self.content[at + i] for i in range(len(wanted))}
        return sorted(found)


def _of_length(encoders: list[_Encoder], length: int) -> list[_Encoder]:
    """The tokenizers a conditioning of this length is made of: one, the first and the last one after the other (SD3), or
    one whose template is left out in front (Qwen-Image)."""
    for encoder in encoders:
        if len(encoder) == length:
            return [encoder]
    if len(encoders) > 1 and len(encoders[0]) + len(encoders[-1]) == length:
        return [encoders[0], encoders[-1]]
    for encoder in encoders:
        if length % len(encoder) == 0:
            return [encoder]
        if encoder.content and 0 < len(encoder) - length <= encoder.content[0]:
            encoder.left_out = len(encoder) - length
            return [encoder]
    raise ValueError(
        f"the conditioning has {length} tokens and the prompt {len(encoders[0])}; give the prompt and the CLIP the "
        "conditioning was made with"
    )


def weights_of(cond: dict) -> TokenWeights | None:
    """What the tokens of a prompt count as the model is given them, None for what their maps look like alone.

    Flux.2 fills its text up with zeros in front; those count nothing.
    """
    weights, text = cond.get(WORDS), cond.get("cross_attn")
    if weights is not None and isinstance(text, torch.Tensor):
        weights = weights.fitted(text.shape[1])  # nodes that lengthen a text keep what is known of its first part
    given = getattr(cond.get("model_conds", {}).get("c_crossattn"), "cond", None)
    if not isinstance(text, torch.Tensor) or not isinstance(given, torch.Tensor) or not text.ndim == given.ndim == 3:
        return weights
    more = given.shape[1] - text.shape[1]
    if more <= 0 or given[:, :more].any():
        return weights
    if weights is None:
        return TokenWeights((0.0,) * (more + 1) + (1.0,) * (text.shape[1] - 1))  # the start token is no content either
    words = tuple((word, tuple(more + place for place in places)) for word, places in weights.words)
    return replace(weights, values=(0.0,) * more + weights.values, words=words)


def _distinct(prompt: str) -> list[str]:
    """The words of a prompt, each once, without punctuation and the signs of emphasis."""
    plain = re.sub(r":[\d.]+\)", " ", prompt)
    return list(dict.fromkeys(word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", plain)))


def _same(ids: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(isinstance(a, int) and a == b for a, b in zip(ids, wanted, strict=True))


def _shared(tokens: list[Token], empty: list[Token]) -> int:
    """How many tokens at the start a prompt has in common with an empty one: those of a template around it."""
    pairs = zip(tokens, empty, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if not _same(a[:1], b[:1])), min(len(tokens), len(empty)))


def _tokens(clip: Any, name: str, text: str) -> list[Token]:
    """Those of one of the clip's tokenizers, chunk after chunk."""
    return [token for chunk in clip.tokenize(text, return_word_ids=True)[name] for token in chunk]
