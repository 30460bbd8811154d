"""Entries of the bench beside the packs that people run, unmodified: which evaluations each computes, and what it puts in the
place of the others. Where a pack does something else than its paper, the test says what is still the same.

What is not run: SADA's and DiCache's own code are pipelines of diffusers, in which SADA's Euler solver moves its betas to CUDA
and DiCache's script loads FLUX.1 onto it, and neither has a pack; HiCache's pack wraps pipelines of Hunyuan3D, which are no
MODEL; and on Flux TeaCache's and MagCache's packs do not take the `timestep_zero_index` that ComfyUI 0.29 gives. EasyCache is
ComfyUI's own node, in the bench too.
"""

import ast
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from comfy.ldm.lumina.model import NextDiT
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calculate_sigmas
from highlight_diffusion.bench.peers import (
    dbcache,
    first_block,
    fsampler,
    magcache,
    meancache,
    seacache,
    spectrum,
    taylorseer,
    teacache,
)
from highlight_diffusion.bench.peers.common import Steps
from highlight_diffusion.bench.peers.whole import Replacing, Step, at_prediction
from highlight_diffusion.tools.comfy import Sampling, Subject, node

from . import packs, tiny

PROMPT = "a large red circle at the left on a plain gray background"
STEPS = 12
SAMPLING = Sampling(steps=STEPS)
SAME = 1e-3  # of what skipping changes: as far as two latents may be apart that come from one formula


@pytest.fixture(scope="module")
def subjects():
    return {kind: Subject.demo(kind, size=16) for kind in ("unet", "mmdit")}


@pytest.fixture(params=["unet", "mmdit"])
def subject(subjects, request):
    return subjects[request.param]


@pytest.fixture
def unet(subjects):
    return subjects["unet"]


@pytest.fixture
def mmdit(subjects):
    return subjects["mmdit"]


LATE = {  # a module of the network that runs in every evaluation that is computed as a whole
    "input_blocks": lambda network: network.middle_block[0], "joint_blocks": lambda network: network.joint_blocks[-1],
    "blocks": lambda network: network.blocks[-1], "layers": lambda network: network.layers[-1],
}  # fmt: skip


@contextmanager
def computed(model, steps: int = STEPS) -> Iterator[list[int]]:
    """Collects the step of each call in which the whole network is computed."""
    sampling, network = model.get_model_object("model_sampling"), model.get_model_object("diffusion_model")
    block = next(late(network) for name, late in LATE.items() if hasattr(network, name))
    sigmas = calculate_sigmas(sampling, SAMPLING.scheduler, steps)[:-1]
    seen, at, original = [], [], sampling.calculate_input

    def calculate_input(sigma, noise):
        at[:] = [int((sigmas - float(sigma.flatten()[0])).abs().argmin())]
        return original(sigma, noise)

    hook = block.register_forward_hook(lambda *_: seen.extend(at))
    sampling.calculate_input = calculate_input
    try:
        yield seen
    finally:
        hook.remove()
        del sampling.calculate_input


def run(subject: Subject, model) -> tuple[list[int], torch.Tensor]:
    """The computed steps and the latent of a run of a demo model."""
    with computed(model) as steps:
        latent, _ = subject.sample(model, PROMPT, 0, SAMPLING)
    return steps, latent


def run_tiny(model: tiny.Tiny, patched, **kwargs) -> tuple[list[int], torch.Tensor]:
    """The same of a tiny model of random weights."""
    with computed(patched) as steps:
        latent = tiny.sample(model, patched, steps=STEPS, scheduler=SAMPLING.scheduler, **kwargs)
    return steps, latent


def off(ours: torch.Tensor, theirs: torch.Tensor, dense: torch.Tensor) -> float:
    """How far two latents are apart, as a share of how far the second one is from the dense run's."""
    return float((ours - theirs).norm() / (theirs - dense).norm())


@pytest.fixture(scope="module")
def denses(subjects):
    return {id(subject): run(subject, subject.model)[1] for subject in subjects.values()}


def same(ours: tuple[list[int], torch.Tensor], theirs: tuple[list[int], torch.Tensor], dense: torch.Tensor) -> None:
    """Both have skipped the same steps, some, and end at one latent."""
    assert ours[0] == theirs[0] and len(ours[0]) < STEPS
    assert off(ours[1], theirs[1], dense) < SAME


