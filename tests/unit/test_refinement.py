"""Heatmaps sharpened by the denoised latent, and where they are divided."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region import regions
from highlight_diffusion.engine.region.refinement import guided_filter, highlighted, otsu, word_highlighted
from highlight_diffusion.engine.region.tracking import refined_by
from scipy import ndimage


def picture(size: int, channels: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """A latent (1, C, size, size) of faint noise with objects of a colour of their own."""
    made = 0.1 * torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    for y0, y1, x0, x1 in boxes:
        made[..., y0:y1, x0:x1] += torch.linspace(-1, 1, channels)[:, None, None] + 1
    return made


def cells(size: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    made = torch.zeros(size, size, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        made[y0:y1, x0:x1] = True
    return made


def blurred(mask: torch.Tensor, side: int) -> torch.Tensor:
    """What attention on a coarser grid makes of a mask: (1, 1, h, w) of an eighth of its size or so."""
    return F.interpolate(F.avg_pool2d(mask[None, None].float(), side, 1, side // 2), scale_factor=0.25, mode="area")


@pytest.mark.parametrize(("size", "channels"), [(32, 4), (64, 16), (96, 4), (32, 128)])
def test_a_coarse_heatmap_takes_the_edges_of_the_latent(size, channels):
    box = (size // 4, size // 4 + size // 5, size // 2, size // 2 + size // 5)
    coarse = blurred(cells(size, box), size // 8 + 1)
    found = highlighted(guided_filter(coarse, picture(size, channels, box))[0, 0], 0.6)
    truth = cells(size, box)
    unrefined = F.interpolate(coarse, (size, size), mode="bilinear")[0, 0]
    plain = unrefined >= otsu(unrefined.numpy())
    union = lambda mask: int((mask & truth).sum()) / int((mask | truth).sum())  # noqa: E731
    assert union(found) > 0.95 > 0.8 > union(plain)


def test_an_object_that_no_word_looks_at_is_not_highlighted():
    wanted, other = (4, 10, 4, 10), (20, 27, 18, 25)
    latent = picture(32, 4, wanted)
    latent[..., 20:27, 18:25] -= torch.tensor([1.0, -1.0, 0.5, 2.0])[:, None, None]
    found = highlighted(guided_filter(blurred(cells(32, wanted), 5), latent)[0, 0], 0.6)
    assert found[4:10, 4:10].float().mean() > 0.9 and not found[20:27, 18:25].any() and other


def test_a_faint_object_is_outlined_beside_a_hot_one_and_the_hot_one_no_wider_for_it():
    heat = torch.zeros(40, 40)
    heat[4:12, 4:12], heat[6:10, 6:10] = 0.35, 1.0  # a hot object with a warm rim
    heat[26:32, 26:32] = 0.45
    found = highlighted(heat, 0.6)
    assert found[26:32, 26:32].all() and found[6:10, 6:10].all() and not found[4, 4]


def test_an_object_that_the_filter_lost_is_highlighted_as_attention_saw_it():
    """A red circle on a red background: the latent says nothing of it, the attention does."""
    wanted, lost = (4, 10, 4, 10), (20, 27, 18, 25)
    unfiltered = F.interpolate(blurred(cells(32, wanted, lost), 5), (32, 32), mode="bilinear")[0, 0]
    filtered = torch.where(cells(32, wanted), 1.0, 0.05 * unfiltered)
    assert not highlighted(filtered, 0.6)[20:27, 18:25].any()
    found = highlighted(filtered, 0.6, unfiltered)
    assert found[20:27, 18:25].float().mean() > 0.8 and torch.equal(found[:15], highlighted(filtered, 0.6)[:15])


def test_an_object_that_the_filter_lost_beside_another_is_put_back():
    """Attention joins the two to one patch, of which most is highlighted."""
    hot, lost = (4, 14, 3, 13), (4, 12, 15, 23)
    unfiltered = F.interpolate(blurred(cells(32, hot, lost), 5), (32, 32), mode="bilinear")[0, 0]
    assert ndimage.label(highlighted(unfiltered, 0.6), np.ones((3, 3)))[1] == 1, "two patches, which are put back without this"
    filtered = torch.where(cells(32, hot), 1.0, 0.05 * unfiltered)
    found = highlighted(filtered, 0.6, unfiltered)
    assert found[5:11, 16:21].all() and not found[:, 27:].any() and not found[20:].any()


def test_an_object_that_the_filter_took_for_its_outline_is_filled_and_a_ring_is_not():
    box, core = (8, 20, 8, 20), (11, 17, 11, 17)
    outline = cells(32, box) & ~cells(32, core)
    filtered, solid = outline.float(), F.interpolate(blurred(cells(32, box), 5), (32, 32), mode="bilinear")[0, 0]
    assert highlighted(filtered, 0.6, solid)[11:17, 11:17].all() and not highlighted(filtered, 0.6)[11:17, 11:17].any()
    assert not highlighted(filtered, 0.6, filtered)[11:17, 11:17].any(), "nobody looks into it"


def test_a_word_is_what_it_is_heard_most_at():
    """A red circle is heard a little at a red square too; two red circles are both meant."""
    heat = torch.zeros(32, 32)
    heat[4:10, 4:10], heat[20:26, 4:10], heat[4:10, 20:26] = 1.0, 0.9, 0.5
    assert highlighted(heat, 0.6)[4:10, 20:26].any()
    found = word_highlighted(heat, 0.6)
    assert found[4:10, 4:10].all() and found[20:26, 4:10].all() and not found[:, 20:].any()
    assert torch.equal(word_highlighted(heat - 0.3, 0.6), found), "how hot the coolest is says nothing"
    assert word_highlighted(torch.zeros(8, 8), 0.6).shape == (8, 8)


def test_a_stricter_threshold_takes_less_and_zero_everything():
    heat = guided_filter(torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)), picture(32, 4, (4, 12, 4, 12)))[
        0, 0
    ]
    areas = [int(highlighted(heat, threshold).sum()) for threshold in (0.0, 0.3, 0.6, 0.8, 1.0)]
    assert areas[0] == heat.numel() and areas == sorted(areas, reverse=True) and areas[-1] == 1


def test_otsu_divides_two_groups_and_takes_any_values():
    values = np.concatenate([np.full(90, 1.0) + np.linspace(0, 0.1, 90), np.full(10, 5.0)])
    assert 1.1 < otsu(values) < 5
    assert otsu(np.array([2.0])) == 2 and otsu(np.full((3, 3), 7.0)) == 7


def test_pictures_of_a_batch_and_frames_of_a_video_are_refined_by_themselves():
    first, second = (2, 8, 2, 8), (22, 28, 22, 28)
    maps = torch.cat([blurred(cells(32, first), 5), blurred(cells(32, second), 5)])
    latents = torch.cat([picture(32, 4, first), picture(32, 4, second)])
    batch = refined_by(maps, latents)
    assert batch.shape == (2, 1, 32, 32)
    assert torch.allclose(batch[1:], refined_by(maps[1:], latents[1:]), atol=1e-5)
    video = refined_by(maps, latents.transpose(0, 1)[None])
    assert video.shape == (1, 1, 32, 32)
    found = highlighted(video[0, 0], 0.6)
    assert found[3:7, 3:7].all() and found[23:27, 23:27].all() and not found[12:18, 12:18].any()
    one_of_four = latents[:1].transpose(0, 1)[None].repeat(1, 1, 4, 1, 1)  # four frames of the latent share a token
    assert refined_by(maps[:1], one_of_four).shape == (1, 1, 32, 32)


def test_bug_on_apple_silicon_the_first_heatmap_stopped_the_run(monkeypatch):
    """MPS has no `cholesky_solve`: there the filter, of a few thousand cells, runs on the CPU."""

    class Elsewhere(torch.Tensor):
        """Says it is on MPS until it is taken to the CPU."""

        @property
        def device(self):
            return torch.device("mps")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    maps, latent = torch.rand(1, 2, 8, 8), torch.randn(1, 4, 16, 16)
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    apart = guided_filter(maps.as_subclass(Elsewhere), latent.as_subclass(Elsewhere))
    monkeypatch.undo()
    assert moved == [torch.device("mps")] and torch.equal(apart, guided_filter(maps, latent))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (67, 1), (135, 240)])
def test_frames_of_any_shape_are_refined(size):
    refined = refined_by(torch.rand(1, 2, max(1, size[0] // 2), max(1, size[1] // 2)), torch.randn(1, 4, *size))
    assert refined.shape == (1, 2, *size) and refined.isfinite().all()
    assert highlighted(refined[0, 0], 0.6).shape == size


def test_bug_windows_around_noise_took_minutes():
    """A heatmap of specks has hundreds of patches, and joining their boxes took the third power of that."""
    heat = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    compared = 0

    def counted(a, b):
        nonlocal compared
        compared += 1
        return hull(a, b)

    hull = regions._hull
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "_hull", counted)
        highlight, region = regions.find_region(heat, (128, 128), 8, HighlightConfig(max_area=1.0), unfiltered=heat[0, 0])
    assert compared < 2000 and highlight.any() and region.outer
    boxes = regions.boxes_mask(region.inner, (128, 128))
    assert boxes[highlight[0]].all(), "no speck is left out"
