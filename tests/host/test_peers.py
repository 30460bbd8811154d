"""Every method of the bench does something on the bench's model, and costs less than dense."""

import asyncio

import pytest
import torch
from highlight_diffusion.bench.cost import macs
from highlight_diffusion.bench.methods import DENSE, methods
from highlight_diffusion.tools.comfy import Sampling, Subject, installed, node

PROMPT = "a large red circle at the left on a plain gray background"
SAMPLING = Sampling(steps=10)


@pytest.fixture(scope="module")
def subjects():
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return {kind: Subject.demo(kind) for kind in ("unet", "mmdit")}


@pytest.fixture(scope="module")
def subject(subjects):
    return subjects["unet"]


def run(subject, method) -> tuple[torch.Tensor, int]:
    attached, found = method.attach(subject.model, SAMPLING), []
    subject.cond(PROMPT), subject.cond("")
    executed = macs(lambda: found.append(subject.sample(attached.model, PROMPT, 0, attached.sampling)[0]))
    return found[0], executed


@pytest.fixture(scope="module")
def denses(subjects):
    return {kind: run(subject, DENSE) for kind, subject in subjects.items()}


@pytest.fixture(scope="module")
def dense(denses):
    return denses["unet"]


BOTH = {
    "fewer steps": "0.5", "LazyCache": "reuse_threshold=0.2", "Highlight Diffusion": "balanced", "Spectrum": "as ported",
    "Spectrum, last hidden state": "moderate", "TaylorSeer-Lite, order 1": "N=2", "TaylorSeer-Lite, order 2": "N=2",
    "TaylorSeer-Lite, Hermite": "N=2", "TaylorSeer-Lite, DMD": "N=2", "FSampler": "h2", "SADA": "",
}  # fmt: skip
STRONGEST = {
    "unet": {
        **BOTH, "EasyCache": "reuse_threshold=0.2", "ToMe": "ratio=0.6", "HyperTile": "tile_size=64", "DeepCache": "N=3",
        "DeepCache, branch 3": "N=3", "T-GATE": "gate=0.4", "Faster Diffusion": "density=0.7", "FRDiff": "N=3",
    },
    "mmdit": {
        **BOTH, "MeanCache": "17 of 50", "Cache-DiT's step masks": "medium",
        "DBCache with TaylorSeer": "F1, 6 in a row, threshold=0.24",
        "DiCache": "threshold=0.4", "MagCache": "threshold=0.24 K=5", "SeaCache": "delta=0.6",
        "First-Block Cache": "threshold=0.2", "TeaCache": "threshold=0.2", "RAS": "ratio=0.5", "AccelAes": "every=2",
        "ToMe on DiT": "ratio=0.5", "ToDo": "factor=2 blocks=100%", "SDTM as released": "r=0.5 protect=3",
    },
}  # fmt: skip
STUDIES = {
    "unet": ("by pace", "forecast alone", "forecasts not revised", "always corrected", "always shallow", "interval"),
    "mmdit": ("SDTM", "SDTM, merging alone", "SDTM ablated", "Highlight and SDTM"),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in STRONGEST.items() for name in names])
def test_a_method_changes_the_latent_and_saves_work(subjects, denses, kind, name):
    subject, (latent, cost) = subjects[kind], denses[kind]
    (method,) = [m for m in methods(subject) if m.name == name and m.setting == STRONGEST[kind][name]]
    accelerated, executed = run(subject, method)
    assert torch.isfinite(accelerated).all()
    assert (accelerated - latent).abs().max() > 1e-3, f"{name} has no effect on the bench's model"
    assert executed < 0.97 * cost


@pytest.mark.parametrize("kind", STRONGEST)
def test_every_method_of_the_bench_is_tested_here(subjects, kind):
    assert {m.name for m in methods(subjects[kind])} == {"dense", *STRONGEST[kind]}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in STUDIES.items() for name in names])
def test_a_study_of_ours_changes_the_latent_and_saves_work(subjects, denses, kind, name):
    own = [m for m in methods(subjects[kind], study=True) if m.name == name]
    latent, executed = run(subjects[kind], own[-1])
    assert torch.isfinite(latent).all() and (latent - denses[kind][0]).abs().max() > 1e-3
    assert executed < 0.97 * denses[kind][1]


@pytest.mark.parametrize("name", ["DeepCache", "Faster Diffusion", "FRDiff", "T-GATE"])
def test_a_peer_that_skips_nothing_is_dense(subject, dense, name):
    from highlight_diffusion.bench.peers import deepcache, faster_diffusion, frdiff, tgate

    model = {
        "DeepCache": lambda: deepcache.apply(subject.model, 1),
        "Faster Diffusion": lambda: faster_diffusion.apply(subject.model, SAMPLING.steps, 10.0),
        "FRDiff": lambda: frdiff.apply(subject.model, 1, SAMPLING.steps),
        "T-GATE": lambda: tgate.apply(subject.model, SAMPLING.steps),
    }[name]()
    latent, _ = subject.sample(model, PROMPT, 0, SAMPLING)
    assert (latent - dense[0]).abs().max() <= 1e-5 * dense[0].abs().max()


