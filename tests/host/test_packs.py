"""Other people's packs, unmodified, beside ours on tiny models."""

import asyncio

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.supported_models as supported
import gguf
import numpy as np
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host import demo
from highlight_diffusion.host.attach import attach
from safetensors.torch import save_file

from . import packs, tiny
from .sampling import SIZE, guided

CONFIG = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")


def upper_left(height: int, width: int) -> UserMasks:
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 2] = 1
    return UserMasks(mask)


@pytest.fixture
def check_masked(check):
    def checked(model, patched=None, **kwargs):
        given = upper_left(*kwargs.get("size", SIZE))
        return check(model, patched, **{"config": CONFIG, "given": given, "steps": 10, "size": SIZE, **kwargs})

    return checked


@pytest.fixture(scope="module")
def sd15() -> tiny.Tiny:
    return tiny.sd15()


@pytest.fixture(scope="module")
def wan() -> tiny.Tiny:
    return tiny.wan()


# -- KJNodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.compatibility("Other packs", "KJNodes: CFGZeroStarAndInit", on="transformers")
def test_kjnodes_cfg_zero_star(check_masked):
    make, model = packs.load("ComfyUI-KJNodes")["CFGZeroStarAndInit"], tiny.sd3()
    assert check_masked(model, make().patch(model.patcher, True, 0)[0]).count("partial")


@pytest.mark.compatibility("Other packs", "KJNodes: ScheduledCFGGuidance")
def test_kjnodes_scheduled_guidance(check_masked, sd15):
    node = packs.load("ComfyUI-KJNodes")["ScheduledCFGGuidance"]

    def make(model, patcher):
        return node().get_guider(patcher, 4.0, tiny.cond(model, 1), tiny.cond(model, 2), 0.0, 0.6)[0]

    check_masked(sd15, sampled=guided(make))


@pytest.mark.compatibility("Other packs", "KJNodes: DifferentialDiffusionAdvanced")
def test_kjnodes_differential_diffusion(check_masked, sd15):
    node = packs.load("ComfyUI-KJNodes")["DifferentialDiffusionAdvanced"]
    mask = torch.linspace(0, 1, SIZE[1]).expand(1, *SIZE)
    patched, latent = node().apply(sd15.patcher, {"samples": torch.zeros(1, 4, *SIZE)}, mask, 1.0)
    check_masked(sd15, patched, noise_mask=latent["noise_mask"])


@pytest.mark.compatibility("Other packs", "KJNodes: WanVideoNAG", on="transformers")
def test_kjnodes_normalised_attention_guidance(check_masked, wan):
    node = packs.load("ComfyUI-KJNodes")["WanVideoNAG"]
    patched = node().patch(wan.patcher, tiny.cond(wan, 2), 11.0, 0.25, 2.5)[0]
    check_masked(wan, patched, size=(8, 12))


@pytest.mark.compatibility("Other packs", "KJNodes: WanVideoEnhanceAVideoKJ", on="transformers")
def test_kjnodes_enhance_a_video(check_masked, wan):
    node = packs.load("ComfyUI-KJNodes")["WanVideoEnhanceAVideoKJ"]
    patched = node().enhance(wan.patcher, 2.0, {"samples": torch.zeros(1, 16, 3, 8, 12)})[0]
    check_masked(wan, patched, size=(8, 12))


# -- GGUF ------------------------------------------------------------------------------------------------------------


def quantised(model: tiny.Tiny, path) -> None:
    """The model's weights as a GGUF file, those it can hold in Q8_0."""
    writer = gguf.GGUFWriter(str(path), "sd3")
    for name, weight in model.patcher.model.diffusion_model.state_dict().items():
        values = weight.float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if values.ndim == 2 and values.shape[-1] % 32 == 0 and values.shape[0] > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.compatibility("Other packs", "ComfyUI-GGUF: UnetLoaderGGUF", on="transformers")
def test_gguf(check_masked, tmp_path, monkeypatch):
    import folder_paths

    node = packs.load("ComfyUI-GGUF")["UnetLoaderGGUF"]
    model = tiny.sd3(blocks=2)
    quantised(model, tmp_path / "tiny.gguf")
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: str(tmp_path / name))
    (patcher,) = node().load_unet("tiny.gguf")
    assert type(patcher).__name__ == "GGUFModelPatcher"
    loaded = tiny.Tiny(patcher, pooled=64, channels=16)
    assert check_masked(loaded).count("partial")
    near = np.corrcoef(tiny.sample(loaded, steps=3).flatten(), tiny.sample(model, steps=3).flatten())[0, 1]
    assert near > 0.99


# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion"])
@pytest.mark.compatibility("Other packs", "TiledDiffusion: {method}")
def test_tiled_diffusion(check_masked, sd15, method):
    node = packs.load("ComfyUI-TiledDiffusion")["TiledDiffusion"]
    check_masked(sd15, node().apply(sd15.patcher, method, 96, 96, 32, 2)[0])


@pytest.mark.compatibility("Other packs", "UltimateSDUpscale")
@torch.inference_mode()
def test_ultimate_sd_upscale(observe):
    node = packs.load("ComfyUI_UltimateSDUpscale")["UltimateSDUpscaleNoUpscale"]
    patcher, clip, vae = demo.load_demo()
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    image = torch.rand(1, 256, 512, 3, generator=torch.Generator().manual_seed(0))

    def upscaled(model) -> torch.Tensor:
        return node().upscale(
            image, model, encode("a red circle"), encode(""), vae, 1, 12, 3.0, "euler", "normal", 0.8, "Linear", 256, 256, 8, 0,
            "None", 1.0, 8, 64, 16, True, False,
        )[0]  # fmt: skip

    trace = Trace()
    used = attach(patcher, CONFIG, trace)
    first, again = upscaled(used), upscaled(used)
    assert torch.equal(first, again) and torch.isfinite(first).all() and not torch.equal(first, upscaled(patcher))
    assert len(trace.runs) >= 4 and {run.shape for run in trace.runs} == {(1, 4, 32, 32)}
    observe(trace.last)


# -- Impact-Pack -----------------------------------------------------------------------------------------------------


