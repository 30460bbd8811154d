"""Text that is masked, lengthened, cut short or added to on its way to attention, on real models of ComfyUI."""

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.merging.matcher import Matcher
from highlight_diffusion.engine.region.heatmap import TokenWeights
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host import dit
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.words import WORDS

from . import tiny
from .classes import CLASSES
from .test_more_families import OLD

MERGING = SDTMConfig(r=0.5, protect_steps=3)
TEXT, REDUX = 16, 8  # tokens of the prompt, and of the picture that a style model puts behind them


def redux(model: tiny.Tiny, seed: int) -> list:
    """Conditioning as Apply Style Model returns it for `attn_bias` at strength .5 (ComfyUI's nodes.py)."""
    made, bias = tiny.cond(model, seed, tokens=TEXT + REDUX), torch.log(torch.tensor(0.5))
    mask = torch.zeros(1, TEXT + REDUX + 1, TEXT + REDUX + 1, dtype=torch.float16)
    mask[:, :TEXT, TEXT : TEXT + REDUX] = mask[:, TEXT + REDUX :, TEXT : TEXT + REDUX] = bias
    made[0][1].update(attention_mask=mask, attention_mask_img_shape=(1, 1))
    return made


def filled_up(model: tiny.Tiny, seed: int) -> list:
    """Conditioning of which the last six tokens are padding, which HunyuanVideo masks."""
    made, mask = tiny.cond(model, seed, tokens=24), torch.ones(1, 24, dtype=torch.long)
    mask[:, 18:] = 0
    made[0][1]["attention_mask"] = mask
    return made


@pytest.mark.parametrize(("make", "conditioning", "size"), [
    pytest.param(tiny.flux, redux, None, id="flux"),
    pytest.param(tiny.chroma, redux, None, id="chroma"),
    pytest.param(tiny.hunyuan_video, filled_up, (8, 12), id="hunyuan_video",
                 marks=pytest.mark.skipif(OLD, reason="HunyuanVideo is forecast alone on this ComfyUI")),
])  # fmt: skip
def test_bug_a_mask_of_text_and_picture_stopped_merging(make, conditioning, size):
    """The blocks' tokens were merged and their mask was not: "size of tensor a must match the size of tensor b"."""
    model, trace = make(), Trace()
    given = {"steps": 6, "cfg": 1.0, "size": size, "positive": conditioning(model, 1)}
    vanilla = tiny.sample(model, **given)
    latent = tiny.sample(model, attach_merging(model.patcher, MERGING, trace), **given)
    assert trace.last.letters.count("M") >= 2, trace.last.letters
    error = (latent - vanilla).norm() / vanilla.norm()
    assert 0 < error < 0.5, error
    exact = SDTMConfig(r=0.5, protect_steps=3, threshold=1.0)  # nothing is as alike as that
    assert torch.equal(tiny.sample(model, attach_merging(model.patcher, exact, trace), **given), vanilla)
    unmasked = {
        **given,
        "positive": [[given["positive"][0][0], {k: v for k, v in given["positive"][0][1].items() if "mask" not in k}]],
    }
    assert not torch.equal(tiny.sample(model, **unmasked), vanilla), "the mask does something"


def test_bug_a_mask_of_text_and_picture_stopped_the_fast_preset():
    model, trace = tiny.flux(), Trace()
    patcher = attach(model.patcher, HighlightConfig(pace=PACES["fast"]), trace)
    latent = tiny.sample(model, patcher, steps=8, cfg=1.0, positive=redux(model, 1), size=(32, 32))
    assert torch.isfinite(latent).all() and "M" in trace.last.letters, trace.last.letters


