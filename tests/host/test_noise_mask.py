"""A noise mask is the highlight by itself: what the sampler puts back need not be computed."""

from collections.abc import Callable

import comfy.sample
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach

import nodes as comfy_nodes

from . import tiny

SIZE = (16, 24)
CELLS = (2, 6, 4, 10)  # y0, y1, x0, x1 of the masks
MODELS: dict[str, Callable[[], tiny.Tiny]] = {"sd15": tiny.sd15, "sd3": tiny.sd3}


@pytest.fixture(scope="module")
def models() -> dict[str, tiny.Tiny]:
    return {name: make() for name, make in MODELS.items()}


def box(*cells: tuple[int, int, int, int], value: float = 1.0) -> torch.Tensor:
    """A mask (1, 1, H, W) of some boxes of cells."""
    mask = torch.zeros(1, 1, *SIZE)
    for y0, y1, x0, x1 in cells or (CELLS,):
        mask[..., y0:y1, x0:x1] = value
    return mask


def sampled(model: tiny.Tiny, patcher, mask: torch.Tensor, batch: int = 1, steps: int = 12, positive=None) -> torch.Tensor:
    """Inpaint a latent of noise."""
    latent = torch.randn(model.latent(batch, SIZE).shape, generator=torch.Generator().manual_seed(4))
    positive = tiny.cond(model, 1) if positive is None else positive
    return comfy.sample.sample(
        patcher, comfy.sample.prepare_noise(latent, 3), steps, 4.0, "euler", "normal", positive, tiny.cond(model, 2),
        latent, disable_pbar=True, seed=3, noise_mask=mask,
    )  # fmt: skip


def inpainted(
    model: tiny.Tiny, mask: torch.Tensor, given: UserMasks | None = None, patcher=None, **kwargs
) -> tuple[torch.Tensor, RunRecord]:
    """The latent with Highlight Diffusion as it is by default, and the run's record."""
    trace = Trace()
    latent = sampled(model, attach(patcher or model.patcher, HighlightConfig(), trace, given=given), mask, **kwargs)
    return latent, trace.last


def boxes(run: RunRecord, image: int = 0) -> set[tuple[int, int, int, int]]:
    return {own for e in run.evaluations if e.kind == "partial" for own in e.boxes[image]}


@pytest.mark.parametrize("name", MODELS)
def test_a_noise_mask_is_the_highlight_and_what_it_keeps_is_as_without(models, name):
    model = models[name]
    latent, run = inpainted(model, box())
    assert boxes(run) == {CELLS} and run.highlight_reason == "the noise mask"
    assert run.count("partial") and not run.count("skipped")
    vanilla, kept = sampled(model, model.patcher, box()), (box() == 0).expand_as(latent)
    assert torch.equal(latent[kept], vanilla[kept]) and not torch.equal(latent, vanilla)


def test_pieces_of_a_mask_have_boxes_of_their_own(models):
    pieces = (0, 4, 0, 4), (12, 16, 18, 24)
    assert boxes(inpainted(models["sd3"], box(*pieces))[1]) == set(pieces)


def test_each_picture_of_a_batch_has_its_own_noise_mask(models):
    other = (10, 14, 12, 20)
    _, run = inpainted(models["sd15"], torch.cat([box(), box(other)]), batch=2)
    assert boxes(run) == {CELLS} and boxes(run, 1) == {other}


def test_a_mask_given_to_the_node_wins_and_what_is_protected_is_added(models):
    given = (8, 12, 16, 20)
    _, run = inpainted(models["sd3"], box(), UserMasks(box(given)[0]), steps=20)
    assert boxes(run) == {given} and "given" in run.highlight_reason
    assert boxes(inpainted(models["sd3"], box(), UserMasks(protect=box(given)[0]))[1]) == {CELLS, given}


def test_of_a_soft_mask_counts_what_changes_and_under_differential_diffusion_what_ever_does(models):
    model, soft = models["sd3"], torch.maximum(box(), box((10, 12, 16, 20), value=0.05))
    soft[..., 6:8, 4:10] = 0.4
    assert boxes(inpainted(model, soft)[1]) == {(2, 8, 4, 10)}
    differential = DifferentialDiffusion.execute(model.patcher).args[0]
    _, run = inpainted(model, soft, patcher=differential)
    assert boxes(run) == {(2, 8, 4, 10), (10, 12, 16, 20)}


@pytest.mark.parametrize("mask", [torch.ones(1, 1, *SIZE), torch.zeros(1, 1, *SIZE)], ids=["all of it", "none of it"])
def test_a_noise_mask_that_says_nothing_leaves_the_run_as_it_is_without_one(models, mask):
    _, run = inpainted(models["sd15"], mask, steps=20)
    assert run.count("skipped") > run.count("dense") and run.highlight_reason != "the noise mask"


def test_frames_of_a_video_are_masked_together():
    model = tiny.hunyuan_video()
    mask = torch.zeros(1, 1, 3, *SIZE)
    mask[:, :, 0, 2:4, 4:10] = mask[:, :, 2, 4:6, 4:10] = 1
    latent, run = inpainted(model, mask)
    assert boxes(run) == {CELLS}
    assert torch.equal(latent[:, :, 1], sampled(model, model.patcher, mask)[:, :, 1])


def test_an_inpainting_model_with_the_nodes_of_comfyui():
    """Set Latent Noise Mask, beside the picture and the mask that InpaintModelConditioning adds to the conditioning."""
    model, mask = tiny.inpaint(), box()[0]
    latent = {"samples": torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(4))}
    masked = comfy_nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]
    positive = tiny.cond(model, 1)
    positive[0][1].update(concat_latent_image=latent["samples"], concat_mask=mask[None])
    assert boxes(inpainted(model, masked["noise_mask"], positive=positive)[1]) == {CELLS}
