"""What broke other accelerators, by their users' reports, tried on this one: docs/other-packs-bugs.md says which is which."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.supported_models as supported
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_model_advanced import (
    ModelSamplingAuraFlow,
    ModelSamplingContinuousEDM,
    ModelSamplingContinuousV,
    ModelSamplingDiscrete,
    ModelSamplingFlux,
    ModelSamplingSD3,
)
from highlight_diffusion.engine.config import PACES, HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.report.numbers import as_text, report
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach, attach_merging
from torch.utils._python_dispatch import TorchDispatchMode

from . import tiny
from .sampling import reasons, run_thrice

pytestmark = pytest.mark.beside
WRAPPERS = comfy.patcher_extension.WrappersMP
UNETS = {"sd15": tiny.sd15, "sdxl": tiny.sdxl}
PARTS = HighlightConfig(interval=(4,), warmup=3, threshold=0.9, halo=0, max_area=1.0, correct="always")
SHALLOW = HighlightConfig(shallow="always", correct="never", pace=8.0)
OFF = HighlightConfig(enabled=False)
BOTH = ["sd15", "sd3"]


@cache
def model(name: str) -> tiny.Tiny:
    return {**UNETS, **tiny.TRANSFORMERS}[name]()


def corner(size: tuple[int, int]) -> UserMasks:
    mask = torch.zeros(1, *size)
    mask[:, size[0] // 4 : size[0] // 2 + 1, : size[1] // 2 + 1] = 1
    return UserMasks(mask)


def attached(subject: tiny.Tiny, config=PARTS, trace: Trace | None = None, size=None, patcher=None):
    """A MODEL with a corner of the frame as its highlight."""
    return attach(patcher or subject.patcher, config, trace or Trace(), given=corner(size or subject.size))


def kinds(trace: Trace) -> list[str]:
    return [e.kind for e in trace.last.evaluations]


def off_by(latent: torch.Tensor, other: torch.Tensor) -> float:
    return float((latent - other).norm() / other.norm())


def test_every_report_has_its_row_and_every_row_a_test_that_is_there(pack):
    rows = re.findall(r"^\| (\d+) \|.*$", (text := (pack / "docs" / "other-packs-bugs.md").read_text()), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 35))
    there = "".join(path.read_text() for path in (pack / "tests").rglob("test_*.py"))
    named = set(re.findall(r"\btest_\w+(?!\w|\.py)", text))
    assert len(named) > 30 and all(f"def {name}(" in there for name in named), [n for n in named if f"def {n}(" not in there]


# -- conds that are computed together in one step and apart in the next ------------------------------------------------


class FreeMemory:
    """Tells ComfyUI, which goes by it at every step, that there is memory for all conds together, or for one at a time."""

    def __init__(self, monkeypatch):
        self.real, self.short, self.steps, self.rows = comfy.model_management.get_free_memory, None, 0, []
        monkeypatch.setattr(comfy.model_management, "get_free_memory", self)

    def __call__(self, device=None, torch_free_too=False):
        if self.short is None:
            return self.real(device, torch_free_too)
        free = 0 if self.short else 2**60
        return (free, free) if torch_free_too else free

    def sample(self, subject: tiny.Tiny, patcher, short: Callable[[int], bool], **kwargs) -> torch.Tensor:
        """Sample a MODEL; it is short of memory in the steps of which `short` is true."""

        def predict(executor, *args, **kwargs):
            self.short = short(self.steps)
            self.steps += 1
            try:
                return executor(*args, **kwargs)
            finally:
                self.short = None

        self.steps, self.rows = 0, []
        clone = patcher.clone()
        clone.add_wrapper_with_key(WRAPPERS.PREDICT_NOISE, "memory", predict)
        hook = subject.patcher.model.diffusion_model.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))
        try:
            return tiny.sample(subject, clone, **kwargs)
        finally:
            hook.remove()


BATCHING = {"apart in every second step": lambda n: n % 2 == 1, "together in every second step": lambda n: n % 2 == 0,
            "together, then apart": lambda n: n > 3, "apart, then together": lambda n: n < 4}  # fmt: skip


@pytest.mark.parametrize("name", [*UNETS, *tiny.TRANSFORMERS])
def test_conds_together_in_one_step_and_apart_in_the_next(monkeypatch, name):
    memory, subject, trace = FreeMemory(monkeypatch), model(name), Trace()
    together = memory.sample(subject, attached(subject, trace=trace), lambda n: False, steps=8)
    expected = kinds(trace)
    assert set(memory.rows) <= {1, 2} and 2 in memory.rows
    for how, short in BATCHING.items():
        latent = memory.sample(subject, attached(subject, trace=trace), short, steps=8)
        assert {1, 2} <= set(memory.rows), how
        assert kinds(trace) == expected and off_by(latent, together) < 1e-4, how
    short = BATCHING["apart in every second step"]
    dense = memory.sample(subject, attached(subject, OFF), short, steps=4)
    assert torch.equal(dense, memory.sample(subject, subject.patcher, short, steps=4))


@pytest.mark.parametrize("name", BOTH)
def test_conds_apart_in_the_second_run_on_a_model(monkeypatch, name):
    memory, subject = FreeMemory(monkeypatch), model(name)
    used = attached(subject)
    first = memory.sample(subject, used, lambda n: False, steps=8)
    second = memory.sample(subject, used, lambda n: True, steps=8)
    assert set(memory.rows) == {1} and off_by(second, first) < 1e-4
    assert torch.equal(second, memory.sample(subject, attached(subject), lambda n: True, steps=8))
    assert torch.equal(memory.sample(subject, used, lambda n: False, steps=8), first)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image"])
def test_tokens_are_merged_for_conds_together_and_apart_alike(monkeypatch, name):
    memory, subject, trace = FreeMemory(monkeypatch), model(name), Trace()
    merged = attach_merging(subject.patcher, SDTMConfig(r=0.5, protect_steps=3), trace)
    together = memory.sample(subject, merged, lambda n: False, steps=8)
    for how, short in BATCHING.items():
        assert off_by(memory.sample(subject, merged, short, steps=8), together) < 1e-4, how
        assert {1, 2} <= set(memory.rows) and any(e.merged is not None for e in trace.last.evaluations), how


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_a_batch_gives_each_picture_what_it_gets_alone(name):
    subject = model(name)

    def sampled(noise: torch.Tensor) -> torch.Tensor:
        conditioning = tiny.cond(subject, 1), tiny.cond(subject, 2)
        return comfy.sample.sample(
            attached(subject),
            noise,
            9,
            7.0,
            "euler",
            "normal",
            *conditioning,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=1,
        )

    noise = torch.randn(3, subject.channels, *subject.size, generator=torch.Generator().manual_seed(5))
    alone = torch.cat([sampled(own[None]) for own in noise])
    for batch in (2, 3):
        assert off_by(sampled(noise[:batch]), alone[:batch]) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "qwen_image"])
def test_prompts_of_77_and_154_tokens_in_turn_on_one_model(name):
    subject = model(name)
    used = attached(subject)
    for tokens in (77, 154, 77, 231):
        positive, trace = tiny.cond(subject, 1, tokens), Trace()
        fresh = tiny.sample(subject, attached(subject, trace=trace), positive=positive, steps=8)
        assert torch.equal(tiny.sample(subject, used, positive=positive, steps=8), fresh)
        assert trace.last.count("skipped") + trace.last.count("partial")


@pytest.mark.parametrize("name", BOTH)
def test_guidance_that_comes_and_goes_with_a_longer_prompt(name):
    subject = model(name)

    class Toggling(comfy.samplers.CFGGuider):
        calls = 0

        def predict_noise(self, *args, **kwargs):
            self.calls += 1
            self.set_cfg(4.0 if self.calls % 4 < 2 else 1.0)
            return super().predict_noise(*args, **kwargs)

    def sampled(patcher) -> torch.Tensor:
        guider = Toggling(patcher)
        guider.set_conds(tiny.cond(subject, 1, 154), tiny.cond(subject, 2))
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", 16)
        noise = torch.randn(1, subject.channels, *subject.size, generator=torch.Generator().manual_seed(3))
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    trace = Trace()
    latent = sampled(attached(subject, trace=trace))
    assert torch.isfinite(latent).all() and torch.equal(latent, sampled(attached(subject)))
    assert torch.equal(sampled(attached(subject, OFF)), sampled(subject.patcher))
    assert len(trace.last.evaluations) == 16 and "the conditioning changed" in reasons(trace.last)


# -- interrupts inside a forward ---------------------------------------------------------------------------------------


class Interrupting:
    """Counts the linear maps and convolutions of each evaluation, and asks ComfyUI to stop in the middle of one of them,
    which the next operation does."""

    def __init__(self, network: torch.nn.Module, trace: Trace, at: tuple[int, int] | None = None):
        self.trace, self.at, self.calls = trace, at, {}
        kept = [m for m in network.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        self.hooks = [m.register_forward_pre_hook(self.called) for m in kept]

    def called(self, *_) -> None:
        evaluation = self.trace.last.evaluations[-1].index
        self.calls[evaluation] = self.calls.get(evaluation, 0) + 1
        if self.at == (evaluation, self.calls[evaluation]):
            comfy.model_management.interrupt_current_processing()

    def __enter__(self) -> "Interrupting":
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()
        comfy.model_management.interrupt_current_processing(False)


WHERE = {
    "dense": lambda e: e.kind == "dense" and not e.recording and e.merged is None, "recording": lambda e: e.recording,
    "listening": lambda e: e.heatmap is not None, "partial": lambda e: e.kind == "partial",
    "shallow": lambda e: e.kind == "shallow", "merged": lambda e: e.merged is not None,
}  # fmt: skip


@pytest.mark.parametrize("name", [*UNETS, *tiny.TRANSFORMERS])
def test_an_interrupt_inside_a_forward_leaves_the_next_run_as_a_fresh_one(name):
    subject = model(name)
    network, met = subject.patcher.model.diffusion_model, set()

    def used(config, trace: Trace):
        if isinstance(config, SDTMConfig):
            return attach_merging(subject.patcher, config, trace)
        return attached(subject, config, trace)

    for config in (PARTS, SHALLOW if name in UNETS else SDTMConfig(r=0.5, protect_steps=3)):
        trace = Trace()
        with Interrupting(network, trace) as whole:
            fresh = tiny.sample(subject, used(config, trace), steps=10)
        planned = trace.last.evaluations
        for what, holds in WHERE.items():
            found = next((e.index for e in planned if holds(e) and e.index in whole.calls), None)
            if found is None or what in met:
                continue
            met.add(what)
            trace, at = Trace(), (found, max(2, whole.calls[found] // 3))
            patcher = used(config, trace)
            with Interrupting(network, trace, at), pytest.raises(comfy.model_management.InterruptProcessingException):
                tiny.sample(subject, patcher, steps=10)
            assert len(trace.last.evaluations) == found + 1 and not trace.last.completed, what
            assert not any("forward" in m.__dict__ for m in network.modules()), what
            assert torch.equal(tiny.sample(subject, patcher, steps=10), fresh), what
    wanted = {"dense", "recording", "listening", "partial", "shallow" if name in UNETS else "merged"}
    assert met == wanted


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", BOTH)
def test_schedules_of_one_and_two_steps_are_vanilla_under_every_sampler(name, steps):
    subject = model(name)
    used = attached(subject, HighlightConfig(pace=PACES["fast"]), size=(8, 8))
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        if sampler == "dpm_adaptive":
            continue  # takes as many steps as it likes
        kwargs = {"size": (8, 8), "steps": steps, "sampler": sampler}
        vanilla, latent = tiny.sample(subject, **kwargs), tiny.sample(subject, used, **kwargs)
        assert torch.equal(latent.nan_to_num(), vanilla.nan_to_num()), sampler


@pytest.mark.parametrize("steps", [4, 6, 8])
@pytest.mark.parametrize("name", BOTH)
def test_a_weak_denoise_makes_short_schedules_that_run(name, steps):
    subject = model(name)
    trace, sampling = Trace(), subject.patcher.get_model_object("model_sampling")
    used = attached(subject, HighlightConfig(pace=PACES["fast"]), trace, size=(8, 8))
    for denoise in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        latent = tiny.sample(subject, used, size=(8, 8), steps=steps, denoise=denoise)
        fresh = attached(subject, HighlightConfig(pace=PACES["fast"]), size=(8, 8))
        assert torch.isfinite(latent).all() and len(trace.last.evaluations) == steps
        assert torch.equal(latent, tiny.sample(subject, fresh, size=(8, 8), steps=steps, denoise=denoise))
        part = comfy.samplers.calculate_sigmas(sampling, "simple", steps)[-(max(1, round(denoise * steps)) + 1) :]
        noise = torch.randn(1, subject.channels, 8, 8, generator=torch.Generator().manual_seed(3))
        conditioning = tiny.cond(subject, 1), tiny.cond(subject, 2)
        sampler, zeros = comfy.samplers.sampler_object("euler"), torch.zeros_like(noise)
        shortened = comfy.sample.sample_custom(used, noise, 4.0, sampler, part, *conditioning, zeros, disable_pbar=True)
        assert torch.isfinite(shortened).all() and len(trace.last.evaluations) == len(part) - 1


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_equal_sigmas_in_a_row(name, sampler):
    subject = model(name)
    noise = torch.randn(1, subject.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = comfy.samplers.calculate_sigmas(subject.patcher.get_model_object("model_sampling"), "normal", 10)
    sigmas = torch.cat([sigmas[:5], sigmas[4:7], sigmas[6:7], sigmas[6:]])

    def sampled(patcher) -> torch.Tensor:
        conditioning = tiny.cond(subject, 1), tiny.cond(subject, 2)
        made, zeros = comfy.samplers.sampler_object(sampler), torch.zeros_like(noise)
        return comfy.sample.sample_custom(patcher, noise, 4.0, made, sigmas, *conditioning, zeros, disable_pbar=True)

    trace, vanilla = Trace(), sampled(subject.patcher)
    latent = sampled(attached(subject, trace=trace, size=(8, 8)))
    assert torch.isfinite(vanilla).all() and torch.isfinite(latent).all() and trace.last.completed
    assert torch.equal(sampled(attached(subject, OFF, size=(8, 8))), vanilla)
    adaptive = replace(PARTS, interval="adaptive", pace=8.0)
    assert torch.isfinite(sampled(attached(subject, adaptive, size=(8, 8)))).all()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("sampler", ["dpmpp_2s_ancestral", "dpmpp_sde", "seeds_3"])
def test_start_and_end_percent_at_every_value(name, sampler):
    subject, trace = model(name), Trace()
    values = (0.0, 0.3, 0.7, 1.0)
    for start in values:
        for end in values[values.index(start) + 1 :]:
            config = replace(PARTS, start_percent=start, end_percent=end)
            latent = tiny.sample(subject, attached(subject, config, trace, (8, 8)), size=(8, 8), steps=9, sampler=sampler)
            assert torch.isfinite(latent).all() and trace.last.completed, (start, end)
            sampling = subject.patcher.get_model_object("model_sampling")
            first, last = (float(sampling.percent_to_sigma(p)) for p in (start, end))
            saved = [e for e in trace.last.evaluations if e.kind != "dense"]
            assert all(trace.last.sigmas[e.step] <= first and last <= trace.last.sigmas[e.step] for e in saved), (start, end)


@pytest.mark.parametrize("name", BOTH)
def test_start_and_end_percent_mean_the_whole_schedule_in_halves_of_ksampler_advanced(name):
    """A sampler that takes steps 0 to 10 or 10 to 20 of 20, as the two models of Wan 2.2 do."""
    subject, trace = model(name), Trace()
    saved = {}
    for share, limits in (("first", {"end_percent": 0.5}), ("second", {"start_percent": 0.5})):
        used = attached(subject, replace(PARTS, **limits), trace)
        for half, ends in (("first", {"start_step": 0, "last_step": 10}), ("second", {"start_step": 10, "last_step": 20})):
            tiny.sample(subject, used, steps=20, scheduler="simple", force_full_denoise=half == "second", **ends)
            saved[share, half] = len(trace.last.evaluations) - trace.last.count("dense")
            outside = {e.reason for e in trace.last.evaluations} == {"outside start and end percent"}
            assert len(trace.last.evaluations) == 10 and (share == half or outside or saved[share, half] <= 1)
    assert saved["first", "first"] >= 3 and saved["second", "second"] >= 3
    assert saved["first", "second"] <= 1 and saved["second", "first"] <= 1


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("preset", PACES)
def test_where_nothing_is_saved_the_report_says_so_and_why(name, preset):
    subject, trace, short = model(name), Trace(), 0
    used = attach(subject.patcher, HighlightConfig(pace=PACES[preset]), trace)
    for steps in range(1, 13):
        tiny.sample(subject, used, size=(8, 8), steps=steps)
        text, run = as_text(report(trace.last)), trace.last
        idle = run.count("dense") == steps
        short += idle
        assert ("nothing was saved" in text) == idle, text
        assert not idle or "warm-up (" in text and report(run)["idle"] in text, text
    assert 2 <= short < 12


# -- samplings ---------------------------------------------------------------------------------------------------------

SAMPLINGS = {
    "eps, zsnr": ("sd15", lambda m: ModelSamplingDiscrete().patch(m, "eps", True)[0]),
    "v, zsnr": ("sd15", lambda m: ModelSamplingDiscrete().patch(m, "v_prediction", True)[0]),
    "lcm": ("sd15", lambda m: ModelSamplingDiscrete().patch(m, "lcm", False)[0]),
    "x0": ("sd15", lambda m: ModelSamplingDiscrete().patch(m, "x0", False)[0]),
    "continuous EDM, v": ("sd15", lambda m: ModelSamplingContinuousEDM().patch(m, "v_prediction", 120.0, 0.002)[0]),
    "continuous EDM, eps": ("sd15", lambda m: ModelSamplingContinuousEDM().patch(m, "eps", 120.0, 0.002)[0]),
    "continuous EDM, playground": (
        "sd15", lambda m: ModelSamplingContinuousEDM().patch(m, "edm_playground_v2.5", 120.0, 0.002)[0]
    ),
    "continuous v": ("sd15", lambda m: ModelSamplingContinuousV().patch(m, "v_prediction", 500.0, 0.03)[0]),
    "SD3, shift 1": ("sd3", lambda m: ModelSamplingSD3().patch(m, 1.0)[0]),
    "SD3, shift 12": ("sd3", lambda m: ModelSamplingSD3().patch(m, 12.0)[0]),
    "AuraFlow, shift 6": ("aura_flow", lambda m: ModelSamplingAuraFlow().patch_aura(m, 6.0)[0]),
    "Flux, 1024x1024": ("flux", lambda m: ModelSamplingFlux().patch(m, 1.15, 0.5, 1024, 1024)[0]),
    "an EPS model as a flow": ("sd15", lambda m: ModelSamplingSD3().patch(m, 3.0)[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLINGS)
def test_model_sampling_nodes(name):
    subject, patch = model(SAMPLINGS[name][0]), SAMPLINGS[name][1]
    patched = patch(subject.patcher)
    first = float(patched.get_model_object("model_sampling").sigma_max)
    settings = {"config": PARTS, "given": corner(subject.size), "size": subject.size, "steps": 12, "scheduler": "simple"}
    run = run_thrice(subject, patched, **settings)
    plain = run_thrice(subject, again=False, **settings)
    assert [e.kind for e in run.evaluations] == [e.kind for e in plain.evaluations]
    assert not name.endswith("zsnr") or first > 1000 < run.sigmas[0]


@pytest.mark.parametrize("sampling", ["eps", "v_prediction"])
@pytest.mark.parametrize("preset", PACES)
def test_a_zero_terminal_snr_takes_no_more_of_the_plan_than_its_first_step(sampling, preset):
    """Its first sigma is in the thousands, half of the schedule's way in log sigma."""
    subject, config = model("sd15"), HighlightConfig(pace=PACES[preset])
    patched = ModelSamplingDiscrete().patch(subject.patcher, sampling, True)[0]
    counts = {}
    for zsnr, patcher in ((True, patched), (False, subject.patcher)):
        trace = Trace()
        latent = tiny.sample(subject, attach(patcher, config, trace), size=(8, 8), steps=20)
        assert torch.isfinite(latent).all()
        counts[zsnr] = trace.last.count("dense")
    assert counts[False] - 2 <= counts[True] <= counts[False] + 4 and counts[True] < 20