def at_output(model, make: Callable[[], Replacing]):
    """A clone in which what the network gives goes through one of our peers: where some packs sit, and no entry of ours."""
    steps = Steps()

    def wrapper(executor, *args, **kwargs):
        (options,) = [given for given in (*args, *kwargs.values()) if isinstance(given, dict) and "sample_sigmas" in given]
        index = steps.advance(float(options["sigmas"][0]))
        peer = steps.cache["peer"] = steps.cache.get("peer") or make()
        at = Step(index, tuple(options["sample_sigmas"].tolist()))
        skipped = peer.skips(at)
        value = peer.forecast(at) if skipped else executor(*args, **kwargs)
        peer.observe(at, value, not skipped)
        return value

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "at output", wrapper)
    return clone


class Given:
    """A peer that computes the steps it is told to."""

    def __init__(self, steps: list[int]):
        self.steps = steps
        self.seen: list[tuple[float, torch.Tensor]] = []  # sigma and value of every step so far

    def skips(self, at: Step) -> bool:
        return at.index not in self.steps

    def forecast(self, at: Step) -> torch.Tensor:
        return self.seen[-1][1]

    def observe(self, at: Step, value: torch.Tensor, computed: bool) -> None:
        self.seen.append((at.sigma, value))


# -- FSampler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, named", [("h2", "h2/s2"), ("h3", "h3/s3"), ("adaptive", "adaptive")])
def test_fsampler(subject, denses, mode, named):
    packs.load("ComfyUI-FSampler")
    dense = denses[id(subject)]
    with computed(subject.model) as steps:
        (found,) = node(
            "FSampler", model=subject.model, positive=subject.cond(PROMPT), negative=subject.cond(""), seed=0, steps=STEPS,
            latent_image={"samples": torch.zeros_like(dense)}, cfg=SAMPLING.cfg, scheduler=SAMPLING.scheduler,
            sampler=SAMPLING.sampler, skip_mode=named, add_noise=0.0, denoise=1.0, verbose=False,
        )  # fmt: skip
    same(run(subject, fsampler.apply(subject.model, mode)), (steps, found["samples"]), dense)


# -- Spectrum --------------------------------------------------------------------------------------------------------


def test_spectrum_of_the_denoised_latent(subject, denses):
    """With stable-diffusion.cpp's settings, which the pack's README recommends too."""
    packs.load("ComfyUI-Spectrum-sdxl")
    settings = {"w": 0.4, "m": 3, "lam": 1.0, "window_size": 2, "flex_window": 0.5, "warmup_steps": 4, "stop_caching_step": 11}
    (theirs,) = node("SpectrumSDXL", model=subject.model, **settings)
    ours = spectrum.apply(subject.model, spectrum.SETTINGS["as ported"], hidden=False)
    same(run(subject, ours), run(subject, theirs), denses[id(subject)])


def test_spectrum_of_the_last_hidden_state(mmdit, denses, monkeypatch):
    """The pack lays its polynomials over the steps of the run, the published code over 50; its weight of the polynomial grows
    with the window, and is constant where that is."""
    packs.load("ComfyUI-Spectrum")
    settings = {"w": 0.0, "M": 4, "lam": 0.1, "warmup_steps": 4, "window_size": 2.0, "max_w": 0.5, "verbose": False}
    (theirs,) = node("Spectrum", model=mmdit.model, flex_window=0.0, **settings)
    monkeypatch.setattr(spectrum, "PUBLISHED_STEPS", STEPS)
    ours = spectrum.apply(mmdit.model, spectrum.Settings(0.0, 0.5, warmup=4), hidden=True)
    same(run(mmdit, ours), run(mmdit, theirs), denses[id(mmdit)])


@pytest.mark.parametrize("name, growth", [("moderate", 0.75), ("aggressive", 3.0)])
def test_spectrum_computes_the_same_steps(mmdit, name, growth):
    packs.load("ComfyUI-Spectrum")
    settings = {"w": 0.5, "M": 4, "lam": 0.1, "warmup_steps": 5, "window_size": 2.0, "max_w": 0.8, "verbose": False}
    (theirs,) = node("Spectrum", model=mmdit.model, flex_window=growth, **settings)
    ours = spectrum.apply(mmdit.model, spectrum.SETTINGS[name], hidden=True)
    steps = run(mmdit, ours)[0]
    assert steps == run(mmdit, theirs)[0] and len(steps) < STEPS