@pytest.mark.parametrize("kind", STRONGEST)
@pytest.mark.parametrize("place", ["at_prediction", "at_hidden"])
def test_a_peer_of_whole_evaluations_that_skips_nothing_is_dense(subjects, denses, kind, place):
    from highlight_diffusion.bench.peers import whole
    from highlight_diffusion.bench.peers.taylorseer import TaylorSeer

    model = getattr(whole, place)(subjects[kind].model, "nothing", lambda: TaylorSeer(1, 1))
    latent, _ = subjects[kind].sample(model, PROMPT, 0, SAMPLING)
    assert (latent - denses[kind][0]).abs().max() <= 1e-5 * latent.abs().max()


@pytest.mark.parametrize("name", [
    "First-Block Cache", "TeaCache", "SeaCache", "DBCache", "DiCache", "MagCache", "RAS", "ToMe on DiT", "ToDo",
    "SDTM as released",
])  # fmt: skip
def test_a_peer_of_transformers_that_skips_nothing_is_dense(subjects, denses, name):
    from highlight_diffusion.bench.peers import (  # fmt: skip
        dbcache,
        dicache,
        first_block,
        magcache,
        ras,
        sdtm_official,
        seacache,
        teacache,
        todo,
        tome_dit,
    )

    subject = subjects["mmdit"]
    model = {
        "First-Block Cache": lambda: first_block.apply(subject.model, 0.0),
        "TeaCache": lambda: teacache.apply(subject.model, 0.0),
        "SeaCache": lambda: seacache.apply(subject.model, 0.0),
        "DBCache": lambda: dbcache.by_change(subject.model, 1, 0),
        "DiCache": lambda: dicache.apply(subject.model, 0.0),
        "MagCache": lambda: magcache.apply(subject.model, [1.0] * SAMPLING.steps, 0.0, 0),
        "RAS": lambda: ras.apply(subject.model, SAMPLING.steps, 1.0),
        "ToMe on DiT": lambda: tome_dit.apply(subject.model, 0.0),
        "ToDo": lambda: todo.apply(subject.model, 1),
        "SDTM as released": lambda: sdtm_official.apply(subject.model, SAMPLING.steps, 0.0, 0.0, protect=0),
    }[name]()
    latent, _ = subject.sample(model, PROMPT, 0, SAMPLING)
    assert (latent - denses["mmdit"][0]).abs().max() <= 1e-5 * latent.abs().max()


@pytest.mark.parametrize("kind, label", [
    ("unet", "DeepCache N=3"), ("mmdit", "First-Block Cache threshold=0.2"), ("mmdit", "TeaCache threshold=0.2"),
    ("mmdit", "RAS ratio=0.5"), ("mmdit", "AccelAes every=2"), ("mmdit", "ToMe on DiT ratio=0.5"),
    ("mmdit", "SDTM as released r=0.5 protect=3"), ("unet", "SADA"), ("unet", "Spectrum, last hidden state moderate"),
    ("mmdit", "DiCache threshold=0.4"), ("mmdit", "DBCache with TaylorSeer F1, 6 in a row, threshold=0.24"),
])  # fmt: skip
def test_a_second_run_of_a_peer_is_the_first(subjects, kind, label):
    """Peers keep state between steps; a new run must not see the last one's."""
    subject = subjects[kind]
    (method,) = [m for m in methods(subject) if m.label == label]
    attached = method.attach(subject.model, SAMPLING)
    first, second = (subject.sample(attached.model, PROMPT, 0, SAMPLING)[0] for _ in range(2))
    assert torch.equal(first, second)


class Steps:
    """A schedule of steps for peers without a model: sigmas fall evenly to 0."""

    def __init__(self, count: int):
        self.sigmas = tuple(1 - i / count for i in range(count + 1))

    def computed(self, peer, value) -> list[int]:
        """Which steps a peer computes, where `value(at)` is what the model gives, at the latent of all ones."""
        from highlight_diffusion.bench.peers.whole import Step

        steps = []
        for index in range(len(self.sigmas) - 1):
            at = Step(index, self.sigmas, torch.ones(1, 1, 2, 2))
            skipped = peer.skips(at)
            steps += [] if skipped else [index]
            peer.observe(at, peer.forecast(at) if skipped else value(at), not skipped)
        return steps


def flat(at):
    return torch.ones(1, 1, 2, 2)


def test_spectrum_computes_the_steps_that_its_authors_name():
    """As the published code does over 50 steps, 14 with the moderate window and 10 with the aggressive one."""
    from highlight_diffusion.bench.peers.spectrum import SETTINGS, Spectrum

    moderate, aggressive = (Steps(50).computed(Spectrum(SETTINGS[name]), flat) for name in ("moderate", "aggressive"))
    assert moderate == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    assert aggressive == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]


