"""Naming the words to highlight, with ComfyUI's own tokenizer and the demo model."""

import pytest
import torch
from comfy.text_encoders import flux, qwen_image, sd3_clip
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.heatmap import HeatmapAccumulator, TokenWeights
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host import demo
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.words import WORDS, token_weights
from highlight_diffusion.nodes.words import HighlightWords

from . import tiny

pytestmark = pytest.mark.beside

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


def sampled(clip, words: str | None, seed: int = 3) -> RunRecord:
    """A run of the demo model, the words named or not."""
    model, trace = tiny.Tiny(demo.load_unet(), context=128), Trace()
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    positive = encode(PROMPT)
    if words is not None:
        positive = HighlightWords.execute(positive, clip, PROMPT, words).args[0]
    patcher = attach(model.patcher, HighlightConfig(correct="always"), trace)
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
    assert maps and all(m.shape == (1, 2, 32, 32) and m.min() >= 0 and m.max() <= 1 for m in maps)
    circle, star = maps[-1][0]
    assert circle[:16, :16].mean() > circle[16:, 16:].mean() and star[16:, 16:].mean() > star[:16, :16].mean()


class Clip:
    """A text encoder's tokenizers without its model."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, text: str, return_word_ids: bool = False) -> dict:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids=return_word_ids)


# The tokenizer, those of its parts that the conditioning is made of, and how many tokens it leaves out in front.
ENCODERS = {
    "Flux.1": (flux.FluxTokenizer, ("t5xxl",), 0), "SD3": (sd3_clip.SD3Tokenizer, ("g", "t5xxl"), 0),
    "Qwen-Image": (qwen_image.QwenImageTokenizer, ("qwen25_7b",), 34),
}  # fmt: skip
if hasattr(flux, "KleinTokenizer"):  # not in the oldest ComfyUI
    ENCODERS["Flux.2 Klein"] = flux.KleinTokenizer, ("qwen3_4b",), 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_words_are_found_in_what_each_text_encoder_gives(encoder):
    """By the tokenizer the conditioning is made with, without the template a prompt is put into, which has words too."""
    make, parts, left_out = ENCODERS[encoder]
    clip, prompt = Clip(make()), "star beside a red circle, its shape a star"
    ids = [token[0] for part in parts for token in clip.tokenize(prompt)[part][0]][left_out:]

    def spelt(weights) -> str:
        inverse = {part: getattr(clip.tokenizer, f"clip_{part}" if len(part) == 1 else part).inv_vocab for part in parts}
        first = len(clip.tokenize(prompt)[parts[0]][0])
        found = [inverse[parts[0] if i < first else parts[-1]][ids[i]] for i in places(weights)]
        return "".join(found).replace("</w>", " ").translate({ord("\u2581"): " ", ord("\u0120"): " "})

    star = token_weights(clip, prompt, ["star"], len(ids))
    assert len(star.values) == len(ids) and spelt(star).replace(" ", "") == "star" * 2 * len(parts)
    content = spelt(token_weights(clip, prompt, (), len(ids)))
    assert content.replace(" ", "") == prompt.replace(" ", "") * len(parts)
    with pytest.raises(ValueError, match='the prompt has no "color"'):  # which Qwen-Image's template has
        token_weights(clip, prompt, ["color"], len(ids))


def test_text_that_flux2_fills_up_in_front_is_found_behind_the_filling(monkeypatch):
    """Flux.2 gets 512 tokens, of which the prompt's are the last."""
    model, heard, add = tiny.flux2(), [], HeatmapAccumulator.add
    monkeypatch.setattr(HeatmapAccumulator, "add", lambda self, maps, grid, prompt=None, weights=None: (
        heard.append((maps.shape[1], weights)), add(self, maps, grid, prompt, weights)))  # fmt: skip
    positive = tiny.cond(model, 1, tokens=40)
    tiny.sample(model, attach(model.patcher, HighlightConfig(), Trace()), steps=6, positive=positive)
    assert heard and all(count == 512 == len(weights.values) for count, weights in heard)
    assert places(heard[-1][1]) == list(range(473, 512))
    heard.clear()
    values = tuple(float(i == 7) for i in range(40))
    positive[0][1][WORDS] = TokenWeights(values, named=True, words=(("star", (7,)),))
    tiny.sample(model, attach(model.patcher, HighlightConfig(), Trace()), steps=6, positive=positive)
    assert heard and all(places(weights) == [479] and weights.words == (("star", (479,)),) for _, weights in heard)