class OverSigma(spectrum.Spectrum):
    """Ours with sigma's share of the schedule, from its last value to its first, for the step's."""

    def _moved(self, at: Step) -> Step:
        low, high = at.sigmas[-2], at.sigmas[0]
        return Step(spectrum.PUBLISHED_STEPS * (at.sigma - low) / (high - low), at.sigmas)

    def forecast(self, at: Step) -> torch.Tensor:
        return super().forecast(self._moved(at))

    def observe(self, at: Step, value: torch.Tensor, computed: bool) -> None:
        super().observe(at, value, computed)
        if computed:
            self.points[-1] = (self._moved(at).index, value)


def test_spectrum_of_the_output_over_sigma(unet, denses):
    """The pack that calls itself proper forecasts what leaves the head, over sigma; begins when six steps are computed, which
    has the window grow once; and computes the last three."""
    packs.load("ComfyUI-Spectrum-SDXL-Proper")
    settings = {"blend_weight": 0.5, "degree": 4, "ridge_lambda": 0.1, "window_size": 2.0, "flex_window": 0.75}
    more = {"enabled": True, "warmup_steps": 5, "tail_actual_steps": 3, "min_fit_points": 6, "debug": False}
    (theirs,) = node("SpectrumApplySDXL", model=unet.model, **settings, **more)
    own = spectrum.Settings(0.75, 0.5, window=2.75, warmup=6, until=9 / 12)
    same(run(unet, at_output(unet.model, lambda: OverSigma(own))), run(unet, theirs), denses[id(unet)])


# -- MeanCache -------------------------------------------------------------------------------------------------------


class Continued(Given):
    """The line through the last computed value and the one some steps before it, computed or not."""

    def forecast(self, at: Step) -> torch.Tensor:
        last = max(step for step in self.steps if step < at.index)
        sigma, value = self.seen[last]
        span = 1 if sigma > 0.5 else 2 if sigma > 0.2 else 3
        return fsampler.lagrange([self.seen[max(0, last - span)], (sigma, value)], at.sigma)


@pytest.mark.parametrize("preset", ["Speed", "Turbo"])
def test_meancache(mmdit, denses, preset):
    """The pack continues the denoised latent, which it takes for the velocity, and not the mean velocity."""
    packs.load("comfyui-meancache-z")
    (theirs,) = node("MeanCache_ZImage", model=mmdit.model, preset=preset)
    steps, latent = run(mmdit, theirs)
    continued = at_prediction(mmdit.model, "continued", lambda: Continued(steps))
    same(run(mmdit, continued), (steps, latent), denses[id(mmdit)])