def named(model: tiny.Tiny, values: int, tokens: int) -> list:
    """Conditioning of so many tokens with the weights of so many, as Highlight Words leaves them, of which one is named."""
    made = tiny.cond(model, 1, tokens=tokens)
    weights = tuple(float(i == 3) for i in range(values))
    made[0][1][WORDS] = TokenWeights(weights, named=True, words=(("star", (3,)), ("last", (values - 1,))))
    if "attention_mask" in made[0][1]:  # by which Mochi leaves out what fills the text up
        made[0][1]["attention_mask"][:, tokens // 2 :] = 0
    return made


@pytest.mark.parametrize(("name", "values", "tokens"), [
    ("flux", 16, 24), ("hunyuan_dit", 77, 77), ("hidream", 40, 40), ("GenmoMochi", 77, 77), ("sd15", 77, 154),
])  # fmt: skip
def test_bug_words_where_the_attended_text_is_not_as_long_as_the_conditioning_they_came_from(name, values, tokens):
    """Text that a node put behind it, a second encoder's, or less of it: Highlight Words stopped the run, or, where one length
    was a multiple of the other, named a further token."""
    model, trace = {"flux": tiny.flux, "hunyuan_dit": tiny.hunyuan_dit, "hidream": tiny.hidream, "sd15": tiny.sd15}.get(
        name, CLASSES.get(name)
    )(), Trace()  # fmt: skip
    heard = []
    own = dit.HeatmapAccumulator.add

    def add(self, maps, grid, prompt=None, weights=None):
        own(self, maps, grid, prompt, weights)
        heard.append((maps.shape[1], self.weights[prompt]))

    patch = pytest.MonkeyPatch()
    patch.setattr(dit.HeatmapAccumulator, "add", add)
    try:
        latent = tiny.sample(
            model, attach(model.patcher, HighlightConfig(), trace), steps=8, cfg=1.0, positive=named(model, values, tokens)
        )
    finally:
        patch.undo()
    parts = latent.unbind() if latent.is_nested else [latent]
    assert all(torch.isfinite(part).all() for part in parts) and heard
    for attended, weights in heard:
        assert len(weights.values) == attended and [i for i, value in enumerate(weights.values) if value] == [3]


def test_bug_memory_that_runs_out_where_attention_is_captured_is_computed_without(monkeypatch):
    """Of a video the scores alone may be more than is left, of which ComfyUI's estimate knows nothing."""

    def short(q, k, heads):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB")

    model, trace = tiny.wan(), Trace()
    monkeypatch.setattr(dit, "token_maps", short)
    latent = tiny.sample(model, attach(model.patcher, HighlightConfig(), trace), steps=12, cfg=3.0, size=(8, 12))
    reasons = [e.reason for e in trace.last.evaluations]
    assert torch.isfinite(latent).all() and trace.last.count("skipped")
    assert (
        sum(reason.startswith("memory ran out while the highlight was looked for: computed without") for reason in reasons) == 1
    )


def test_bug_tokens_were_matched_by_a_branch_that_is_not_computed(monkeypatch):
    """Dual CFG at 1 for the second prompt gives three branches, the first of zeros; tokens were alike in it at random."""
    model, trace, learnt = tiny.flux(), Trace(), []
    own = Matcher.learn
    monkeypatch.setattr(Matcher, "learn", lambda self, latent: (learnt.append(float(latent.abs().max())), own(self, latent))[1])
    guider = Guider_DualCFG(attach_merging(model.patcher, MERGING, trace))
    guider.set_conds(tiny.cond(model, 1), tiny.cond(model, 3), tiny.cond(model, 2))
    guider.set_cfg(3.0, 1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", 6)
    latent = model.latent(1, None)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)
    assert "M" in trace.last.letters and learnt and min(learnt) > 0


def test_bug_flash_attention_warned_at_every_attention_of_merged_tokens(monkeypatch):
    """It takes no mask, says so, and goes on with PyTorch's, which such calls are handed to at once now."""
    attention = comfy.ldm.modules.attention
    model, trace, masks = tiny.flux(), Trace(), []

    def attention_flash(q, k, v, heads, mask=None, **kwargs):
        masks.append(mask)
        return attention.attention_pytorch(q, k, v, heads, mask=mask, **kwargs)

    flash = attention.wrap_attn(attention_flash)
    before = tiny.sample(model, attach_merging(model.patcher, MERGING, trace), steps=6, cfg=1.0)
    monkeypatch.setattr(attention, "optimized_attention", flash)
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", flash)
    latent = tiny.sample(model, attach_merging(model.patcher, MERGING, trace), steps=6, cfg=1.0)
    assert "M" in trace.last.letters and torch.allclose(latent, before, atol=1e-5)
    assert masks and all(mask is None for mask in masks)