# -- beside others -----------------------------------------------------------------------------------------------------


def every_second(calls: list[int]) -> Callable:
    """A wrapper that answers every second call with what the one before gave, and does not ask any further."""
    kept = []

    def wrapper(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) % 2 == 0 and kept:
            return kept[-1]
        kept[:] = [executor(*args, **kwargs)]
        return kept[-1]

    return wrapper


@pytest.mark.parametrize("ours_first", [False, True], ids=["theirs first", "ours first"])
@pytest.mark.parametrize(
    ("name", "kind"),  # SD3's network asks no wrappers of its own
    [(name, kind) for name in BOTH for kind in ("predict_noise", "calc_cond_batch", "apply_model")]
    + [("sd15", "diffusion_model")],
)
def test_beside_a_wrapper_that_answers_from_its_cache_without_calling_the_net(name, kind, ours_first):
    subject, size = model(name), (8, 8)

    def chained(config, trace: Trace | None):
        """The wrapper of the other node and ours, each run with a cache of its own."""
        calls: list[int] = []
        clone = (attached(subject, config, trace, size) if ours_first and trace else subject.patcher).clone()
        clone.add_wrapper_with_key(kind, "cache", every_second(calls))
        return (attached(subject, config, trace, size, clone) if trace and not ours_first else clone), calls

    def sampled(config, trace: Trace | None):
        patcher, calls = chained(config, trace)
        return tiny.sample(subject, patcher, size=size, steps=12), calls

    trace, again = Trace(), Trace()
    alone, theirs = sampled(OFF, None)
    off, _ = sampled(OFF, Trace())
    latent, calls = sampled(PARTS, trace)
    assert torch.equal(off, alone) and len(theirs) == 12
    assert torch.isfinite(latent).all() and calls and trace.last.completed
    assert torch.equal(sampled(PARTS, again)[0], latent) and kinds(again) == kinds(trace)
    assert all(e.reason for e in trace.last.evaluations) and len(trace.last.evaluations) in (6, 12)


