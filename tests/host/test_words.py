"""Naming the words to highlight, with ComfyUI's own tokenizer and the demo model."""

import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Run, Trace
from highlight_diffusion.host import demo
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.words import token_weights
from highlight_diffusion.nodes.words import HighlightWords

from . import tiny

PROMPT = "a large red circle at the top left and a large blue star at the bottom right on a plain beige background"


@pytest.fixture(scope="module")
def clip():
    return demo.load_clip()


def places(weights) -> list[int]:
    return [i for i, value in enumerate(weights.values) if value]


def test_words_are_found_by_the_tokenizers_own_positions(clip):
    words = PROMPT.split()
    assert places(token_weights(clip, PROMPT, ["star"])) == [1 + words.index("star")]
    assert places(token_weights(clip, PROMPT, ["red circle", "star"])) == [3, 4, 1 + words.index("star")]
    assert places(token_weights(clip, PROMPT, ["large"])) == [2, 1 + words.index("large", 3)]


def test_without_words_all_but_start_end_and_padding_count(clip):
    weights = token_weights(clip, PROMPT)
    assert places(weights) == list(range(1, 1 + len(PROMPT.split()))) and len(weights.values) == 77 and not weights.named


def test_emphasis_counts(clip):
    weights = token_weights(clip, PROMPT.replace("star", "(star:1.3)"), ["star", "circle"])
    assert [weights.values[i] for i in places(weights)] == [1.0, pytest.approx(1.3)]


def test_long_prompts_go_on_in_the_next_chunk(clip):
    weights = token_weights(clip, ", ".join([PROMPT] * 4) + " zebra", ["zebra"])
    assert len(weights.values) == 154 and places(weights)[0] > 77


@pytest.mark.parametrize(
    ("prompt", "words", "message"),
    [(PROMPT, "zebra", 'the prompt has no "zebra"'), ("", "", "the prompt is empty"), (PROMPT, "star, ,zebra", "zebra")],
)
def test_words_that_are_not_there_are_refused(clip, prompt, words, message):
    with pytest.raises(ValueError, match=message):
        HighlightWords.execute([[torch.zeros(1, 77, 128), {}]], clip, prompt, words)


def test_a_conditioning_of_another_length_is_refused(clip):
    with pytest.raises(ValueError, match="has 100 tokens and the prompt 77"):
        HighlightWords.execute([[torch.zeros(1, 100, 128), {}]], clip, PROMPT, "star")


def sampled(clip, words: str | None, seed: int = 3) -> Run:
    """A run of the demo model, the words named or not."""
    model, trace = tiny.Tiny(demo.load_unet(), context=128), Trace()
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    positive = encode(PROMPT)
    if words is not None:
        positive = HighlightWords.execute(positive, clip, PROMPT, words).args[0]
    patcher = attach(model.patcher, HighlightConfig(), trace)
    tiny.sample(model, patcher, size=(32, 32), steps=16, cfg=3.0, seed=seed, positive=positive, negative=encode(""))
    return trace.last


def heat(clip, words: str | None) -> torch.Tensor:
    """The last heatmap (16, 16) of such a run."""
    return next(e.heatmap for e in reversed(sampled(clip, words).evaluations) if e.heatmap is not None)[0, 0]


def test_the_heat_follows_the_named_word(clip):
    """Circle at the top left, star at the bottom right: naming one moves the heat to its half."""
    share = lambda h: float(h[:8, :8].sum() / (h[:8, :8].sum() + h[8:, 8:].sum()))  # noqa: E731
    circle, star = share(heat(clip, "circle")), share(heat(clip, "star"))
    assert circle > star + 0.2, (circle, star)


def test_content_tokens_alone_change_little(clip):
    both, content = heat(clip, None), heat(clip, "")
    assert torch.corrcoef(torch.stack([both.flatten(), content.flatten()]))[0, 1] > 0.8


def test_every_word_of_a_prompt_is_to_have_a_heatmap_with_its_tokens(clip):
    shown = dict(token_weights(clip, PROMPT.replace("star", "(star:1.3),")).words)
    assert list(shown) == list(dict.fromkeys(PROMPT.split()))
    assert shown["star"] == (1 + PROMPT.split().index("star"),) and len(shown["large"]) == 2
    assert dict(token_weights(clip, PROMPT, ["red circle"]).words) == {"red circle": (3, 4)}


def test_each_words_heatmap_lies_where_the_word_does(clip):
    run = sampled(clip, "circle, star")
    assert run.words == ("circle", "star")
    maps = [e.words for e in run.evaluations if e.words is not None]
    assert maps and all(m.shape == (1, 2, 16, 16) and m.min() >= 0 and m.max() <= 1 for m in maps)
    circle, star = maps[-1][0]
    assert circle[:8, :8].mean() > circle[8:, 8:].mean() and star[8:, 8:].mean() > star[:8, :8].mean()
