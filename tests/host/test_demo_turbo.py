"""The LoRAs that distil the demo transformer: ComfyUI's own loader takes them, and what they make draws at CFG 1."""

import folder_paths
import pytest
import torch
from highlight_diffusion.demo.detector import objects_right
from highlight_diffusion.demo.diffusion import flow_sigmas
from highlight_diffusion.demo.load import TURBO, TURBO_STEPS, WEIGHTS, encode_prompt, load_plain, read_weights
from highlight_diffusion.demo.scenes import unseen_scenes
from highlight_diffusion.demo.vae import picture_of
from highlight_diffusion.host.demo import load_demo, load_mmdit, show_adapters
from highlight_diffusion.tools.train.turbo import GUIDANCE, arrive, velocity_of

import nodes as comfy_nodes

MOST_BYTES = 4 * 2**20


@pytest.mark.parametrize("kind", TURBO)
def test_comfyuis_lora_loader_finds_it_and_uses_every_weight(kind):
    show_adapters()
    file = f"{TURBO[kind].removeprefix('loras/')}.safetensors"
    assert file in folder_paths.get_filename_list("loras")
    assert (WEIGHTS / f"{TURBO[kind]}.safetensors").stat().st_size <= MOST_BYTES
    model = comfy_nodes.LoraLoaderModelOnly().load_lora_model_only(load_mmdit(), file, 1.0)[0]
    layers = {name.removesuffix(".lora_up.weight") for name in read_weights(TURBO[kind]) if name.endswith("up.weight")}
    assert set(model.patches) == {f"{layer}.weight" for layer in layers} and 2 * len(layers) == len(read_weights(TURBO[kind]))


@pytest.mark.parametrize("kind", TURBO)
def test_the_loaders_choice_equals_the_plain_one(kind):
    model, plain = load_demo(kind)[0], load_plain(kind)[0]
    x, context, timesteps = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 128), torch.tensor([600.0])
    model.patch_model()
    try:
        with torch.no_grad():
            mine, theirs = plain(x, timesteps, context), model.model.diffusion_model(x, timesteps, context)
            unlike = (mine - load_plain("mmdit")[0](x, timesteps, context)).abs().max()
    finally:
        model.unpatch_model()
    assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max() < unlike


@pytest.mark.parametrize("kind", TURBO)
def test_it_draws_in_a_few_steps_what_guidance_draws_in_more(kind):
    """Every object right but one, and nearer to the guided picture of the same noise than the model alone is."""
    network, text, vae = load_plain(kind)
    base, scenes, sigmas = load_plain("mmdit")[0], unseen_scenes(6, 41, objects=(1, 2)), flow_sigmas(TURBO_STEPS[kind]).tolist()
    contexts = torch.cat([encode_prompt(text, scene.caption) for scene in scenes])
    noise = torch.randn(len(scenes), 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        guided = arrive(velocity_of(base, GUIDANCE, encode_prompt(text, "")), noise, flow_sigmas(16).tolist(), contexts)
        alone, distilled = (arrive(velocity_of(own), noise, sigmas, contexts) for own in (base, network))
        pictures = [picture_of(vae, x[None]).numpy() for x in distilled]
    right = sum(map(objects_right, scenes, pictures))
    assert right >= sum(len(scene.things) for scene in scenes) - 1, f"{right} objects are right"
    assert (distilled - guided).square().mean() < 2 / 3 * (alone - guided).square().mean()