@pytest.mark.parametrize(("name", "config"), [("sd15", PARTS), ("sd15", SHALLOW), ("sd3", PARTS), ("qwen_image", PARTS)])
@pytest.mark.parametrize("skipped", [1, 2, 5, 6])
def test_bug_a_dense_evaluation_that_another_node_answered_left_an_empty_recording(name, config, skipped):
    """The window after it looked for what was never recorded: KeyError. So it did where but the negative was answered."""
    subject = model(name)
    for whole in (True, False):
        calls, kept = [], []

        def answering(executor, *args, whole=whole, calls=calls, kept=kept):
            calls.append(1)
            if len(calls) - 1 == skipped:
                if whole:
                    return kept[-1]
                net, (positive, negative), *rest = args
                return [executor(net, [positive, None], *rest)[0], kept[-1][1]]
            kept[:] = [executor(*args)]
            return kept[-1]

        trace = Trace()
        patcher = attached(subject, config, trace)
        patcher.add_wrapper_with_key("calc_cond_batch", "answering", answering)
        assert torch.isfinite(tiny.sample(subject, patcher, steps=12)).all() and trace.last.completed
        assert trace.last.count("partial") + trace.last.count("shallow") + trace.last.count("skipped")


@pytest.mark.parametrize(
    ("name", "ours_first"), [(BOTH[0], False), (BOTH[1], True)], ids=["UNet, compiled last", "transformer, compiled first"]
)
def test_a_compiled_model_in_either_order_saves_and_says_why_nothing_is_computed_in_part(name, ours_first):
    subject, trace = model(name), Trace()

    def compiled(patcher):
        clone = patcher.clone()
        set_torch_compile_wrapper(clone, backend="eager")
        return clone

    first = attached(subject, PARTS, trace) if ours_first else compiled(subject.patcher)
    used = compiled(first) if ours_first else attached(subject, PARTS, trace, patcher=first)
    latent = tiny.sample(subject, used, steps=12)
    assert torch.isfinite(latent).all() and trace.last.count("skipped") and not trace.last.count("partial")
    assert any("torch.compile" in reason for reason in reasons(trace.last))
    forecast = attached(subject, replace(PARTS, correct="never"))
    assert off_by(latent, tiny.sample(subject, forecast, steps=12)) < 1e-4


