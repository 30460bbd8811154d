import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.edits import difference
from highlight_diffusion.engine.region.heatmap import HeatmapAccumulator, TokenWeights
from highlight_diffusion.engine.region.regions import BY_PROMPT, BY_REFERENCE, UserMasks, boxes_mask
from highlight_diffusion.engine.region.tracking import RegionTracker
from highlight_diffusion.engine.tuning import MIN_PROMINENCE

EDIT = (slice(8, 16), slice(20, 28))


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edited(reference: torch.Tensor, noise: float = 0.1) -> torch.Tensor:
    """The reference as a model gives it back, with something else in one place."""
    picture = reference + noise * pictures(*reference.shape, seed=1)
    picture[..., EDIT[0], EDIT[1]] = pictures(*reference.shape, seed=2)[..., EDIT[0], EDIT[1]]
    return picture


def test_an_edit_is_where_the_prediction_differs_from_the_reference():
    reference = pictures(1, 16, 32, 40)
    heat, prominence = difference(edited(reference), reference)
    assert heat.shape == (1, 1, 32, 40) and heat.min() == 0 and heat.max() == 1
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[EDIT] = True
    assert prominence.item() > MIN_PROMINENCE
    assert heat[0, 0][inside].quantile(0.1) > heat[0, 0][~inside].quantile(0.95)


def test_a_picture_that_is_composed_anew_and_one_that_is_copied_differ_evenly():
    reference = pictures(1, 16, 32, 40)
    for other in (pictures(1, 16, 32, 40, seed=5), reference + 0.05 * pictures(1, 16, 32, 40, seed=5), reference):
        assert difference(other, reference)[1].item() < MIN_PROMINENCE


def test_a_video_counts_its_greatest_difference_and_takes_a_still_reference():
    reference = pictures(1, 16, 1, 32, 40)
    video = (reference + 0.05 * pictures(1, 16, 5, 32, 40, seed=3)).clone()
    video[:, :, 2] = edited(reference[:, :, 0])
    heat, prominence = difference(video, reference)
    assert heat.shape == (1, 1, 32, 40) and prominence.item() > MIN_PROMINENCE
    assert heat[0, 0][EDIT].mean() > 0.5


def read(guide: torch.Tensor, reference: torch.Tensor | None, spot=(0, 6, 0, 6), weights: TokenWeights | None = None):
    """What a tracker makes of attention to a spot and of a reference."""
    tracker = RegionTracker(HighlightConfig(halo=0), (32, 40), 2, lambda boxes: [], UserMasks(), exact=True)
    maps = 0.01 * torch.rand(1, 5, 16 * 20, generator=torch.Generator().manual_seed(4)).repeat(len(guide), 1, 1)
    y0, y1, x0, x1 = spot
    maps.unflatten(-1, (16, 20))[:, 2:4, y0:y1, x0:x1] += 0.5
    capture = HeatmapAccumulator()
    capture.add(maps, (16, 20), weights=weights)
    reading = tracker.read(capture, guide, reference)
    tracker.take(reading)
    highlight, reasons = tracker.aim(reading)
    return tracker, highlight, reasons


def test_the_highlight_is_the_edit_in_the_pictures_that_are_edits_and_the_prompts_in_others():
    reference = pictures(1, 16, 32, 40)
    both = torch.cat([edited(reference), pictures(1, 16, 32, 40, seed=7)])
    tracker, highlight, reasons = read(both, reference)
    assert reasons == [BY_REFERENCE, BY_PROMPT]
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[EDIT] = True
    assert highlight[0][inside].float().mean() > 0.8 and highlight[0][~inside].float().mean() < 0.1
    assert boxes_mask(tracker.regions[0].inner, (32, 40))[inside].float().mean() > 0.8
    _, alone, _ = read(both[1:], None)
    assert torch.equal(highlight[1], alone[0])


def test_an_even_difference_leaves_what_the_prompt_looks_at_as_it_is():
    guide = pictures(1, 16, 32, 40, seed=7)
    _, highlight, reasons = read(guide, pictures(1, 16, 32, 40))
    _, alone, own = read(guide, None)
    assert torch.equal(highlight, alone) and reasons == own == [BY_PROMPT]


def test_words_that_a_user_named_count_more_than_the_reference():
    reference = pictures(1, 16, 32, 40)
    named = TokenWeights((0.0, 0.0, 1.0, 1.0, 0.0), named=True)
    _, highlight, reasons = read(edited(reference), reference, weights=named)
    _, alone, _ = read(edited(reference), None, weights=named)
    assert torch.equal(highlight, alone) and reasons == [BY_PROMPT]
