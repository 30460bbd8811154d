"""Token maps to heatmaps: which tokens count, and how much."""

from dataclasses import replace

import pytest
import torch
from highlight_diffusion.engine.region import heatmap
from highlight_diffusion.engine.region.heatmap import (
    HeatmapAccumulator,
    TokenWeights,
    combine,
    grid_of,
    prominence,
    token_maps,
)


def maps(*spots: tuple[int, int] | None, size: int = 8) -> torch.Tensor:
    """A start token's flat map, then one map a spot (y, x), or a flat one; (1, m, h, w)."""
    made = torch.full((1, 1 + len(spots), size, size), 0.01)
    for token, spot in enumerate(spots, 1):
        if spot:
            made[0, token, spot[0], spot[1]] = 0.8
    return made


def peak(heat: torch.Tensor) -> tuple[int, int]:
    return divmod(int(heat[0, 0].argmax()), heat.shape[-1])


def test_a_token_that_looks_at_one_place_makes_the_heat():
    heat = combine(maps(None, (2, 5), None))
    assert heat.shape == (1, 1, 8, 8) and heat.min() == 0 and heat.max() == 1 and peak(heat) == (2, 5)


def test_a_weight_of_zero_leaves_a_token_out_and_emphasis_moves_the_heat():
    two = maps((1, 1), (6, 6))
    assert peak(combine(two, TokenWeights((0.0, 0.0, 1.0)))) == (6, 6)
    assert peak(combine(two, TokenWeights((0.0, 1.3, 1.0)))) == (1, 1)
    assert peak(combine(two, TokenWeights((0.0, 1.0, 1.3)))) == (6, 6)


def test_a_named_word_counts_whatever_its_map_looks_like():
    broad = maps((1, 1), None)
    broad[0, 2, :, 4:] = 0.3  # half the frame: not skewed, so it would not count by itself
    assert peak(combine(broad)) == (1, 1)
    assert combine(broad, TokenWeights((0.0, 0.0, 1.0), named=True))[0, 0, :, 4:].min() == 1


def test_weights_repeat_with_a_prompt_that_was_repeated():
    """ComfyUI repeats the shorter of two prompts to run both in one batch."""
    once = maps((1, 1), (6, 6))
    twice = torch.cat([once, once], dim=1)
    second = TokenWeights((0.0, 0.0, 1.0), named=True)
    assert torch.equal(combine(twice, second.repeated(6)), combine(once, second))
    assert second.repeated(3) is second and second.repeated(7) is second, "a text is repeated a whole number of times"


def test_bug_weights_of_another_length_than_the_text_that_is_attended():
    """HunyuanDiT adds T5's tokens behind CLIP's, Mochi looks at the first of them alone: both failed with Highlight Words."""
    seen, weights = maps((1, 1), (6, 6)), TokenWeights((0.0, 1.0), named=True, words=(("a", (1,)), ("b", (4,))))
    assert peak(combine(seen, weights)) == (1, 1)
    longer = weights.fitted(7)
    assert longer.values == (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0) and longer.words == weights.words
    assert TokenWeights((0.0, 1.0, 1.0, 1.0), words=(("a", (1,)), ("b", (3,)))).fitted(2).words == (("a", (1,)),)
    accumulator = HeatmapAccumulator()
    accumulator.add(seen.flatten(2), (8, 8), "prompt", replace(weights, words=(("a", (1,)), ("b", (5,)))))
    assert set(accumulator.words()) == {"a"} and peak(accumulator.heatmap()) == (1, 1)


@pytest.mark.parametrize("most", [1, 5 * 16 * 3, 2**24])
def test_bug_a_long_video_ran_out_of_memory_where_it_was_only_listened_to(most, monkeypatch):
    """The scores of all heads at once were 2.7 GB for Wan at 480p: now those of a few heads are, and the maps are the same."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 16, 24, generator=generator), torch.randn(1, 5, 24, generator=generator)
    monkeypatch.setattr(heatmap, "MOST_SCORES", most)
    found = token_maps(q, k, 6)
    heads = [(own @ keys.mT * 0.5).softmax(-1) for own, keys in zip(q.split(4, -1), k.split(4, -1), strict=True)]
    assert found.shape == (1, 5, 16) and torch.allclose(found, (sum(heads) / 6).mT, atol=1e-6)


def test_prompts_of_other_lengths_count_alike_and_named_ones_alone():
    accumulator = HeatmapAccumulator()
    accumulator.add(maps((1, 1)).flatten(2), (8, 8), "first")
    accumulator.add(maps((6, 6), None, None).flatten(2), (8, 8), "second")
    heat = accumulator.heatmap()[0, 0]
    assert heat[1, 1] == pytest.approx(1, abs=1e-3) and heat[6, 6] == pytest.approx(1, abs=1e-3)
    accumulator.add(maps((3, 4)).flatten(2), (8, 8), "third", TokenWeights((0.0, 1.0), named=True))
    assert peak(accumulator.heatmap()) == (3, 4)
    with pytest.raises(ValueError, match="no cross-attention was collected"):
        HeatmapAccumulator().heatmap()


@pytest.mark.parametrize(("tokens", "grid"), [(64, (8, 8)), (16, (4, 4)), (17, None)])
def test_the_grid_of_a_level_is_told_by_its_tokens(tokens, grid):
    assert grid_of(tokens, 16, 16) == grid
    assert grid_of(9 * 16, 17, 31) == (9, 16)  # odd sizes are rounded up on the way down


def test_a_word_that_looks_at_one_place_is_prominent_and_an_even_one_is_not():
    assert prominence(maps((2, 5), None)) > 3
    ripple = 0.01 + 0.004 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert prominence(ripple) < 0.5, "however the heatmap is stretched"
    assert prominence(maps((2, 5), None), TokenWeights((0.0, 0.0, 1.0))) < 0.5, "the word that looks at a place does not count"


def test_named_words_are_prominent_whatever_they_look_at_and_any_of_two_prompts_serves():
    accumulator = HeatmapAccumulator()
    accumulator.add(maps(None).flatten(2), (8, 8), "even")
    assert accumulator.prominence() < 0.5
    accumulator.add(maps((6, 6)).flatten(2), (8, 8), "placed")
    assert accumulator.prominence() > 3
    accumulator.add(maps(None).flatten(2), (8, 8), "named", TokenWeights((0.0, 1.0), named=True))
    assert accumulator.prominence().isinf().all()


def test_the_maps_of_a_phrase_count_by_how_much_they_tell():
    """Of "red circle" the demo UNet looks at the circle by its colour; the other word's map must not blur that."""
    both = maps((2, 5), None)
    both[0, 2] += 0.002 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    accumulator = HeatmapAccumulator()
    accumulator.add(both.flatten(2), (8, 8), None, TokenWeights((1.0,) * 3, words=(("red circle", (1, 2)), ("circle", (2,)))))
    words = accumulator.words()
    assert words["red circle"][0, 2, 5] == 1 and words["red circle"].flatten().sort().values[-2] < 0.1
    assert words["circle"].amax() == 1, "a word by itself has the whole range"