@pytest.mark.parametrize("name", BOTH)
def test_three_models_of_one_upstream_in_turn(name):
    """A, B, A: each with its own setting, all alive, whatever ran between."""
    subject = model(name)
    configs = [PARTS, HighlightConfig(interval=(2,)), OFF, replace(PARTS, correct="never")]
    used = [attached(subject, config) for config in configs]
    if name == "sd3":
        used.append(attach_merging(used[2], SDTMConfig(r=0.5, protect_steps=3), Trace()))
    first = [tiny.sample(subject, patcher, steps=10) for patcher in used]
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])
    for i in (0, 1, 0, 2, 3, 0, len(used) - 1, 1, 0):
        assert torch.equal(tiny.sample(subject, used[i], steps=10), first[i])
    assert torch.equal(first[2], tiny.sample(subject, steps=10))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral", "dpmpp_sde", "uni_pc"])
@pytest.mark.parametrize("name", BOTH)
def test_the_preview_callback_is_called_once_a_step_with_a_finite_picture(name, sampler):
    subject, trace = model(name), Trace()
    used = attached(subject, trace=trace)

    def steps_of(patcher) -> list[int]:
        seen = []

        def callback(step, x0, x, total):
            assert torch.isfinite(x0).all() and torch.isfinite(x).all() and x0.shape == x.shape
            seen.append(step)

        tiny.sample(subject, patcher, steps=10, sampler=sampler, callback=callback)
        return seen

    expected = steps_of(subject.patcher)
    assert steps_of(used) == expected and steps_of(used) == expected
    assert trace.last.count("skipped") and len(set(expected)) == len(expected) >= 9


