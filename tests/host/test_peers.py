"""Every method of the bench does something on the bench's model, and costs less than dense."""

import asyncio

import pytest
import torch
from highlight_diffusion.bench.cost import macs
from highlight_diffusion.bench.methods import DENSE, methods
from highlight_diffusion.engine.config import PACES
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


BALANCED = f"pace={PACES['balanced']:g} (balanced)"
BOTH = {
    "fewer steps": "0.5", "LazyCache": "reuse_threshold=0.2",
    "Highlight Diffusion": BALANCED, "forecast alone": BALANCED, "forecasts not revised": BALANCED,
    "always corrected": BALANCED, "interval": "N=3",
}  # fmt: skip
STRONGEST = {
    "unet": {
        **BOTH, "always shallow": BALANCED, "EasyCache": "reuse_threshold=0.2", "ToMe": "ratio=0.6",
        "HyperTile": "tile_size=64", "DeepCache": "N=3", "DeepCache, branch 3": "N=3",
        "T-GATE": "gate=0.4", "Faster Diffusion": "density=0.7", "FRDiff": "N=3",
    },
    "mmdit": {
        **BOTH, "First-Block Cache": "threshold=0.2", "TeaCache": "threshold=0.3", "RAS": "ratio=0.5", "AccelAes": "every=2",
        "ToMe on DiT": "ratio=0.5", "ToDo": "factor=2 blocks=100%", "SDTM as released": "r=0.5 protect=3",
        "SDTM": "r=0.5 protect=4 (balanced)", "SDTM, merging alone": "r=0.4", "SDTM ablated": "nothing remembered",
        "Highlight and SDTM": "pace=5 r=0.5 protect=2",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in STRONGEST.items() for name in names])
def test_a_method_changes_the_latent_and_saves_work(subjects, denses, kind, name):
    subject, (latent, cost) = subjects[kind], denses[kind]
    (method,) = [m for m in methods(subject.transformer) if m.name == name and m.setting == STRONGEST[kind][name]]
    accelerated, executed = run(subject, method)
    assert torch.isfinite(accelerated).all()
    assert (accelerated - latent).abs().max() > 1e-3, f"{name} has no effect on the bench's model"
    assert executed < 0.97 * cost


@pytest.mark.parametrize("kind", STRONGEST)
def test_every_method_of_the_bench_is_tested_here(subjects, kind):
    assert {m.name for m in methods(subjects[kind].transformer)} == {"dense", *STRONGEST[kind]}


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


@pytest.mark.parametrize("name", ["First-Block Cache", "TeaCache", "RAS", "ToMe on DiT", "ToDo", "SDTM as released"])
def test_a_peer_of_transformers_that_skips_nothing_is_dense(subjects, denses, name):
    from highlight_diffusion.bench.peers import first_block, ras, sdtm_official, teacache, todo, tome_dit

    subject = subjects["mmdit"]
    model = {
        "First-Block Cache": lambda: first_block.apply(subject.model, 0.0),
        "TeaCache": lambda: teacache.apply(subject.model, 0.0),
        "RAS": lambda: ras.apply(subject.model, SAMPLING.steps, 1.0),
        "ToMe on DiT": lambda: tome_dit.apply(subject.model, 0.0),
        "ToDo": lambda: todo.apply(subject.model, 1),
        "SDTM as released": lambda: sdtm_official.apply(subject.model, SAMPLING.steps, 0.0, 0.0, protect=0),
    }[name]()
    latent, _ = subject.sample(model, PROMPT, 0, SAMPLING)
    assert (latent - denses["mmdit"][0]).abs().max() <= 1e-5 * latent.abs().max()


@pytest.mark.parametrize("kind, label", [
    ("unet", "DeepCache N=3"), ("mmdit", "First-Block Cache threshold=0.2"), ("mmdit", "TeaCache threshold=0.3"),
    ("mmdit", "RAS ratio=0.5"), ("mmdit", "AccelAes every=2"), ("mmdit", "ToMe on DiT ratio=0.5"),
    ("mmdit", "SDTM as released r=0.5 protect=3"),
])  # fmt: skip
def test_a_second_run_of_a_peer_is_the_first(subjects, kind, label):
    """Peers keep state between steps; a new run must not see the last one's."""
    subject = subjects[kind]
    (method,) = [m for m in methods(subject.transformer) if m.label == label]
    attached = method.attach(subject.model, SAMPLING)
    first, second = (subject.sample(attached.model, PROMPT, 0, SAMPLING)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_node_that_is_not_installed_is_left_out(subject):
    from highlight_diffusion.bench.methods import by_node

    assert not installed("NoSuchNode") and list(by_node("x", "NoSuchNode", "knob", (1,))) == []
    with pytest.raises(KeyError):
        node("NoSuchNode")
