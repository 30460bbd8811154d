"""IPAdapter_plus, unmodified, beside ours: weights of the true file layout at tiny widths, its own loader and nodes."""

from dataclasses import replace

import comfy.clip_vision
import comfy.patcher_extension
import comfy.supported_models as supported
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.unet_blocks import depth_and_alignment
from highlight_diffusion.engine.partial.unet_window import Window
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Evaluation, Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.call import ModelCall
from highlight_diffusion.host.demo import clip_vision
from highlight_diffusion.host.run import KEY
from highlight_diffusion.host.unet import affine
from safetensors.torch import save_file

from . import nets, packs, tiny

NODES = packs.load("ComfyUI_IPAdapter_plus")
CONFIG = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
SIZE, BOX = (16, 24), (4, 12, 8, 16)
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_channels": 3, "image_size": 224, "patch_size": 32, "projection_dim": 24,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip

AT_ONE = Evaluation(0, 0, 1.0, "dense", "", 1.0)  # what is recorded and computed below is at one sigma


def sd15() -> tiny.Tiny:
    """SD1.5's blocks with their attention, sixteen places, at a tenth of the width."""
    config = tiny.unet_config(mult=(1, 2, 2, 2), depth=(1, 1, 1, 1, 1, 1, 0, 0))
    config.update(num_res_blocks=[2] * 4, transformer_depth_output=[1] * 9 + [0] * 3)
    config = supported.SD15(config)
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    return tiny.Tiny(tiny.build(config))


def sdxl() -> tiny.Tiny:
    """SDXL's blocks, seventy places for an adapter."""
    config = tiny.unet_config(mult=(1, 1, 1), depth=(0, 0, 2, 2, 10, 10), middle=10, adm=2816, linear=True)
    config.update(num_res_blocks=[2] * 3, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10])
    config = supported.SDXL(config)
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return tiny.Tiny(tiny.build(config), pooled=1280)


def places(unet) -> list[torch.nn.Module]:
    """Cross-attentions in the order in which adapters number them: inwards, outwards, middle."""
    named = dict(unet.named_modules())
    found = [n for part in ("input_blocks", "output_blocks", "middle_block") for n in named if n.startswith(part)]
    return [named[name] for name in found if name.endswith("attn2")]