# -- sizes -------------------------------------------------------------------------------------------------------------


def deep() -> tiny.Tiny:
    """A UNet that attends in its lowest level alone, for large latents."""
    return tiny.sd15(mult=(1, 1, 1), depth=(0, 0, 1))


def flat_wan() -> tiny.Tiny:
    return replace(tiny.wan(num_layers=1), frames=1)


THIN = [(1, 1), (67, 1), (1, 67)]


@pytest.mark.parametrize(
    ("make", "size"), [*((deep, size) for size in (*THIN, (135, 240))), *((flat_wan, size) for size in (*THIN, (68, 120)))]
)
def test_latents_that_nothing_divides(make, size):
    """Of one cell, of one row or column, and of 1920x1080 pixels, or half as many for the transformer."""
    subject, large = make(), min(size) > 60
    settings = {"size": size, "steps": 6, "cfg": 1.0 if large else 4.0, "scheduler": "simple"}
    trace, other = Trace(), Trace()
    latent = tiny.sample(subject, attached(subject, replace(PARTS, interval=(3,)), trace, size), **settings)
    assert torch.isfinite(latent).all() and latent.shape[-2:] == size
    if size == (1, 1):
        assert "the highlight is the whole frame" in reasons(trace.last)
        assert torch.equal(latent, tiny.sample(subject, **settings))
    else:
        assert trace.last.count("skipped") and (trace.last.count("partial") or not large)
    merging = SDTMConfig(r=0.5, protect_steps=2)
    used = attach(subject.patcher, SHALLOW, other) if make is deep else attach_merging(subject.patcher, merging, other)
    assert torch.isfinite(tiny.sample(subject, used, **settings | {"steps": 4})).all() and other.last.completed
    assert not large or other.last.count("shallow") or any(e.merged is not None for e in other.last.evaluations)


