"""Bugs that were found by reading, on tiny real UNets of ComfyUI; each test is named after one."""

from types import MethodType

import comfy.hooks
import comfy.samplers
import comfy_extras.nodes_advanced_samplers
import pytest
import torch
import torch.nn.functional as F
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.placement.traits import SamplerTraits
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host import profiling
from highlight_diffusion.host.attach import attach
from highlight_diffusion.nodes.profile import HighlightProfile

from . import tiny
from .sampling import hooked


def corner(size: tuple[int, int]) -> UserMasks:
    mask = torch.zeros(1, *size)
    mask[:, 2:6, 2:6] = 1
    return UserMasks(mask)


def wrapped_around(conv: torch.nn.Conv2d, by_method: bool) -> None:
    """Let a convolution take the other side of the frame beyond it: as torch does, or as packs for tiled pictures do."""
    if not by_method:
        conv.padding_mode = "circular"
        return

    def forward(self, x, weight, bias):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias, self.stride, 0, self.dilation, self.groups)

    conv._conv_forward = MethodType(forward, conv)


@pytest.mark.parametrize("by_method", [False, True], ids=["padding mode", "replaced forward"])
def test_bug_pictures_that_can_be_tiled_stopped_at_the_first_regional_evaluation(by_method):
    model, trace = tiny.sd15(), Trace()
    for conv in model.patcher.model.diffusion_model.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size == (3, 3):
            wrapped_around(conv, by_method)
    config = HighlightConfig(interval=(4,), warmup=3, correct="always", max_area=1.0)
    latent = tiny.sample(model, attach(model.patcher, config, trace, given=corner(model.size)), steps=12)
    reasons = {e.reason for e in trace.last.evaluations if e.kind == "skipped"}
    assert torch.isfinite(latent).all() and not trace.last.count("partial")
    assert any("do not pad with zeros" in reason for reason in reasons), reasons
    shallow = attach(model.patcher, HighlightConfig(shallow="always", pace=8.0), trace)
    assert torch.isfinite(tiny.sample(model, shallow, steps=12)).all() and trace.last.count("shallow")


def keyframes(model: tiny.Tiny, later: float) -> list:
    """A prompt with a LoRA whose strength is 0 at first and `later` from half of the schedule on."""
    conditioning, group = hooked(model), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (later, 0.5)):
        group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    conditioning[0][1]["hooks"].set_keyframes_on_hooks(group)
    return conditioning


def test_bug_keyframes_of_a_hook_switched_within_a_gap():
    """What was predicted before is of another model: the step at which it switches is dense, and the trace says why."""
    model, trace = tiny.sd15(), Trace()
    patcher = attach(model.patcher, HighlightConfig(interval=(6,), warmup=3, correct="never"), trace)
    tiny.sample(model, patcher, steps=20, positive=keyframes(model, 2.0), scheduler="simple")
    changed = [e.step for e in trace.last.evaluations if e.reason == "the conditioning changed"]
    half = model.patcher.get_model_object("model_sampling").percent_to_sigma(0.5)
    first = next(i for i, sigma in enumerate(trace.last.sigmas) if sigma <= half)
    assert changed == [first], (changed, first, [(e.kind, e.reason) for e in trace.last.evaluations])


def test_bug_samplers_were_looked_for_by_names_that_comfyui_does_not_give_them():
    """uni_pc's function is sample_unipc, and the alternative of SamplerEulerCFG++ is sample_euler_pp."""
    for name in ("uni_pc", "uni_pc_bh2"):
        function = comfy.samplers.sampler_object(name).sampler_function
        assert SamplerTraits.of(function.__name__).multistep, function.__name__
    alternative = comfy_extras.nodes_advanced_samplers.sample_euler_pp.__name__
    assert SamplerTraits.of(alternative).cfg_pp


def test_bug_profile_a_model_took_an_empty_latent_for_another_scale(monkeypatch):
    """An empty latent says of how many pixels its cells are, by which ComfyUI's own samplers fit it to the model."""
    model, sizes = tiny.flux2(), []
    monkeypatch.setattr(
        profiling.comfy.sample, "prepare_noise", lambda latent, seed: sizes.append(tuple(latent.shape[-2:])) or latent
    )
    monkeypatch.setattr(profiling.comfy.sample, "sample_custom", lambda *args, **kwargs: (_ for _ in ()).throw(Stop))
    latent = {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}
    with pytest.raises(Stop):
        HighlightProfile.execute(
            model.patcher, tiny.cond(model, 1), tiny.cond(model, 2), latent, seed=0, cfg=1.0, pictures=1, steps=8
        )
    known = len(profiling.downscale_of({})) > 0
    assert sizes == [(8, 8) if known else (16, 16)]


class Stop(Exception):
    """Ends a test before anything is sampled."""
