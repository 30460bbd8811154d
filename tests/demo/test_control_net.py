"""The demo's ControlNet in plain torch, the outlines it follows, and what the config says of control nets."""

import numpy as np
import pytest
import torch
from highlight_diffusion.demo.control import RADII, ControlNet, controlled, moved, outline
from highlight_diffusion.demo.scenes import object_masks, parse_caption, sample_scene
from highlight_diffusion.demo.unet import UNet
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Evaluation, RunRecord
from scipy import ndimage


@pytest.mark.parametrize("seed", range(6))
def test_an_outline_encloses_the_objects_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    scene = moved(sample_scene(rng, 1 + seed % 3), rng)
    drawn, masks = outline(scene, 256), object_masks(scene, 256)
    filled = ndimage.binary_fill_holes(drawn)
    wanted = masks.any(0)
    assert (filled & wanted).sum() / (filled | wanted).sum() > 0.85  # half the line lies outside
    assert 0.002 < drawn.mean() < 0.2


def test_moved_objects_lie_in_the_frame_and_are_called_by_the_nearest_place():
    rng = np.random.default_rng(4)
    for _ in range(20):
        scene = moved(sample_scene(rng, 3), rng)
        parsed = parse_caption(scene.caption)
        for thing, named in zip(scene.things, parsed.things, strict=True):
            assert RADII[0] <= thing.radius <= RADII[1]
            assert all(thing.radius < c < 1 - thing.radius for c in thing.centre)
            assert np.hypot(*np.subtract(thing.centre, named.centre)) < 0.32


def test_a_fresh_net_changes_nothing_and_a_trained_one_does():
    torch.manual_seed(0)
    unet, net = UNet().eval(), ControlNet().eval()
    x, hint, context = torch.randn(2, 4, 16, 24), torch.rand(2, 3, 128, 192), torch.randn(2, 77, 128)
    timesteps = torch.tensor([900.0, 30.0])
    with torch.no_grad():
        plain = unet(x, timesteps, context)
        assert torch.equal(controlled(unet, x, timesteps, context, net(x, hint, timesteps, context)), plain)
        torch.nn.init.normal_(net.middle_block_out[0].weight)
        assert not torch.allclose(controlled(unet, x, timesteps, context, net(x, hint, timesteps, context)), plain)


def test_a_wrong_choice_about_control_nets_is_refused():
    with pytest.raises(ValueError, match='control is "crop"; choose auto, reuse or compute'):
        HighlightConfig(control="crop")


def test_the_summary_says_where_control_nets_ran():
    run = RunRecord((1, 4, 8, 8), "euler", (3.0, 2.0, 1.0, 0.0))
    assert "control" not in run.summary()
    for index, (kind, use) in enumerate((("dense", "computed"), ("skipped", ""), ("partial", "reused"))):
        run.evaluations.append(Evaluation(index, index, 1.0, kind, "", 1.0, control=use))
    assert "control nets ran in 1, reused in 1" in run.summary()
    assert [e["control"] for e in run.as_dict()["evaluations"]] == ["computed", "", "reused"]
