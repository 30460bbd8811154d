"""What must hold in a long session: memory that runs out, many runs on the same models, two prompts at once."""

import gc
import os

import comfy.model_management
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.run import JOB

from . import tiny

pytestmark = pytest.mark.beside
PARTIAL = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
MODELS = {"UNet": tiny.sd15, "transformer": tiny.sd3}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> tiny.Tiny:
    return MODELS[request.param]()


def corner(model: tiny.Tiny) -> UserMasks:
    mask = torch.zeros(1, *model.size)
    mask[:, 4:8, :8] = 1
    return UserMasks(mask)


def run_with_little_memory(
    model, short_of_memory, error=torch.cuda.OutOfMemoryError, config=PARTIAL, given=None
) -> tuple[torch.Tensor, Trace]:
    """Sample where the model runs out of memory in every call of whose job `short_of_memory(job)` is true."""

    def limited(network, args, kwargs):
        if short_of_memory(kwargs["transformer_options"][JOB]):
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")

    trace = Trace()
    patcher = attach(model.patcher, config, trace, given=given or corner(model))
    hook = model.patcher.model.diffusion_model.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        return tiny.sample(model, patcher, steps=14), trace
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("short_of_memory", "words"),
    [
        (lambda job: bool(job.compute), "memory ran out in a partial evaluation"),
        (lambda job: bool(job.record), "memory ran out beside what is recorded for partial ones"),
    ],
    ids=["computing", "recording"],
)
def test_where_memory_runs_out_it_is_dense_once_and_goes_on_without_windows(model, short_of_memory, words):
    vanilla = tiny.sample(model, steps=14)
    latent, trace = run_with_little_memory(model, short_of_memory)
    run, said = trace.last, [(e.kind, e.reason) for e in trace.last.evaluations]
    assert torch.isfinite(latent).all() and run.completed
    assert [kind for kind, reason in said if reason.startswith(words)] == ["dense"], said
    assert not run.count("partial") and run.count("skipped"), said
    assert ("skipped", f"forecast only: {words}") in said
    assert torch.equal(tiny.sample(model, steps=14), vanilla)


def test_where_memory_runs_out_in_a_shallow_evaluation_forecasts_take_over():
    config = HighlightConfig(shallow="always", correct="never", pace=8.0)
    latent, trace = run_with_little_memory(tiny.sd15(), lambda job: bool(job.compute), config=config, given=UserMasks())
    said = [(e.kind, e.reason) for e in trace.last.evaluations]
    words = "memory ran out in a shallow evaluation"
    assert torch.isfinite(latent).all() and trace.last.completed
    assert [kind for kind, reason in said if reason.startswith(words)] == ["dense"], said
    assert ("skipped", f"forecast only: {words}") in said and not trace.last.count("shallow")


def test_memory_that_runs_out_for_the_model_itself_is_an_error_as_ever(model):
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        run_with_little_memory(model, lambda job: not job.compute)


def test_another_error_of_a_window_is_not_hidden(model):
    with pytest.raises(RuntimeError, match="Tried to allocate"):
        run_with_little_memory(model, lambda job: bool(job.compute), RuntimeError)


def live() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    return len(tensors), sum(t.untyped_storage().nbytes() for t in tensors)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_two_hundred_alternating_runs_leave_nothing_behind():
    """Accelerated and vanilla in turn, on two models, at changing sizes, prompts, batches and samplers."""
    models = [make() for make in MODELS.values()]
    sizes, samplers = [(8, 8), (8, 16), (16, 8)], ["euler", "dpmpp_2m", "euler_ancestral"]
    used = [attach(model.patcher, PARTIAL, Trace(), given=corner(model)) for model in models]
    vanilla = [tiny.sample(model, size=(8, 8), steps=3) for model in models]

    def alternate(count: int) -> None:
        for i in range(count):
            model, patcher = models[i % 2], used[i % 2] if i % 4 < 2 else models[i % 2].patcher
            tiny.sample(
                model, patcher, steps=8, size=sizes[i % 3], batch=1 + i % 5 // 4, prompt=i % 7, seed=i,
                sampler=samplers[i // 3 % 3],
            )  # fmt: skip

    alternate(60)
    tensors, held = live(), resident()
    alternate(200)
    assert live()[0] <= tensors[0] and live()[1] <= tensors[1] + 2**20
    assert resident() - held < 24 * 2**20
    for model, expected in zip(models, vanilla, strict=True):
        assert torch.equal(tiny.sample(model, size=(8, 8), steps=3), expected)


@pytest.mark.parametrize("make", [tiny.sd15, tiny.flux])
def test_bug_a_model_waited_for_the_garbage_collector(make):
    """A run and its state held each other; until they were collected, ComfyUI took the MODEL for one that is in use."""
    gc.collect()
    comfy.model_management.cleanup_models()
    before = len(comfy.model_management.current_loaded_models)
    gc.disable()
    try:
        model = make()
        tiny.sample(model, attach(model.patcher, PARTIAL, Trace(), given=corner(model)), steps=8)
        del model
        assert len(comfy.model_management.current_loaded_models) <= before
    finally:
        gc.enable()