@pytest.fixture
def published(monkeypatch):
    """The authors' own file, with nothing in the place of the libraries that its pipeline needs."""
    for name in ("diffusers", "diffusers.pipelines", "diffusers.pipelines.z_image", "pandas"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.setitem(sys.modules, "diffusers.pipelines.z_image.pipeline_z_image", typing)  # for its names of types
    return packs.alone("MeanCache", "MeanCache4Z-Image/MC_zimage.py")


def assigned(function: Callable, name: str) -> Any:
    """The literal that a function gives to a name of its own."""
    return next(
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name
    )


@pytest.mark.parametrize("budget", meancache.PUBLISHED)
def test_meancache_as_its_authors_have_it(published, budget):
    """Over their 50 steps, with velocities at random: what each skipped step goes with, by their function."""
    kinds, rules = (assigned(published.main, name) for name in ("mapping_rules", "edge_source"))
    steps, spans = assigned(published.main, "calc_dict")[budget], [kinds[rule] for rule in rules[budget]]
    assert tuple(steps) == meancache.PUBLISHED[budget] and tuple(spans) == meancache.SPANS[budget]
    generator, sigmas = torch.Generator().manual_seed(0), torch.linspace(1, 0, 51) ** 0.7
    peer, x, skipped = meancache.MeanCache(budget), torch.randn(1, 4, generator=generator), 0
    log: dict[str, list[torch.Tensor]] = {"v": [], "latents_pre": [], "latents": [], "sigmas_pre": [], "sigmas": []}
    for step in range(50):
        at = Step(step, tuple(sigmas.tolist()), x)
        sigma, following = sigmas[step], sigmas[step + 1]
        velocity = torch.randn(1, 4, generator=generator)
        if peer.skips(at):
            span = spans[max(i for i, start in enumerate(steps) if start < step)]
            slope = published.compute_current_jvp(log, log["v"], steps=span)
            velocity, skipped = log["v"][-1] - slope * (following - sigma), skipped + 1
            assert torch.allclose((x - peer.forecast(at)) / sigma, velocity, atol=1e-3)
        peer.observe(at, x - sigma * velocity, True)
        for name, value in (("v", velocity), ("latents_pre", x), ("sigmas_pre", sigma), ("sigmas", following)):
            log[name].append(value)
        x = x + (following - sigma) * velocity
        log["latents"].append(x)
    assert skipped == 50 - budget


# -- First-Block Cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.12, 0.2])
def test_first_block_cache(mmdit, denses, threshold):
    packs.load("Comfy-WaveSpeed")
    (theirs,) = node(
        "ApplyFBCacheOnModel", model=mmdit.model, object_to_patch="diffusion_model", residual_diff_threshold=threshold
    )
    same(run(mmdit, first_block.apply(mmdit.model, threshold)), run(mmdit, theirs), denses[id(mmdit)])


# -- SeaCache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (12, 15)])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
def test_seacache_filters_alike(size, sigma):
    """The pack decides by the latent of another model, with a filter after the paper's equations."""
    pack = packs.alone("ComfyUI-Spectrum-KSampler", "_vendor/networks/spectrum_sea.py")
    grid = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    ours = seacache.filtered(grid.flatten(2).transpose(1, 2), size, sigma).transpose(1, 2).unflatten(2, size)
    assert torch.allclose(ours, pack.sea_filter(grid, sigma, seacache.POWER), atol=1e-5)


# -- TeaCache and MagCache, on a Wan ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan() -> tuple[tiny.Tiny, torch.Tensor]:
    model = tiny.wan()
    return model, run_tiny(model, model.patcher)[1]


@pytest.fixture
def as_it_was(monkeypatch) -> None:
    """Both packs import a function of LTX-Video's that ComfyUI 0.29 no longer has, and that a Wan does not need."""
    import comfy.ldm.lightricks.model

    monkeypatch.setattr(comfy.ldm.lightricks.model, "precompute_freqs_cis", None, raising=False)


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_teacache(as_it_was, wan, threshold):
    """With the identity for the pack's polynomials, which are of one model each."""
    pack = packs.alone("ComfyUI-TeaCache", "nodes.py")  # its nodes for diffusers need that
    model, dense = wan
    (theirs,) = pack.TeaCache().apply_teacache(model.patcher, "wan2.1_t2v_1.3B_ret_mode", threshold, 0.0, 1.0, "cpu")
    theirs.model_options["transformer_options"]["coefficients"] = [1.0, 0.0]
    same(run_tiny(model, teacache.apply(model.patcher, threshold)), run_tiny(model, theirs), dense)


@pytest.mark.parametrize("threshold, in_a_row", [(0.06, 2), (0.24, 5)])
def test_magcache(as_it_was, wan, threshold, in_a_row):
    """With one table for both, of this model."""
    packs.load("ComfyUI-MagCache")
    model, dense = wan
    ratios: list[float] = []
    run_tiny(model, magcache.recorded(model.patcher, ratios))
    settings = {"model_type": "wan2.1_t2v_1.3B", "magcache_thresh": threshold, "retention_ratio": 0.2, "magcache_K": in_a_row}
    (theirs,) = node("MagCache", model=model.patcher, start_step=0, end_step=-1, **settings)
    theirs.model_options["transformer_options"]["mag_ratios"] = torch.tensor(ratios).repeat_interleave(2)
    same(run_tiny(model, magcache.apply(model.patcher, ratios, threshold, in_a_row)), run_tiny(model, theirs), dense)


# -- TaylorSeer and Cache-DiT, on a Z-Image --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def z_image() -> tuple[tiny.Tiny, torch.Tensor]:
    model = tiny.z_image()
    return model, run_tiny(model, model.patcher, cfg=1.0)[1]


class Later(taylorseer.TaylorSeer):
    """Ours, but for taking no difference before the third step."""

    def observe(self, at: Step, value: torch.Tensor, computed: bool) -> None:
        super().observe(at, value, computed)
        if at.index < taylorseer.FIRST - 1:
            self.differences = self.differences[:1]


KNOWS_REFERENCES = "ref_latents" in inspect.signature(NextDiT.patchify_and_embed).parameters


@pytest.mark.skipif(not KNOWS_REFERENCES, reason="the pack gives Z-Image what the oldest ComfyUI's does not take")
@pytest.mark.parametrize("order, kind", [(1, taylorseer.TaylorSeer), (2, Later)])
def test_taylorseer(z_image, order, kind):
    """Of what leaves the head, where the pack forecasts. Its second order comes a computed step later than ours, since it takes
    no difference before the third step."""
    packs.load("ComfyUI-TaylorSeer")
    model, dense = z_image
    settings = {"model_type": "lumina2", "fresh_threshold": 3, "max_order": order, "first_enhance": 3, "last_enhance": 50}
    (theirs,) = node("TaylorSeerLite", model=model.patcher, **settings)
    ours = at_output(model.patcher, lambda: kind(3, order))
    same(run_tiny(model, ours, cfg=1.0), run_tiny(model, theirs, cfg=1.0), dense)


def test_cache_dit(z_image, monkeypatch):
    """The pack has nothing of DBCache on the models it names: every few steps it gives the last output once more."""
    packs.load("ComfyUI-CacheDiT")
    (model, dense), used = z_image, tiny.z_image()  # the pack leaves its forward in the network
    monkeypatch.setitem(sys.modules, "cache_dit", MagicMock())  # which it sets up, and then does not use
    settings = {"enable": True, "model_type": "Auto", "warmup_steps": 3, "skip_interval": 2, "print_summary": False}
    (theirs,) = node("CacheDiT_Model_Optimizer", model=used.patcher, **settings)
    steps, latent = run_tiny(used, theirs, cfg=1.0)
    same(run_tiny(model, at_output(model.patcher, lambda: Given(steps)), cfg=1.0), (steps, latent), dense)
    assert steps == [0, 1, 2, 3, 5, 7, 9, 11]


# -- the library Cache-DiT -------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a module of the library's, with nothing in the place of what its other parts need."""
    root = packs.folder("cache-dit") / "src"
    for name in ("cache_dit", "cache_dit.caching", "cache_dit.caching.cache_contexts"):
        package = ModuleType(name)
        package.__dict__.update(__path__=[str(root.joinpath(*name.split(".")))], __getattr__=lambda name: MagicMock())
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("distributed", "quantization", "utils", "attention"):
        monkeypatch.setitem(sys.modules, f"cache_dit.{name}", MagicMock())
    for name in ("cache_types", "block_adapters", "cache_adapters", "params_modifier"):
        monkeypatch.setitem(sys.modules, f"cache_dit.caching.{name}", MagicMock())
    monkeypatch.setitem(sys.modules, "diffusers", MagicMock())
    return lambda name: importlib.import_module(f"cache_dit.caching.{name}")


@pytest.mark.parametrize("name", dbcache.MASKS)
def test_cache_dits_masks(library, name):
    """Of all numbers of steps that the library has masks for."""
    theirs = library("cache_interface").steps_mask
    for steps in (4, 6, *range(8, 81)):
        assert dbcache.mask(name, steps) == [bool(kept) for kept in theirs(total_steps=steps, mask_policy=name)], steps


def compared(peer: taylorseer.TaylorSeer, state: Any, where: Callable[[], bool]) -> int:
    """How many forecasts of ours and of the library's are compared, of a batch of two that oscillate and decay."""
    rates, angles = 0.05 + 0.2 * torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(0))
    count = 0
    for step in range(20):
        at = Step(step, tuple(1 - i / 20 for i in range(21)))
        state.mark_step_begin()
        if not peer.skips(at):
            value = torch.exp(-rates * step) * torch.cos(angles * step)
            peer.observe(at, value, True)
            state.update(value)
        elif where():
            assert torch.allclose(peer.forecast(at), state.approximate(), atol=1e-4)
            count += 1
    return count


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("interval, count", [(2, 9), (3, 12)])
def test_cache_dits_taylorseer(library, order, interval, count):
    state = library("cache_contexts.calibrators.taylorseer").TaylorSeerState(n_derivatives=order)
    assert compared(Later(interval, order), state, lambda: True) == count


@pytest.mark.parametrize("interval, count", [(2, 6), (3, 6)])
def test_cache_dits_modes(library, interval, count):
    """Where there are points enough for them; before, the library divides a difference over two computed steps by the distance
    of one."""
    state = library("cache_contexts.calibrators.dmd").DMDState()
    peer = taylorseer.Modes(interval)
    assert compared(peer, state, lambda: len(peer._even_tail()) >= taylorseer.FEWEST) == count
