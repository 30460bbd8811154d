"""Merges as functions: what is not merged comes back as it was, on any grid."""

import math

import pytest
import torch
import torch.nn.functional as F
from highlight_diffusion.engine.merging.key_bias import KeyBias, KeyBiasOverride, prompt_weight
from highlight_diffusion.engine.merging.matching import (
    merge_tokens,
    merge_windows,
    normalised_age,
    pairwise_similarity,
    window_similarity,
    windows,
)
from highlight_diffusion.engine.merging.sites import MergedTokens
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def merges(draw):
    """A merge of one of the two kinds, with random scores, of a grid of any size."""
    size, side, frames = draw(sizes), draw(st.integers(2, 3)), draw(st.integers(1, 2))
    members = windows(size, (side, side), frames)
    count, (width, k) = frames * size[0] * size[1], members.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    lead = draw(st.integers(0, 11))
    if draw(st.booleans()):
        score, most = torch.rand(width, generator=generator), width
        return merge_windows(score, members, draw(st.integers(0, most)), count, lead), members
    score, most = torch.rand(width, k, generator=generator), width * (k - 1)
    return merge_tokens(score, members, draw(st.integers(0, most)), count, lead), members


@given(merges())
@settings(deadline=None, max_examples=150)
def test_what_is_not_merged_comes_back_as_it_was(drawn):
    merge, _ = drawn
    x = torch.randn(2, merge.count, 5)
    back, shared = merge.unmerge(merge.merge(x)), merge.shared()
    assert torch.equal(back[:, ~shared], x[:, ~shared])
    assert merge.merge(x).shape == (2, merge.merged_count, 5) and back.shape == x.shape


@given(merges())
@settings(deadline=None, max_examples=150)
def test_members_of_a_group_get_its_mean(drawn):
    merge, _ = drawn
    x = torch.randn(1, merge.count, 3, dtype=torch.float64)
    back = merge.unmerge(merge.merge(x))
    for row in merge.rows.unique():
        own = merge.rows == row
        assert torch.allclose(back[:, own], x[:, own].mean(1, keepdim=True).expand(-1, int(own.sum()), -1))


@given(merges())
@settings(deadline=None, max_examples=150)
def test_every_token_is_in_one_row_and_every_row_has_a_token(drawn):
    merge, _ = drawn
    assert len(merge.rows) == merge.count and set(merge.rows.tolist()) == set(range(merge.merged_count))
    assert torch.equal(merge.rows.bincount(minlength=merge.merged_count).float(), merge.sizes)
    assert torch.equal(merge.rows[merge.places], torch.arange(merge.merged_count))


@given(merges())
@settings(deadline=None, max_examples=100)
def test_constant_windows_pass_unchanged(drawn):
    merge, members = drawn
    x = torch.randn(1, merge.count, 4)
    for window in members:
        x[:, window] = x[:, window[:1]]
    assert torch.allclose(merge.unmerge(merge.merge(x)), x, rtol=1e-6, atol=0)


@given(merges())
@settings(deadline=None, max_examples=100)
def test_a_groups_mean_and_its_detail_make_the_whole(drawn):
    merge, _ = drawn
    x = torch.randn(1, merge.count, 4)
    whole = merge.unmerge(merge.merge(x)).index_add(1, merge.members, merge.residual(x))
    assert torch.allclose(whole, x, atol=1e-6)
    assert torch.equal(whole[:, ~merge.shared()], x[:, ~merge.shared()])


@given(sizes, st.integers(2, 3), st.integers(1, 2))
@settings(deadline=None, max_examples=50)
def test_windows_are_squares_of_neighbours_and_share_nothing(size, side, frames):
    members = windows(size, (side, side), frames)
    assert len(members) == frames * (size[0] // side) * (size[1] // side)
    assert len(set(members.flatten().tolist())) == members.numel()
    for window in members:
        frame, place = window // (size[0] * size[1]), window % (size[0] * size[1])
        rows, columns = place // size[1], place % size[1]
        assert len(set(frame.tolist())) == 1
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == side - 1


def test_the_most_alike_windows_are_merged_first():
    members = windows((4, 4))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    x[members[2]] = x[members[2]][:1]
    score = window_similarity(pairwise_similarity(x, members))
    assert score.argmax() == 2 and float(score[2]) == pytest.approx(1, abs=1e-5)
    assert torch.equal(merge_windows(score, members, 1, 16).groups, members[2:3])


def test_a_token_joins_the_leader_of_its_own_window():
    members = windows((4, 4))
    score = torch.zeros(4, 4)
    score[3, 2] = 1.0
    merge = merge_tokens(score, members, 1, 16, lead=1)
    assert merge.shared().nonzero()[:, 0].tolist() == sorted(members[3, [1, 2]].tolist())
    assert int(merge.places[merge.rows[members[3, 2]]]) == int(members[3, 1])


def test_what_was_spared_for_long_is_due():
    idle = torch.tensor([1.0, 1.0, 4.0, 2.0])
    assert normalised_age(idle).argmax() == 2 and float(normalised_age(idle).mean()) == pytest.approx(1)


@pytest.mark.parametrize("text", [0, 3])
def test_proportional_attention_to_groups_of_equal_tokens_is_that_to_all_of_them(text):
    members, generator = windows((4, 6)), torch.Generator().manual_seed(0)
    merge = merge_windows(torch.arange(6.0), members, 4, 24)
    image = torch.randn(1, 24, 16, generator=generator)
    image[:, merge.groups] = image[:, merge.groups][:, :, :1]
    tokens = MergedTokens(merge)
    whole = torch.cat([torch.randn(1, text, 16, generator=generator), image], dim=1)

    def attend(x: torch.Tensor, proportional: bool = True) -> torch.Tensor:
        tap = KeyBiasOverride(24, merge if x.shape[1] < 24 + text else None, KeyBias(proportional=proportional))
        with tap.within(0):
            return tap(lambda q, k, v, heads, mask=None: F.scaled_dot_product_attention(q, k, v, mask), x, x, x, 1)

    expected = attend(whole)
    assert torch.allclose(tokens.unmerge(attend(tokens.merge(whole))), expected, atol=1e-5)
    assert not torch.allclose(tokens.unmerge(attend(tokens.merge(whole), proportional=False)), expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_weights_on_the_prompt_scale_its_share_beside_other_masks(kind):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 6, 8, generator=generator) for _ in range(2))
    v = torch.eye(6)[None]
    free = torch.ones(6, dtype=torch.bool)
    free[1] = kind == "none"
    mask = {"none": None, "bool": free[None], "float": torch.zeros(6).masked_fill(~free, -torch.inf)[None]}[kind]
    tap = KeyBiasOverride(4, None, KeyBias(prompt=math.log(3.0)))
    attention = lambda q, k, v, heads, mask=None: F.scaled_dot_product_attention(q, k, v, mask)  # noqa: E731
    with tap.within(0):
        weighed = tap(attention, q, k, v, 1, mask=mask)
    plain = attention(q, k, v, 1, mask=mask)
    expected = plain * torch.tensor([3.0, 3.0, 1, 1, 1, 1])
    assert torch.allclose(weighed, expected / expected.sum(-1, keepdim=True), atol=1e-6)


def test_the_prompts_weight_falls_over_the_schedule():
    weights = [prompt_weight(0.4, progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert weights == sorted(weights, reverse=True) and weights[0] == 0.4 and weights[-1] == -0.4