@pytest.mark.parametrize("name", ["deep", "sd3"])
def test_a_chain_of_two_sizes_and_back_on_one_model(name):
    """A first pass, a second at twice the size of the same MODEL, and the first again; 1.5 times for the transformer."""
    subject = deep() if name == "deep" else model(name)
    small, large = ((64, 64), (128, 128)) if name == "deep" else ((24, 24), (36, 36))
    used, trace = attach(subject.patcher, PARTS, Trace()), Trace()
    for size, steps, denoise in ((small, 12, 1.0), (large, 7, 0.5), (small, 12, 1.0), (small, 9, 1.0)):
        settings = {"size": size, "steps": steps, "denoise": denoise, "cfg": 1.0}
        fresh = tiny.sample(subject, attach(subject.patcher, PARTS, trace), **settings)
        assert torch.equal(tiny.sample(subject, used, **settings), fresh)
        assert trace.last.count("skipped") + trace.last.count("partial") and trace.last.shape[-2:] == size


# -- conditioning that has other channels than the latent --------------------------------------------------------------


def wan_i2v() -> tiny.Tiny:
    return tiny.wan(supported.WAN21_I2V, model_type="i2v", in_dim=36)


def flux_fill() -> tiny.Tiny:
    return tiny.Tiny(tiny.build(supported.FluxInpaint(tiny.FLUX | {"in_channels": 96})), pooled=32, channels=16)