def test_schedules_are_the_published_ones():
    from highlight_diffusion.bench.peers.dbcache import MASKS, mask
    from highlight_diffusion.bench.peers.fsampler import FSampler
    from highlight_diffusion.bench.peers.meancache import PUBLISHED, scaled
    from highlight_diffusion.bench.peers.taylorseer import TaylorSeer

    assert [len(Steps(50).computed(TaylorSeer(n, 1), flat)) for n in (3, 4, 5, 6)] == [18, 14, 12, 10]
    assert [len(Steps(20).computed(TaylorSeer(n, 1), flat)) for n in (3, 4, 5, 6)] == [8, 7, 6, 5]
    assert set(range(20)) - set(Steps(20).computed(FSampler(2), flat)) == {4, 7, 10, 13, 16}
    assert scaled(13, 50) == set(PUBLISHED[13]) and len(scaled(20, 30)) == 12
    assert all(len(mask(name, steps)) == steps and mask(name, steps)[-1] for name in MASKS for steps in (8, 9, 12, 20, 28, 30))
    assert sum(mask("slow", 8)) == 7 and sum(mask("ultra", 28)) == 8


@pytest.mark.parametrize("kind", ["order 1", "order 2"])
def test_taylor_continues_what_moves_evenly(kind):
    from highlight_diffusion.bench.peers.taylorseer import KINDS

    seen = []
    peer = KINDS[kind](2)
    forecast = peer.forecast
    peer.forecast = lambda at: seen.append((at.index, forecast(at))) or seen[-1][1]
    Steps(12).computed(peer, lambda at: torch.full((1, 1, 2, 2), 1.0 + at.index))
    assert seen and all(torch.allclose(value, torch.full_like(value, 1.0 + step), rtol=1e-5) for step, value in seen)


def test_modes_continue_a_decay_that_no_line_does():
    from highlight_diffusion.bench.peers.taylorseer import advanced

    at = lambda n: torch.tensor([0.8**n, 2 * 0.5**n, 0.8**n - 0.5**n])  # noqa: E731
    assert torch.allclose(advanced(torch.stack([at(n) for n in range(5)]), 1.5), at(5.5), atol=1e-5)


def test_lagrange_goes_through_its_points_and_on():
    from highlight_diffusion.bench.peers.fsampler import lagrange

    parabola = lambda at: torch.tensor([at**2 - at])  # noqa: E731
    points = [(at, parabola(at)) for at in (9.0, 5.0, 4.0)]
    assert torch.allclose(lagrange(points, 1.0), parabola(1.0), atol=1e-5)


def test_meancache_takes_the_last_velocity_where_its_span_is_one():
    from highlight_diffusion.bench.peers.meancache import MeanCache
    from highlight_diffusion.bench.peers.whole import Step

    peer, sigmas = MeanCache(13), Steps(10).sigmas
    peer.observe(Step(0, sigmas, torch.ones(1)), torch.zeros(1), True)  # velocity one
    x = torch.ones(1) + (sigmas[1] - sigmas[0])
    assert torch.allclose(peer.forecast(Step(1, sigmas, x)), x - sigmas[1], atol=1e-6)


def test_predictions_of_a_common_warm_up_are_computed_once(subjects):
    from highlight_diffusion.bench.peers import spectrum
    from highlight_diffusion.bench.shared import Shared

    subject, shared = subjects["mmdit"], Shared()
    model = spectrum.apply(subject.model, spectrum.SETTINGS["as ported"], hidden=False)
    alone, _ = subject.sample(model, PROMPT, 0, SAMPLING)
    first, seconds = subject.sample(shared.attached(model), PROMPT, 0, SAMPLING)
    calls, shared.calls = shared.calls, 0
    again, less = subject.sample(shared.attached(model), PROMPT, 0, SAMPLING)
    assert torch.equal(alone, first) and torch.equal(first, again)
    assert calls == shared.calls == 7 and less < seconds


@pytest.mark.parametrize(
    "kind, label", [("unet", "DeepCache N=2"), ("mmdit", "DBCache with TaylorSeer F1, 6 in a row, threshold=0.24")]
)
def test_a_meter_counts_what_torch_counts(subjects, kind, label):
    from highlight_diffusion.bench.meter import Meter

    subject = subjects[kind]
    (method,) = [m for m in methods(subject) if m.label == label]
    model = method.attach(subject.model, SAMPLING).model
    sample = lambda: subject.sample(model, PROMPT, 0, SAMPLING)  # noqa: E731
    meter = Meter(subject.model.get_model_object("diffusion_model"))
    assert meter.of(sample) == meter.of(sample) == macs(sample)


def test_bug_a_method_that_shortens_keys_alone_was_counted_as_saving_nothing(subjects):
    """ToDo's layers get the shapes that they always get."""
    from highlight_diffusion.bench.meter import Meter

    subject = subjects["mmdit"]
    (method,) = [m for m in methods(subject) if m.name == "ToDo"]
    model = method.attach(subject.model, SAMPLING).model
    sample = lambda: subject.sample(model, PROMPT, 0, SAMPLING)  # noqa: E731
    assert Meter(subject.model.get_model_object("diffusion_model")).exactly(sample) == macs(sample)


def test_a_node_that_is_not_installed_is_left_out(subject):
    from highlight_diffusion.bench.methods import by_node

    assert not installed("NoSuchNode") and list(by_node("x", "NoSuchNode", "knob", (1,))) == []
    with pytest.raises(KeyError):
        node("NoSuchNode")
