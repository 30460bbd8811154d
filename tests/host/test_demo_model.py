"""The bundled model: ComfyUI's own classes and the plain modules compute the same."""

import comfy.model_management
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer
from highlight_diffusion.demo.load import encode_prompt, load_plain
from highlight_diffusion.demo.scenes import unseen_scenes
from highlight_diffusion.demo.text import tokenize
from highlight_diffusion.host.demo import load_demo, load_mmdit

import nodes as comfy_nodes

PROMPTS = ["", *(scene.caption for scene in unseen_scenes(12, seed=5, objects=(0, 1, 2, 3)))]


@pytest.fixture(scope="module")
def hosted():
    return load_demo()


@pytest.fixture(scope="module")
def plain():
    return load_plain()


def test_unet_equals_the_plain_one(hosted, plain):
    unet = hosted[0].model.diffusion_model
    x, context = torch.randn(2, 4, 32, 40), torch.randn(2, 77, 128)
    timesteps = torch.tensor([900.0, 30.0])
    with torch.no_grad():
        ours, theirs = plain[0](x, timesteps, context), unet(x, timesteps, context)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("size", [(32, 40), (18, 24)])
def test_mmdit_equals_the_plain_one(size):
    mmdit, ours = load_mmdit().model.diffusion_model, load_plain("mmdit")[0]
    x, context = torch.randn(2, 4, *size), torch.randn(2, 77, 128)
    timesteps = torch.tensor([900.0, 30.0])
    with torch.no_grad():
        mine, theirs = ours(x, timesteps, context), mmdit(x, timesteps, context)
    assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_and_text_equal_the_plain_ones(hosted, plain, prompt):
    ids = [token for token, _ in SD1Tokenizer().tokenize_with_weights(prompt)["l"][0]]
    assert tokenize(prompt).tolist() == ids
    theirs = comfy_nodes.CLIPTextEncode().encode(hosted[1], prompt)[0][0][0]
    assert torch.allclose(encode_prompt(plain[1], prompt), theirs, atol=1e-4)


def test_a_word_the_model_never_saw_is_encoded_not_refused(hosted):
    theirs = comfy_nodes.CLIPTextEncode().encode(hosted[1], "a photograph of a zebra")[0][0][0]
    assert torch.isfinite(theirs).all()


def test_vae_equals_the_plain_one(hosted, plain):
    latent = torch.randn(1, 4, 8, 16) * 5
    theirs = comfy_nodes.VAEDecode().decode(hosted[2], {"samples": latent})[0]
    ours = (plain[2].decode(latent) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert torch.allclose(ours, theirs.float(), atol=2e-3)
    encoded = comfy_nodes.VAEEncode().encode(hosted[2], theirs)[0]["samples"]
    assert (plain[2].encode(theirs.float().permute(0, 3, 1, 2) * 2 - 1) - encoded).abs().max() < 1e-2 * encoded.abs().max()


def test_a_deep_copy_of_the_model_is_the_hosts_business(hosted):
    assert hosted[0].model.model_type.name == "V_PREDICTION"
    assert comfy.model_management.get_torch_device().type in ("cpu", "cuda")