def adapter_file(model: tiny.Tiny, plus: bool, path) -> str:
    """A file as the published ones are: "image_proj" and "ip_adapter", of which the odd numbers are the cross-attentions."""
    generator = torch.Generator().manual_seed(7)
    wide = 2048 if len(places(model.patcher.model.diffusion_model)) == 70 else 64  # how the pack tells SDXL's
    random = lambda *shape: torch.randn(*shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    if plus:
        inner, hidden = 12 * 64, VISION["hidden_size"]
        image = {"latents": random(1, 16, wide), "proj_in.weight": random(wide, hidden), "proj_in.bias": random(wide),
                 "proj_out.weight": random(wide, wide), "proj_out.bias": random(wide),
                 "norm_out.weight": torch.ones(wide), "norm_out.bias": torch.zeros(wide)}  # fmt: skip
        for i in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                image |= {f"layers.{i}.{norm}.weight": torch.ones(wide), f"layers.{i}.{norm}.bias": torch.zeros(wide)}
            image |= {f"layers.{i}.0.to_q.weight": random(inner, wide), f"layers.{i}.0.to_kv.weight": random(2 * inner, wide),
                      f"layers.{i}.0.to_out.weight": random(wide, inner), f"layers.{i}.1.1.weight": random(4 * wide, wide),
                      f"layers.{i}.1.3.weight": random(wide, 4 * wide)}  # fmt: skip
    else:
        image = {"proj.weight": random(4 * wide, VISION["projection_dim"]), "proj.bias": random(4 * wide),
                 "norm.weight": torch.ones(wide), "norm.bias": torch.zeros(wide)}  # fmt: skip
    weights = {f"image_proj.{name}": weight for name, weight in image.items()}
    for number, place in enumerate(places(model.patcher.model.diffusion_model)):
        width = place.to_q.weight.shape[0]
        weights |= {f"ip_adapter.{2 * number + 1}.to_{kv}_ip.weight": random(width, wide) for kv in "kv"}
    save_file(weights, path)
    return str(path)


@pytest.fixture(scope="module")
def vision() -> comfy.clip_vision.ClipVisionModel:
    model = clip_vision(VISION)
    tiny.randomise(model.model)
    return model


KINDS = {"plain": (sd15, False), "plus": (sd15, True), "SDXL": (sdxl, False)}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> tiny.Tiny:
    return KINDS[kind][0]()


@pytest.fixture(scope="module")
def weights(kind, model, tmp_path_factory) -> dict:
    import folder_paths

    folder = tmp_path_factory.mktemp("ipadapter")
    adapter_file(model, KINDS[kind][1], folder / "tiny.safetensors")
    folder_paths.add_model_folder_path("ipadapter", str(folder))
    folder_paths.filename_list_cache.pop("ipadapter", None)
    try:
        return NODES["IPAdapterModelLoader"]().load_ipadapter_model("tiny.safetensors")[0]
    finally:
        folder_paths.folder_names_and_paths["ipadapter"][0].remove(str(folder))


@pytest.fixture
def adapted(weights, vision):
    """Applies the pack's node to a MODEL."""

    def apply(patcher, seed: int = 0, node: str = "IPAdapterAdvanced", **kwargs):
        picture = nets.picture((28, 28), seed, batch=kwargs.pop("pictures", 1))
        settings = {"weight": 0.8, "weight_type": "linear", "clip_vision": vision, **kwargs}
        return NODES[node]().apply_ipadapter(patcher, weights, image=picture, **settings)[0]

    return apply


def half() -> torch.Tensor:
    """A mask of the frame's left, finer than the latent."""
    mask = torch.zeros(1, 8 * SIZE[0], 8 * SIZE[1])
    mask[:, :, : 4 * SIZE[1]] = 1
    return mask


CHAINS = {
    "alone": lambda apply, patcher: apply(patcher),
    "eased by depth": lambda apply, patcher: apply(patcher, weight_type="ease in-out", embeds_scaling="K+mean(V) w/ C penalty"),
    "two in a row": lambda apply, patcher: apply(apply(patcher, 0), 1, weight=0.5),
    "with a mask": lambda apply, patcher: apply(patcher, attn_mask=half()),
    "two in a row, one with a mask": lambda apply, patcher: apply(apply(patcher, 0, attn_mask=half()), 1),
}


def given() -> UserMasks:
    mask = torch.zeros(1, *SIZE)
    mask[:, BOX[0] : BOX[1], BOX[2] : BOX[3]] = 1
    return UserMasks(mask)


def sample(model, patcher, config=None, **kwargs):
    trace = Trace()
    patcher = attach(patcher, config, trace, given=given()) if config else patcher
    return tiny.sample(model, patcher, **{"size": SIZE, "steps": 10, **kwargs}), trace.last


def test_off_is_the_adapter_alone_in_either_order(model, adapted):
    plain, _ = sample(model, model.patcher, steps=4)
    vanilla, _ = sample(model, adapted(model.patcher), steps=4)
    off = HighlightConfig(enabled=False)
    ours_last, _ = sample(model, adapted(model.patcher), off, steps=4)
    ours_first = tiny.sample(model, adapted(attach(model.patcher, off, Trace())), size=SIZE, steps=4)
    assert not torch.equal(plain, vanilla)
    assert torch.equal(ours_last, vanilla) and torch.equal(ours_first, vanilla)


ROW = "Image prompts"


@pytest.mark.compatibility(ROW, "IPAdapter_plus: {kind}, in either order")
def test_both_orders_are_accelerated_alike_and_nothing_leaks(observe, model, adapted):
    last, run = sample(model, adapted(model.patcher), CONFIG)
    ours, trace = attach(model.patcher, CONFIG, Trace(), given=given()), Trace()
    first = attach(model.patcher, CONFIG, trace, given=given())
    runs = [tiny.sample(model, adapted(first), size=SIZE, steps=10) for _ in range(2)]
    assert torch.equal(runs[0], last) and torch.equal(runs[1], last)
    assert run.count("partial") and run.count("skipped") and [e.kind for e in trace.last.evaluations] == [
        e.kind for e in run.evaluations]  # fmt: skip
    observe(run)
    observe(trace.last)
    alone, _ = sample(model, model.patcher, CONFIG)
    assert torch.equal(tiny.sample(model, ours, size=SIZE, steps=10), alone), "a sibling has no adapter"


def errors_of_a_window(model, adapted, batch: int = 1, size=SIZE, box=BOX, steps: int = 2) -> tuple[list[float], list[float]]:
    """Every dense evaluation is followed by a window of the last image at the same x and sigma, and by one without the
    adapter, the negative control. How far both are off inside, as a share of the largest value there."""
    errors, without = [], []

    def again(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        args = (x, t, c_concat, c_crossattn, control)
        dense = executor(*args, transformer_options, **kwargs)
        state = transformer_options[KEY]
        depth, _ = depth_and_alignment(model.patcher.model.diffusion_model, size, 2)
        window = Window(box, size, affine, ImageRows(batch - 1, batch), depth)
        window.begin(1.0)
        call = ModelCall(executor, *args, transformer_options, kwargs)
        assert torch.equal(state.apply_model(Job(AT_ONE, record=(window,)), call), dense)
        expected = window.crop(window.rows.of(dense))

        def error(options) -> float:
            part = window.crop(
                window.rows.of(state.apply_model(Job(AT_ONE, compute=(window,)), replace(call, options=options)))
            )
            return float((part - expected).abs().max() / expected.abs().max())

        errors.append(error(transformer_options))
        without.append(error({**transformer_options, "patches_replace": {}}))
        return dense

    patcher = attach(adapted, HighlightConfig(enabled=False), Trace())
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "again", again)
    tiny.sample(model, patcher, size=size, steps=steps, batch=batch)
    return errors, without


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_window_equals_dense_where_it_was_recorded(kind, model, adapted, chain, batch):
    if kind == "SDXL" and (batch, chain) != (1, "two in a row, one with a mask"):
        return  # seventy places take their time
    errors, without = errors_of_a_window(model, CHAINS[chain](adapted, model.patcher), batch)
    assert len(errors) >= 2 and max(errors) < 2e-5 and max(without) > 1e-3, (errors, without)


def test_a_window_beside_a_mask_at_a_size_that_nothing_divides(kind, model, adapted):
    """680x488 pixels, whose rows and columns IPAdapter tells by the number of tokens."""
    if kind != "plain":
        return  # of the kinds only the number of places and of tokens differs
    errors, without = errors_of_a_window(model, adapted(model.patcher, attn_mask=half()), 1, (85, 61), (24, 40, 16, 32), 1)
    assert max(errors) < 2e-5 and max(without) > 1e-3, (errors, without)


@pytest.mark.parametrize("batch", [2, 4])
def test_a_window_beside_a_mask_for_each_picture(kind, model, adapted, batch):
    """Two masks in a batch of two, and in one of four."""
    if kind != "plain":
        return  # as above
    masks = torch.cat([half(), 1 - half()])
    errors, without = errors_of_a_window(model, adapted(model.patcher, attn_mask=masks), batch)
    assert max(errors) < 2e-5 and max(without) > 1e-3, (errors, without)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.compatibility(ROW, "IPAdapter_plus: {kind}, {chain}")
def test_chains_are_accelerated(check, model, adapted, chain):
    check(model, CHAINS[chain](adapted, model.patcher), config=CONFIG, given=given(), size=SIZE, steps=7)


@pytest.mark.compatibility(ROW, "IPAdapter_plus: {kind}, a picture for each of a batch")
def test_each_image_of_a_batch_has_its_own(observe, model, adapted):
    """ "IPAdapter Batch" gives the second image of a batch another picture than the first."""
    patcher = adapted(model.patcher, node="IPAdapterBatch", pictures=2)
    latent, run = sample(model, patcher, CONFIG, batch=2)
    assert torch.isfinite(latent).all() and run.count("partial")
    assert torch.equal(sample(model, patcher, CONFIG, batch=2)[0], latent)
    observe(run)
    vanilla, _ = sample(model, patcher, batch=2)
    assert torch.equal(sample(model, patcher, HighlightConfig(enabled=False), batch=2)[0], vanilla)


@pytest.mark.compatibility(ROW, "IPAdapter_plus: {kind}, for a share of the schedule")
def test_an_adapter_that_ends_voids_the_forecast(observe, model, adapted):
    patcher = adapted(model.patcher, start_at=0.0, end_at=0.5)
    latent, run = sample(model, patcher, replace(CONFIG, interval=(7,)), steps=20)  # it ends within a gap
    assert torch.equal(sample(model, patcher, replace(CONFIG, interval=(7,)), steps=20)[0], latent)
    observe(run)
    changed = [e for e in run.evaluations if e.reason == "the conditioning changed"]
    assert len(changed) == 1 and changed[0].kind == "dense" and run.count("skipped")
    ended = float(model.patcher.get_model_object("model_sampling").percent_to_sigma(0.5))
    assert changed[0].sigma < ended <= run.evaluations[changed[0].index - 1].sigma


@pytest.mark.compatibility(ROW, "IPAdapter_plus: {kind}, beside a ControlNet")
def test_beside_a_control_net(observe, model, adapted):
    net = nets.controlnet(model)
    positive, negative = nets.applied(net, tiny.cond(model, 1), tiny.cond(model, 2), nets.picture(SIZE), 0.7)
    patcher = adapted(model.patcher, attn_mask=half())
    conditioning = {"positive": positive, "negative": negative}
    vanilla, _ = sample(model, patcher, **conditioning)
    latent, run = sample(model, patcher, CONFIG, **conditioning)
    off, _ = sample(model, patcher, HighlightConfig(enabled=False), **conditioning)
    assert torch.equal(off, vanilla) and torch.equal(sample(model, patcher, CONFIG, **conditioning)[0], latent)
    observe(run)
    assert run.count("partial") and {e.control for e in run.evaluations if e.kind == "partial"} == {"reused"}
