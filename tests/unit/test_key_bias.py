"""Weights on the keys of joint attention: where they are added, where nothing is, and how they meet other masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from highlight_diffusion.engine.merging.key_bias import KeyBias, KeyBiasOverride, prompt_weight
from highlight_diffusion.engine.merging.matching import merge_windows, windows
from highlight_diffusion.engine.partial.order import Around
from highlight_diffusion.engine.partial.token_gather import ALL_FIRST

COUNT, TEXT = 16, 3


def merge():
    return merge_windows(torch.arange(4.0), windows((4, 4)), 2, COUNT)


class Watched:
    """An attention that notes what it was called with."""

    def __init__(self):
        self.masks: list[torch.Tensor | None] = []
        self.others: list[dict] = []

    def __call__(self, q, k, v, heads, mask=None, **kwargs):
        self.masks.append(mask)
        self.others.append(kwargs)
        return F.scaled_dot_product_attention(q, k, v, mask)


def tokens(count: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(1, count, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def weighing(
    merge=None, spared=frozenset(), prompt: float = 0.0, proportional: bool = False, around=ALL_FIRST, previous=None
) -> KeyBiasOverride:  # fmt: skip
    return KeyBiasOverride(COUNT, merge, KeyBias(prompt, proportional), spared, around, previous)


def attended(tap: KeyBiasOverride, count: int, *args, block: int = 0, keys: int | None = None, **kwargs) -> Watched:
    """One attention of a block, to as many tokens or to `keys` others."""
    watched, k = Watched(), tokens(keys or count)
    with tap.within(block):
        tap(watched, tokens(count), k, k, 1, *args, **kwargs)
    return watched


def test_the_prompts_weight_is_its_own_negative_at_the_schedules_other_end():
    for progress in (0.0, 0.2, 0.5):
        assert prompt_weight(0.4, 1 - progress) == pytest.approx(-prompt_weight(0.4, progress), abs=1e-12)
    assert prompt_weight(0.4, 0.5) == pytest.approx(0, abs=1e-12) and prompt_weight(0.0, 0.3) == 0


def test_keys_of_the_prompt_and_of_merged_tokens_have_their_log_weights():
    of = merge()
    tap = weighing(of, prompt=0.5, proportional=True, around=Around(True, 1))
    (mask,) = attended(tap, TEXT + of.merged_count).masks
    sizes = [math.log(size) for size in of.sizes.tolist()]
    assert mask.tolist()[0] == pytest.approx([0.5] * (TEXT - 1) + sizes + [0.5])
    assert max(sizes) == pytest.approx(math.log(4)) and min(sizes) == 0


def test_text_behind_the_image_is_weighted_there():
    (mask,) = attended(weighing(None, prompt=-0.5, around=Around(False)), COUNT + TEXT).masks
    assert mask.tolist()[0] == [0.0] * COUNT + [-0.5] * TEXT


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"merge": None}, COUNT + TEXT),
        ({"merge": None, "proportional": True}, COUNT + TEXT),
        ({"merge": None, "prompt": 0.5}, COUNT),
        ({"merge": "merged"}, TEXT),
    ],
    ids=["no weights", "nothing merged", "no text", "text alone"],
)
def test_where_there_is_nothing_to_weigh_attention_is_as_it_was(settings, count):
    """A mask, even one of zeros, would take attention off its fastest path."""
    settings = {**settings, "merge": merge() if settings["merge"] else None}
    assert attended(weighing(**settings), count).masks == [None]


def test_attention_to_other_keys_and_outside_the_blocks_passes_by():
    tap, watched, x = weighing(merge(), prompt=0.5, proportional=True), Watched(), tokens(COUNT)
    assert attended(tap, merge().merged_count, keys=TEXT).masks == [None], "cross-attention"
    tap(watched, x, x, x, 1)
    assert watched.masks == [None]


def test_in_spared_blocks_tokens_are_whole_and_only_the_prompt_has_a_weight():
    tap = weighing(merge(), frozenset((1,)), prompt=0.5, proportional=True)
    (merged,) = attended(tap, TEXT + merge().merged_count, block=0).masks
    (whole,) = attended(tap, TEXT + COUNT, block=1).masks
    assert merged.shape == (1, TEXT + merge().merged_count) and merged[0, TEXT:].any()
    assert whole.tolist()[0] == [0.5] * TEXT + [0.0] * COUNT


def test_merged_tokens_without_proportion_weigh_as_any_other():
    (mask,) = attended(weighing(merge(), prompt=0.5), TEXT + merge().merged_count).masks
    assert mask.tolist()[0] == [0.5] * TEXT + [0.0] * merge().merged_count


@pytest.mark.parametrize("given", ["by position", "by name"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_another_mask_holds_beside_the_weights(kind, given):
    free = torch.ones(1, TEXT + COUNT, dtype=torch.bool)
    free[0, 1] = False
    other = free if kind == "bool" else torch.zeros(free.shape).masked_fill(~free, -torch.inf)
    tap, count = weighing(None, prompt=0.5), TEXT + COUNT
    watched = attended(tap, count, other, "precision") if given == "by position" else attended(tap, count, mask=other)
    (mask,) = watched.masks
    assert mask[0, 1] == -torch.inf and mask[0, 0] == mask[0, 2] == 0.5 and not mask[0, TEXT:].any()
    assert watched.others == [{"attn_precision": "precision"} if given == "by position" else {}]


def test_a_mask_of_one_call_does_not_stay_for_the_next():
    tap, closed = weighing(None, prompt=0.5), torch.zeros(1, TEXT + COUNT, dtype=torch.bool)
    attended(tap, TEXT + COUNT, mask=closed)
    (mask,) = attended(tap, TEXT + COUNT).masks
    assert torch.isfinite(mask).all()


def test_weights_are_made_once_for_all_blocks_of_a_length():
    tap = weighing(merge(), prompt=0.5, proportional=True)
    masks = [attended(tap, text + merge().merged_count, block=block).masks[0] for text in (TEXT, 5) for block in (0, 1)]
    assert masks[0] is masks[1] and masks[2] is masks[3] and masks[0].shape != masks[2].shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_have_the_queries_type(dtype):
    tap, watched, x = weighing(merge(), prompt=0.5, proportional=True), Watched(), tokens(merge().merged_count, dtype)
    with tap.within(0):
        assert tap(watched, x, x, x, 1).dtype == dtype
    assert watched.masks[0].dtype == dtype


def test_an_override_that_was_there_before_is_given_the_weights():
    theirs = []

    def override(function, q, k, v, heads, mask=None, **kwargs):
        theirs.append(mask)
        return function(q, k, v, heads, mask=mask, **kwargs)

    watched = attended(weighing(None, prompt=0.5, previous=override), TEXT + COUNT)
    assert theirs[0] is watched.masks[0] and theirs[0][0, 0] == 0.5
