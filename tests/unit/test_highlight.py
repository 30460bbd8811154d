import pytest
import torch
import torch.nn.functional as F
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.heatmap import HeatmapAccumulator, combine, grid_of, token_maps
from highlight_diffusion.engine.region.regions import UserMasks, boxes_mask, find_region
from highlight_diffusion.engine.tuning import MAX_WINDOWS
from hypothesis import given, settings
from hypothesis import strategies as st


def heat(height: int, width: int, *spots: tuple[int, int, int, int]) -> torch.Tensor:
    values = torch.zeros(1, 1, height, width)
    for y0, y1, x0, x1 in spots:
        values[..., y0:y1, x0:x1] = 1.0
    return values


SPOT = st.tuples(st.integers(0, 14), st.integers(0, 22), st.integers(3, 8), st.integers(3, 8))


@settings(deadline=None, max_examples=60)
@given(st.lists(SPOT, min_size=1, max_size=5), st.integers(0, 4), st.sampled_from([4, 8]))
def test_windows_hold_the_highlight_and_its_halo_and_are_aligned(spots, halo, align):
    heatmap = heat(20, 28, *((y, min(20, y + h), x, min(28, x + w)) for y, x, h, w in spots))
    frame = (40, 56)
    highlight, region = find_region(heatmap, frame, align, HighlightConfig(max_area=1.0, halo=halo))
    if not region.outer:
        assert region.reason.startswith("no highlight")
        return
    wanted = torch.nn.functional.interpolate(highlight[:, None].float(), frame, mode="nearest")[0, 0] > 0
    assert not (wanted & ~boxes_mask(region.inner, frame)).any()
    for (y0, y1, x0, x1), inner in zip(region.outer, region.inner, strict=True):
        assert not any(v % align for v in (y0, y1, x0, x1))
        assert y0 <= max(0, inner[0] - halo) and x0 <= max(0, inner[2] - halo)
        assert y1 >= min(frame[0], inner[1] + halo) and x1 >= min(frame[1], inner[3] + halo)


