"""The bundled image prompt with the unmodified IPAdapter_plus: the same as in plain torch, followed, accelerated."""

import numpy as np
import pytest
import torch
from highlight_diffusion.bench.fidelity import psnr
from highlight_diffusion.demo.detector import objects_right
from highlight_diffusion.demo.image_prompt import VISION, VisionEncoder, pixels
from highlight_diffusion.demo.load import read_weights
from highlight_diffusion.demo.scenes import render, unseen_scenes
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.demo import load_demo, load_vision, show_adapters

import nodes as comfy_nodes

from . import packs

pytestmark = pytest.mark.beside
SCENES = unseen_scenes(3, seed=41)


@pytest.fixture(scope="module")
def vision():
    return load_vision()


def test_its_encoder_equals_the_plain_one(vision):
    plain = VisionEncoder()
    plain.load_state_dict(read_weights(VISION))
    image = torch.from_numpy(render(SCENES[0], 256))[None]
    with torch.no_grad():
        theirs, ours = vision.encode_image(image)["penultimate_hidden_states"], plain(pixels(image))
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_a_picture_is_drawn_after_another_and_accelerated(vision):
    node = packs.load(packs.IP_ADAPTER)
    show_adapters()
    adapter = node["IPAdapterModelLoader"]().load_ipadapter_model("highlight_demo_image_prompt.safetensors")[0]
    model, clip, vae = load_demo()
    (empty,), latent = comfy_nodes.CLIPTextEncode().encode(clip, ""), {"samples": torch.zeros(1, 4, 32, 32)}
    right, wanted = 0, sum(len(scene.things) for scene in SCENES)
    for scene in SCENES:
        adapted = node["IPAdapterAdvanced"]().apply_ipadapter(
            model, adapter, weight=1.0, weight_type="linear", image=torch.from_numpy(render(scene, 256))[None],
            clip_vision=vision,
        )[0]  # fmt: skip

        @torch.no_grad()
        def picture(patcher) -> np.ndarray:
            sampled = comfy_nodes.common_ksampler(patcher, 3, 16, 3.0, "euler", "normal", empty, empty, latent)[0]
            return comfy_nodes.VAEDecode().decode(vae, sampled)[0][0].float().numpy()

        trace = Trace()
        dense, fast = picture(adapted), picture(attach(adapted, HighlightConfig(), trace))
        assert psnr(dense, fast) > 25 and trace.last.count("skipped")
        right += objects_right(scene, fast)
    assert right >= 0.8 * wanted
