"""Which text tokens a prompt's words are, by its own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..engine.heatmap import TokenWeights

WORDS = "highlight_words"  # of a cond, holding TokenWeights
MAX_WORDS = 24  # that have heatmaps of their own


def token_weights(clip: Any, prompt: str, words: Sequence[str] = ()) -> TokenWeights:
    """Weights of `prompt`'s tokens in its heatmap: those of `words` alone, or without any those of all its content.

    Emphasis such as (word:1.3) counts. Raises ValueError for a word, named with its place in the prompt or spelling,
    that is not there, and for a prompt without content.
    """
    tokens = _tokens(clip, prompt)
    content = [i for i, (_, _, word) in enumerate(tokens) if word]
    if not content:
        raise ValueError("the prompt is empty; write the same prompt as in the text encoder")
    ids = [tokens[i][0] for i in content]

    def places(word: str) -> tuple[int, ...]:
        wanted = [token for token, _, content_id in _tokens(clip, word) if content_id]
        found = [at for at in range(len(ids) - len(wanted) + 1) if wanted and _same(ids[at : at + len(wanted)], wanted)]
        return tuple(content[at + i] for at in found for i in range(len(wanted)))

    shown = tuple((word, places(word)) for word in words or _distinct(prompt))
    for word, found in shown:
        if words and not found:
            raise ValueError(f'the prompt has no "{word}"; write words as they stand in it, a comma between: {prompt}')
    chosen = {i for _, found in shown for i in found} if words else set(content)
    values = tuple(max(0.0, float(weight)) if i in chosen else 0.0 for i, (_, weight, _) in enumerate(tokens))
    return TokenWeights(values, named=bool(words), words=tuple(entry for entry in shown if entry[1])[:MAX_WORDS])


def _distinct(prompt: str) -> list[str]:
    """The words of a prompt, each once, without punctuation and the signs of emphasis."""
    plain = re.sub(r":[\d.]+\)", " ", prompt)
    return list(dict.fromkeys(word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", plain)))


def _same(ids: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(isinstance(a, int) and a == b for a, b in zip(ids, wanted, strict=True))


def _tokens(clip: Any, text: str) -> list[tuple[Any, float, int]]:
    """(token, weight, word id) of the first of the clip's tokenizers, chunk after chunk; word id 0 is no content."""
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    return [token for chunk in chunks for token in chunk]
