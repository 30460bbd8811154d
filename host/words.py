"""Which text tokens a prompt's words are, by its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine.heatmap import TokenWeights

WORDS = "highlight_words"  # of a cond, holding TokenWeights


def token_weights(clip: Any, prompt: str, words: Sequence[str] = ()) -> TokenWeights:
    """Weights of `prompt`'s tokens in its heatmap: those of `words` alone, or without any those of all its content.

    Emphasis such as (word:1.3) counts. Raises ValueError for a word, named with its place in the prompt or spelling,
    that is not there, and for a prompt without content.
    """
    tokens = _tokens(clip, prompt)
    content = [i for i, (_, _, word) in enumerate(tokens) if word]
    if not content:
        raise ValueError("the prompt is empty; write the same prompt as in the text encoder")
    if not words:
        return TokenWeights(tuple(max(0.0, float(weight)) if word else 0.0 for _, weight, word in tokens))
    chosen = set()
    for word in words:
        wanted = [token for token, _, content_id in _tokens(clip, word) if content_id]
        ids = [tokens[i][0] for i in content]
        found = [at for at in range(len(ids) - len(wanted) + 1) if wanted and _same(ids[at : at + len(wanted)], wanted)]
        if not found:
            raise ValueError(f'the prompt has no "{word}"; write words as they stand in it, a comma between: {prompt}')
        chosen |= {content[at + i] for at in found for i in range(len(wanted))}
    return TokenWeights(
        tuple(max(0.0, float(weight)) if i in chosen else 0.0 for i, (_, weight, _) in enumerate(tokens)), named=True
    )


def _same(ids: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(isinstance(a, int) and a == b for a, b in zip(ids, wanted, strict=True))


def _tokens(clip: Any, text: str) -> list[tuple[Any, float, int]]:
    """(token, weight, word id) of the first of the clip's tokenizers, chunk after chunk; word id 0 is no content."""
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    return [token for chunk in chunks for token in chunk]