@settings(deadline=None, max_examples=60)
@given(st.lists(SPOT, min_size=1, max_size=5), st.integers(0, 4), st.sampled_from([1, 2]), st.sampled_from([40, 39]))
def test_tokens_are_those_of_the_highlight_and_its_halo_and_no_others(spots, halo, patch, height):
    heatmap, frame = heat(height, 56, *((y, min(20, y + h), x, min(28, x + w)) for y, x, h, w in spots)), (height, 56)
    highlight, region = find_region(heatmap, frame, patch, HighlightConfig(max_area=1.0, halo=halo), exact=True)
    for boxes, reach in ((region.inner, 0), (region.outer, halo)):
        wanted = F.max_pool2d(highlight.float(), 2 * reach + 1, stride=1, padding=reach)
        tokens = F.max_pool2d(wanted, patch, ceil_mode=True).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        assert torch.equal(boxes_mask(boxes, frame), tokens[0, :height, :56] > 0)
        assert sum((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in boxes) == boxes_mask(boxes, frame).sum(), "some overlap"


def test_a_round_highlight_takes_fewer_tokens_than_windows():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (((y - 30) ** 2 + (x - 34) ** 2).sqrt() < 14).float()[None, None]
    areas = [find_region(disc, (64, 64), 2, HighlightConfig(), exact=exact)[1].area for exact in (False, True)]
    assert areas[1] < 0.9 * areas[0]


def test_specks_are_computed_in_windows():
    """A region of more boxes than are worth pasting one by one falls back to windows."""
    specks = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    _, region = find_region(specks, (64, 64), 2, HighlightConfig(max_area=1.0), exact=True)
    assert region.outer and len(region.outer) <= MAX_WINDOWS


def test_far_objects_get_windows_of_their_own():
    _, region = find_region(heat(32, 32, (2, 7, 2, 7), (24, 30, 24, 30)), (64, 64), 8, HighlightConfig())
    assert len(region.outer) == 2 and region.area < 0.3


def test_near_objects_share_one_window():
    _, region = find_region(heat(32, 32, (2, 7, 2, 7), (2, 7, 9, 14)), (64, 64), 8, HighlightConfig())
    assert len(region.outer) == 1


@pytest.mark.parametrize(
    ("heatmap", "prominence", "words"),
    [
        (torch.full((1, 1, 16, 16), 0.5), 2.0, "the heatmap is flat"),
        (heat(16, 16, (0, 15, 0, 14)), 2.0, "covers 100% of the frame, more than 60%"),
        (heat(16, 16, (4, 9, 4, 9)), 0.5, "no word stands out (their prominence is 0.50, needs"),
    ],
)
def test_a_refusal_says_why(heatmap, prominence, words):
    _, region = find_region(heatmap, (32, 32), 8, HighlightConfig(threshold=0.6), prominence=prominence)
    assert not region.outer and words in region.reason


def test_a_single_cell_is_an_object_too():
    highlight, region = find_region(heat(16, 16, (4, 5, 4, 5)), (32, 32), 8, HighlightConfig())
    assert highlight.sum() == 1 and highlight[0, 4, 4] and region.outer


def test_threshold_zero_highlights_everything():
    _, region = find_region(torch.rand(1, 1, 8, 8), (16, 16), 8, HighlightConfig(threshold=0.0))
    assert region.everything


def test_a_region_serves_on_while_it_holds_the_highlight():
    def region(*spots):
        return find_region(heat(32, 32, *spots), (64, 64), 8, HighlightConfig(max_area=1.0))[1]

    old = region((4, 14, 4, 14))
    assert old.covers(region((5, 13, 4, 13)))
    assert not old.covers(region((14, 24, 4, 14))), "it moved away"
    assert not region((4, 28, 4, 28)).covers(region((4, 9, 4, 9))), "much too large"
    assert not old.covers(region()), "nothing to serve"


def mask_of(*spots, size=(64, 64)) -> torch.Tensor:
    return heat(*size, *spots)[0]


def test_a_given_mask_is_highlighted_instead_whatever_its_area():
    mask = mask_of((0, 60, 0, 40))
    highlight, region = find_region(heat(16, 16, (10, 15, 10, 15)), (32, 32), 8, HighlightConfig(max_area=0.3), UserMasks(mask))
    assert highlight[0, 2, 2] and not highlight[0, 12, 12]
    assert region.outer and region.area > 0.3 and "given" in region.reason


def test_what_is_protected_joins_the_highlight_and_stays_when_that_is_refused():
    protect = UserMasks(protect=mask_of((0, 8, 0, 8)))
    both, region = find_region(heat(16, 16, (10, 15, 10, 15)), (32, 32), 8, HighlightConfig(), protect)
    assert both[0, 1, 1] and both[0, 12, 12] and len(region.outer) == 2
    flat, region = find_region(torch.full((1, 1, 16, 16), 0.5), (32, 32), 8, HighlightConfig(threshold=0.6), protect)
    assert flat[0, 1, 1] and not flat[0, 12, 12] and region.outer and "flat" in region.reason and "protected" in region.reason


def test_each_image_has_its_own_mask_and_one_mask_serves_all():
    two = UserMasks(torch.cat([mask_of((0, 8, 0, 8)), mask_of((56, 64, 56, 64))]))
    first, second = (find_region(heat(16, 16), (32, 32), 8, HighlightConfig(), two, image)[0] for image in (0, 1))
    assert first[0, 0, 0] and second[0, 15, 15] and not second[0, 0, 0]
    one = UserMasks(mask_of((0, 8, 0, 8)))
    assert find_region(heat(16, 16), (32, 32), 8, HighlightConfig(), one, 3)[0][0, 0, 0]


def test_an_empty_mask_highlights_nothing_and_a_full_one_everything():
    empty, full = UserMasks(torch.zeros(1, 64, 64)), UserMasks(torch.ones(1, 64, 64))
    assert not find_region(heat(16, 16), (32, 32), 8, HighlightConfig(), empty)[1].outer
    assert find_region(heat(16, 16), (32, 32), 8, HighlightConfig(), full)[1].everything


def test_a_noise_mask_is_highlighted_unless_it_is_too_large_or_another_is_given():
    noise, heatmap = mask_of((0, 8, 0, 8)), heat(16, 16, (10, 15, 10, 15))
    found = lambda config=None, **masks: find_region(heatmap, (32, 32), 8, config or HighlightConfig(), UserMasks(**masks))  # noqa: E731
    highlight, region = found(noise=noise)
    assert highlight[0, 1, 1] and not highlight[0, 12, 12] and region.reason == "the noise mask"
    protected, region = found(noise=noise, protect=mask_of((56, 64, 0, 8)))
    assert protected[0, 1, 1] and protected[0, 15, 1] and region.reason == "the noise mask"
    assert "given" in found(noise=noise, mask=mask_of((0, 60, 0, 40)))[1].reason
    for large in (torch.ones(1, 64, 64), mask_of((0, 60, 0, 60)), torch.zeros(1, 64, 64)):
        assert found(noise=large)[1].reason == "highlight"
    assert found(HighlightConfig(threshold=0.0), noise=noise)[1].everything


def test_token_maps_are_probabilities_over_the_text():
    maps = token_maps(torch.randn(2, 16, 32), torch.randn(2, 7, 32), heads=4)
    assert maps.shape == (2, 7, 16) and torch.allclose(maps.sum(1), torch.ones(2, 16), atol=1e-5)


def test_heatmap_follows_the_word_that_looks_at_one_place():
    maps = torch.full((1, 4, 8, 8), 0.2)
    maps[:, 0] = torch.rand(8, 8)  # the start token is no word
    maps[:, 2, 2:4, 5:7] = 0.9
    result = combine(maps)
    assert result.amax() == 1 and result.amin() == 0
    assert torch.equal(result[0, 0] > 0.5, maps[0, 2] > 0.5)


def test_layers_of_other_sizes_are_resized():
    accumulator = HeatmapAccumulator()
    accumulator.add(torch.rand(1, 5, 96), (8, 12))
    accumulator.add(torch.rand(1, 5, 24), (4, 6))
    assert accumulator.heatmap().shape == (1, 1, 8, 12)


def test_empty_accumulator_is_an_error():
    with pytest.raises(ValueError, match="no cross-attention"):
        HeatmapAccumulator().heatmap()


def test_grid_of_finds_the_level():
    assert grid_of(64 * 96, 64, 96) == (64, 96)
    assert grid_of(32 * 48, 64, 96) == (32, 48)
    assert grid_of(9 * 9, 33, 33) == (9, 9)
    assert grid_of(77, 64, 64) is None
