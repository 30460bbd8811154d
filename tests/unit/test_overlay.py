"""Rough pictures of latents, and frames drawn over pictures."""

import pytest
import torch
from highlight_diffusion.demo.vae import SCALE, ideal_latent, rgb_factors
from highlight_diffusion.engine.report.latent_rgb import MAX_PICTURES, MAX_VALUES, picture_of_latent, pictures, sample
from highlight_diffusion.engine.report.masks import prompt_masks, word_masks
from highlight_diffusion.engine.report.overlay import DARK, SHOWS, TIMELINE, frames
from highlight_diffusion.engine.trace import Evaluation, LatentColours, RunRecord


@pytest.fixture
def run() -> RunRecord:
    run = RunRecord((1, 4, 32, 32), "euler", (3.0, 2.0, 1.0, 0.0), words=("star",))
    run.evaluations = [Evaluation(i, i, 3.0 - i, "dense" if i != 1 else "skipped", "", float(i != 1)) for i in range(3)]
    run.evaluations[0].heatmap = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    run.evaluations[2].words = torch.zeros(1, 1, 16, 16)
    run.evaluations[2].words[..., 4, 4] = 1
    run.evaluations[2].merged = torch.rand(1, 16, 16)
    run.highlight = torch.zeros(1, 16, 16, dtype=torch.bool)
    run.highlight[:, 8:] = True
    return run


def shown(run: RunRecord, **how) -> torch.Tensor:
    """Frames without their timelines."""
    return frames(run, torch.full((256, 256, 3), 0.5), **how)[:, :256]


def test_every_way_to_show_gives_one_frame_an_evaluation_and_they_differ(run):
    reference = torch.full((256, 256, 3), 0.45)
    all_frames = {how: shown(run, show=how, reference=reference) for how in SHOWS}
    assert all(f.shape == (3, 256, 256, 3) and f.min() >= 0 and f.max() <= 1 for f in all_frames.values())
    last = [f[-1] for f in all_frames.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(last) for b in last[:i])


def test_bug_frames_over_a_large_picture_took_gigabytes(run):
    """One is kept for each evaluation: they are drawn at 1024 pixels at most."""
    shown = frames(run, torch.rand(1500, 3000, 3))
    assert shown.shape == (len(run.evaluations), 512 + TIMELINE, 1024, 3) and shown.isfinite().all()
    assert frames(run, torch.rand(700, 1024, 3)).shape[1:3] == (700 + TIMELINE, 1024)


def test_outside_the_highlight_it_is_dark(run):
    frame = shown(run, show="highlight")[-1]
    assert frame[200:].eq(0.5).all() and frame[:100].allclose(torch.tensor(0.5 * DARK))


def test_a_word_shows_its_own_heatmap_and_an_unknown_one_is_named(run):
    frame = shown(run, show="heatmap", word="star")[-1]
    y, x = divmod(int(frame.sum(-1).argmax()), 256)
    assert abs(y - 72) <= 16 and abs(x - 72) <= 16
    with pytest.raises(ValueError, match='no heatmap of the word "zebra"; it has star'):
        shown(run, word="zebra")
    run.words = ()
    with pytest.raises(ValueError, match="put Highlight Words between"):
        shown(run, word="star")


def test_a_difference_needs_a_reference_of_the_same_size(run):
    with pytest.raises(ValueError, match="connect the dense picture as reference"):
        shown(run, show="difference")
    with pytest.raises(ValueError, match=r"the reference is \(8, 8\) and the picture \(256, 256\)"):
        shown(run, show="difference", reference=torch.zeros(8, 8, 3))
    same = shown(run, show="difference", reference=torch.full((256, 256, 3), 0.5))
    assert same.max() < 0.02  # black


def test_samples_are_bounded_and_of_videos_evenly_spread():
    large = sample(torch.zeros(40, 16, 128, 256))
    assert large.shape[:3] == (MAX_PICTURES, 1, 16) and large.numel() <= 1.1 * MAX_VALUES
    video = torch.arange(21.0)[None, None, :, None, None].expand(1, 16, 21, 60, 104)
    spread = sample(video)
    assert spread.shape[:2] == (1, MAX_PICTURES) and spread.numel() <= 1.1 * MAX_VALUES
    frame = spread[0, :, 0, 0, 0].tolist()
    assert frame[0] == 0 and frame[-1] == 20 and frame == sorted(set(frame))
    many = sample(torch.arange(5.0)[None, None, :, None, None].expand(16, 4, 5, 8, 8))
    assert many.shape[:2] == (16, 1) and many[0, 0, 0, 0, 0] == 2  # the middle one


def test_the_demos_colours_are_those_of_its_latents():
    image = torch.rand(2, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    rows, bias = rgb_factors()
    colours = LatentColours(tuple(map(tuple, rows)), tuple(bias), scale=lambda latent: latent * SCALE)
    outer = ideal_latent(image)
    rough = pictures(sample(outer * SCALE), colours)
    assert rough.shape == (2, 1, 4, 4, 3)
    assert (rough[:, 0].float() / 255 - image[:, :, ::8, ::8].permute(0, 2, 3, 1)).abs().max() < 0.01
    whole = picture_of_latent(outer, colours)
    assert whole.shape == (2, 32, 32, 3) and (whole - image.permute(0, 2, 3, 1)).abs().max() < 0.01


def test_a_model_without_colours_is_shown_in_grey():
    rough = pictures(sample(torch.randn(1, 7, 6, 6)), LatentColours())
    assert rough.shape == (1, 1, 6, 6, 3) and torch.equal(rough[..., 0], rough[..., 2]) and rough.max() == 255


def test_masks_have_the_pictures_size_or_the_latents_and_edges_as_asked(run):
    hard, soft, small = (prompt_masks(run, (64, 48), size) for size in ("picture", "picture, soft edges", "latent"))
    assert hard.shape == soft.shape == (1, 64, 48) and small.shape == (1, 16, 16)
    assert set(hard.unique().tolist()) == {0.0, 1.0} and len(soft.unique()) > 2
    assert hard[0, 32:].all() and not hard[0, :32].any() and ((soft > 0.5) == (hard > 0.5)).all()
    run.highlight = None
    assert not prompt_masks(run, (64, 48)).any()


def test_every_word_has_a_mask_of_its_own_in_the_order_of_the_words(run):
    run.words = ("star", "circle")
    run.evaluations[2].words = torch.zeros(1, 2, 16, 16)
    run.evaluations[2].words[0, 0, 2:5, 2:5] = 1
    run.evaluations[2].words[0, 1, 10:14, 9:12] = 0.8
    star, circle = word_masks(run, 0, (128, 128))
    assert star.sum() == 9 * 64 and star[16:40, 16:40].all() and circle.sum() == 12 * 64 and circle[80:112, 72:96].all()
    assert word_masks(run, 5, (128, 128), "latent").shape == (2, 16, 16), "one of the batch serves where there are no more"
    run.evaluations[2].words = None
    assert word_masks(run, 0, (8, 8)).shape == (1, 8, 8) and not word_masks(run, 0, (8, 8)).any()