@pytest.mark.parametrize("make", [wan_i2v, flux_fill])
def test_a_model_that_is_given_more_channels_than_it_predicts(make):
    """The start image of a video, or the masked one of an inpainting model, concatenated to the latent."""
    subject, generator = make(), torch.Generator().manual_seed(4)
    frames = [subject.frames] if subject.frames else []
    positive, negative = tiny.cond(subject, 1), tiny.cond(subject, 2)
    for conditioning in (positive, negative):
        image = torch.randn(1, 16, *frames, *subject.size, generator=generator)
        mask = torch.zeros(1, 1, *frames, *(subject.size if frames else (8 * side for side in subject.size)))
        conditioning[0][1].update(concat_latent_image=image, concat_mask=mask)
    run = run_thrice(
        subject, config=PARTS, given=corner(subject.size), size=subject.size, steps=10, positive=positive, negative=negative
    )
    assert run.count("partial"), [(e.kind, e.reason) for e in run.evaluations]
    other = tiny.sample(subject, steps=2)
    assert not torch.equal(tiny.sample(subject, steps=2, positive=positive, negative=negative), other)


# -- numbers -----------------------------------------------------------------------------------------------------------


class Doubles(TorchDispatchMode):
    """Notes every float64 tensor that a line of ours makes: (file, shape)."""

    def __init__(self):
        super().__init__()
        self.found: set[tuple[str, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, torch.Tensor)]
        for tensor in made:
            if tensor.dtype == torch.float64 and (file := self._ours()):
                self.found.add((file, tuple(tensor.shape)))
        return result

    @staticmethod
    def _ours() -> str | None:
        """The file of the innermost line that is not torch's, where that is one of the pack's."""
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if "/torch/" not in name and "test_bug_reports" not in name:
                return name.rsplit("/", 1)[-1] if frame.f_globals["__name__"].startswith("highlight_diffusion.") else None
            frame = frame.f_back
        return None


@pytest.mark.parametrize("config", ["parts", "adaptive", "shallow", "merged"])
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_nothing_of_ours_is_float64_but_the_samplers_response_on_the_cpu(name, config):
    """Apple's GPUs have no float64. The response is of a few numbers, made on the CPU before the run."""
    subject, trace = model(name), Trace()
    made = {"parts": PARTS, "adaptive": replace(PARTS, interval="adaptive"), "shallow": SHALLOW, "merged": OFF}[config]
    patcher = attached(subject, made, trace)
    if config == "merged" and name != "sd15":
        patcher = attach_merging(patcher, SDTMConfig(r=0.5, protect_steps=3), trace)
    with Doubles() as doubles:
        for sampler in ("euler", "dpmpp_2m_sde"):
            tiny.sample(subject, patcher, steps=9, sampler=sampler)
    assert {file for file, _ in doubles.found} <= {"response.py"}
    assert all(torch.Size(shape).numel() <= 21**2 for _, shape in doubles.found)
    assert config == "merged" or doubles.found, "the response is measured, and in float64"
