"""The bundled ControlNet with ComfyUI's own loader and nodes: found, the same as in plain torch, followed, accelerated."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from highlight_diffusion.bench.control import overlap, scenes
from highlight_diffusion.bench.fidelity import psnr
from highlight_diffusion.demo.control import WEIGHTS, ControlNet, outline
from highlight_diffusion.demo.load import read_weights
from highlight_diffusion.demo.scenes import render
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.demo import load_demo, show_adapters

import nodes as comfy_nodes

pytestmark = pytest.mark.beside
SCENES = scenes(2, seed=31)


@pytest.fixture(scope="module")
def net():
    import folder_paths

    show_adapters()
    show_adapters()
    name = WEIGHTS.split("/")[1] + ".safetensors"
    assert folder_paths.get_filename_list("controlnet").count(name) == 1
    return comfy_nodes.ControlNetLoader().load_controlnet(name)[0]


@pytest.fixture(scope="module")
def demo():
    return load_demo()


def hint(scene) -> torch.Tensor:
    return torch.from_numpy(outline(scene, 256)).float()[None, ..., None].expand(-1, -1, -1, 3)


def test_it_equals_the_plain_one(net):
    plain = ControlNet()
    plain.load_state_dict(read_weights(WEIGHTS))
    x, context, timesteps = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 128), torch.tensor([900.0, 30.0])
    picture = hint(SCENES[0]).movedim(-1, 1)
    with torch.no_grad():
        theirs = net.control_model(x=x, hint=picture, timesteps=timesteps, context=context)
        ours = plain(x, picture, timesteps, context)
    for mine, other in zip(ours, [*theirs["output"], *theirs["middle"]], strict=True):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max()


def edges(scene) -> torch.Tensor:
    """What ComfyUI's own edge detector makes of a picture of the scene."""
    from comfy_extras.nodes_canny import Canny

    drawn = render(replace(scene, texture="plain"), 256)
    return Canny.execute(torch.from_numpy(drawn)[None], 0.1, 0.3).args[0].float()


@pytest.mark.parametrize(("scene", "hint"), list(zip(SCENES, (hint, edges), strict=True)), ids=["outline", "edges"])
def test_objects_follow_the_lines_and_sampling_is_accelerated(net, demo, scene, hint):
    model, clip, vae = demo
    positive, negative = (comfy_nodes.CLIPTextEncode().encode(clip, text)[0] for text in (scene.caption, ""))
    positive, negative = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, net, hint(scene), 1.0, 0.0, 1.0
    )
    trace = Trace()
    latent = {"samples": torch.zeros(1, 4, 32, 32)}

    @torch.no_grad()
    def picture(patcher) -> np.ndarray:
        sampled = comfy_nodes.common_ksampler(patcher, 3, 16, 3.0, "euler", "normal", positive, negative, latent)[0]
        return comfy_nodes.VAEDecode().decode(vae, sampled)[0][0].float().numpy()

    dense, fast = picture(model), picture(attach(model, HighlightConfig(), trace))
    assert overlap(scene, dense) > 0.7 and overlap(scene, fast) > 0.7
    assert psnr(dense, fast) > 25
    run = trace.last
    assert sum(e.control == "computed" for e in run.evaluations) == run.count("dense") < 12