@pytest.mark.compatibility("Other packs", "Impact-Pack: RegionalSampler")
def test_impact_regional_sampler(observe, sd15, monkeypatch):
    """It calls the sampler anew for every step of every region, so no run is long enough to forecast anything."""
    import server

    import nodes

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(server.PromptServer, "instance", server.PromptServer(loop), raising=False)
    impact = packs.part("ComfyUI-Impact-Pack", "modules", "impact.special_samplers")
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    mask = torch.zeros(1, *SIZE)
    mask[:, :, : SIZE[1] // 2] = 1

    def regional(patcher) -> torch.Tensor:
        def sampler(prompt):
            pipe = (patcher, None, None, tiny.cond(sd15, prompt), tiny.cond(sd15, 2))
            return impact.KSamplerAdvancedProvider.doit(4.0, "euler", "normal", pipe)[0]

        regions = impact.RegionalPrompt.doit(mask, sampler(5))[0]
        latent = {"samples": torch.zeros(1, 4, *SIZE)}
        settings = (1, 0, "ignore", 5, 2, 1.0, latent, sampler(1), regions, 2, True, "DISABLE", "AUTO", 0.3)
        return impact.RegionalSampler.doit(*settings)[0]["samples"]

    trace = Trace()
    used = attach(sd15.patcher, CONFIG, trace)
    assert torch.equal(regional(used), regional(used)) and torch.equal(regional(used), regional(sd15.patcher))
    observe(trace.last)
    loop.close()


# -- AnimateDiff-Evolved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["theirs first", "ours first"])
@pytest.mark.compatibility("Other packs", "AnimateDiff-Evolved: sliding context windows, {first}")
def test_animatediff_contexts(observe, sd15, first):
    """Frames of a window at a time: where our node sees them so, forecasts and windows would mix frames."""
    classes = packs.load("ComfyUI-AnimateDiff-Evolved")
    (contexts,) = classes["ADE_LoopedUniformContextOptions"]().create_options(3, 1, 1, False)
    evolve = lambda model: classes["ADE_UseEvolvedSampling"]().use_evolved_sampling(  # noqa: E731
        model, "use existing", context_options=contexts
    )[0]
    settings = {"size": (8, 8), "batch": 5, "steps": 8}
    trace, given = Trace(), upper_left(8, 8)
    if first == "ours first":
        used = evolve(attach(sd15.patcher, CONFIG, trace, given=given))
    else:
        used = attach(evolve(sd15.patcher), CONFIG, trace, given=given)
    latent, again = (tiny.sample(sd15, used, **settings) for _ in range(2))
    assert torch.isfinite(latent).all() and torch.equal(latent, again)
    if trace.last.count("dense") == len(trace.last.evaluations):
        assert torch.equal(latent, tiny.sample(sd15, evolve(sd15.patcher), **settings))
    observe(trace.last)
    assert not trace.last.count("partial")


def motion_file(loader, path) -> None:
    """A motion module of SDXL's layout, the smallest there is; the pack holds its widths to the published ones."""
    inside = loader.load_motion_model.__globals__["load_motion_module_gen2"].__globals__
    place = "down_blocks.2.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    state, info = inside["normalize_ad_state_dict"]({place: torch.zeros(1, 32, 1280)}, "tiny")
    module = inside["AnimateDiffModel"](mm_state_dict=state, mm_info=info)
    weights = {name: torch.full(w.shape, 0.001).half() for name, w in module.state_dict().items()}
    save_file(weights, path)


@pytest.mark.compatibility("Other packs", "AnimateDiff-Evolved: motion module")
def test_animatediff_motion_module(observe, tmp_path):
    """All frames at once; where they are computed in part, a motion module would lack the others."""
    import folder_paths

    classes = packs.load("ComfyUI-AnimateDiff-Evolved")
    motion_file(classes["ADE_LoadAnimateDiffModel"], tmp_path / "tiny.safetensors")
    folder_paths.add_model_folder_path("animatediff_models", str(tmp_path))
    config = tiny.unet_config(mult=(1, 2, 4), depth=(0,) * 6, middle=-1, adm=2816, linear=True)
    config.update(model_channels=320, num_res_blocks=[2] * 3, transformer_depth_output=[0] * 9)
    config = supported.SDXL(config)
    config.unet_config.update(num_heads=-1, num_head_channels=64)
    config.set_inference_dtype(torch.float32, None)
    patcher = tiny.ModelPatcher(config.get_model({}, "", device=torch.device("cpu")), torch.device("cpu"), torch.device("cpu"))
    with torch.no_grad():
        noise = 0.02 * torch.randn(2**20)  # of which 300 million weights are made: drawing them all takes too long
        for weight in patcher.model.diffusion_model.parameters():
            weight.copy_(noise.repeat(-(-weight.numel() // len(noise)))[: weight.numel()].view_as(weight))
    model = tiny.Tiny(patcher, pooled=1280)
    (motion,) = classes["ADE_LoadAnimateDiffModel"]().load_motion_model("tiny.safetensors")
    (motions,) = classes["ADE_ApplyAnimateDiffModelSimple"]().apply_motion_model(motion)
    (evolved,) = classes["ADE_UseEvolvedSampling"]().use_evolved_sampling(patcher, "use existing", m_models=motions)
    settings, given, trace = {"size": (8, 8), "batch": 3, "steps": 7}, upper_left(8, 8), Trace()
    used = attach(evolved, CONFIG, trace, given=given)
    latent = tiny.sample(model, used, **settings)
    assert torch.isfinite(latent).all() and torch.equal(latent, tiny.sample(model, used, **settings))
    assert trace.last.count("skipped") and not trace.last.count("partial")
    observe(trace.last)


# -- Advanced-ControlNet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.compatibility("Other packs", "Advanced-ControlNet: ACN_AdvancedControlNetApply_v2")
def test_advanced_controlnet(check_masked, sd15, strength):
    node = packs.load("ComfyUI-Advanced-ControlNet")["ACN_AdvancedControlNetApply_v2"]
    positive, negative = tiny.cond(sd15, 1), tiny.cond(sd15, 2)
    hint = torch.rand(1, *(8 * side for side in SIZE), 3, generator=torch.Generator().manual_seed(0))
    mask = torch.linspace(0, 1, SIZE[1]).expand(1, *SIZE)
    controlled = node.execute(positive, negative, control_net(sd15), hint, strength, 0.0, 0.9, mask_optional=mask).args
    assert not torch.equal(tiny.sample(sd15, positive=controlled[0], steps=2, size=SIZE), tiny.sample(sd15, steps=2, size=SIZE))
    check_masked(sd15, positive=controlled[0], negative=controlled[1])


def control_net(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    config = {k: v for k, v in model.patcher.model.model_config.unet_config.items() if k not in ("out_channels", "dtype")}
    device, operations = torch.device("cpu"), comfy.ops.disable_weight_init
    net = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dims=2, dtype=torch.float32, device=device, operations=operations
    )
    tiny.randomise(net, seed=3)
    return comfy.controlnet.ControlNet(net, load_device=comfy.model_management.get_torch_device())


def test_a_vanilla_run_beside_all_these_packs_is_vanilla(sd15):
    """The packs stay imported; what they patched in ComfyUI itself must not meet our run."""
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, *SIZE), 1)
    off = attach(sd15.patcher, HighlightConfig(enabled=False), Trace())
    assert noise.shape == (1, 4, *SIZE) and torch.equal(tiny.sample(sd15, off), tiny.sample(sd15))
