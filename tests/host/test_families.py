"""The laws of the design on every family of transformers, as tiny real models in the real host."""

import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models
import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.storage import DenseStorage
from highlight_diffusion.engine.partial.token_subset import TokenSubset
from highlight_diffusion.engine.trace import Evaluation, Trace
from highlight_diffusion.host.attach import attach
from highlight_diffusion.host.call import ModelCall
from highlight_diffusion.host.families import FAMILIES, family_of
from highlight_diffusion.host.run import KEY

from . import tiny

WRAPPERS = comfy.patcher_extension.WrappersMP
# A given mask makes the highlight, since what random weights look at is no place.
PARTIAL = HighlightConfig(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
MODELS = {**tiny.TRANSFORMERS, "sd3 bf16": lambda: tiny.built_in("bf16", tiny.sd3)}
ROUNDING, ROUNDING_BF16 = 2e-6, 1e-2  # a matrix product of some of the rows may round differently

AT_ONE = Evaluation(0, 0, 1.0, "dense", "", 1.0)  # what is recorded and computed below is at one sigma


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> tiny.Tiny:
    return MODELS[name]()


def given_mask(model):
    from highlight_diffusion.engine.region.regions import UserMasks

    height, width = model.size
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, : width // 2] = 1
    return UserMasks(mask)


@pytest.fixture
def run(model):
    """Sample with a config (None for the model as it is); returns the latent and the trace."""

    def sampled(config=None, **kwargs):
        trace = Trace()
        patcher = attach(model.patcher, config, trace, given=given_mask(model)) if config else model.patcher
        return tiny.sample(model, patcher, **kwargs), trace

    return sampled


def kinds(trace: Trace) -> list[str]:
    return [e.kind for e in trace.last.evaluations]


def test_every_family_has_a_tiny_model():
    found = {family_of(make().patcher).title for make in tiny.TRANSFORMERS.values()}
    assert found <= {family.title for family in FAMILIES}, "the others are in test_more_families.py"


def test_off_is_off(run):
    vanilla, _ = run(steps=4)
    for config in (HighlightConfig(enabled=False), HighlightConfig(interval=(1,))):
        latent, trace = run(config, steps=4)
        assert torch.equal(latent, vanilla) and set(kinds(trace)) == {"dense"}


def errors_of_a_subset(model: tiny.Tiny, batch: int, **kwargs) -> tuple[list[float], list[float]]:
    """Every dense evaluation is followed by a partial one of the last image at the same x and sigma, and by one whose
    recording was wiped: the negative control. How far both are off inside, as a share of the largest value there."""
    exact, wiped = [], []
    (y0, y1), (x0, x1) = box = (4, 12), (2, 10)

    def again(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        args = (x, t, c_concat, c_crossattn, control, transformer_options)
        dense = executor(*args, **kwargs)
        state = transformer_options[KEY]
        subset = TokenSubset([(*box[0], *box[1])], state.grid, ImageRows(batch - 1, batch))
        subset.begin(1.0)
        call = ModelCall(executor, *args, kwargs)
        assert torch.equal(state.apply_model(Job(AT_ONE, record=(subset,)), call), dense)
        expected = subset.rows.of(dense)[..., y0:y1, x0:x1]

        def error() -> float:
            part = subset.rows.of(state.apply_model(Job(AT_ONE, compute=(subset,)), call))[..., y0:y1, x0:x1]
            return float((part - expected).abs().max() / expected.abs().max())

        exact.append(error())
        for calls in subset.entries[-1].parts.values():
            for keys in calls:
                calls[keys] = DenseStorage(torch.zeros_like(calls[keys].x))
        wiped.append(error())
        return dense

    patcher = attach(model.patcher, HighlightConfig(enabled=False), Trace())
    patcher.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "again", again)
    tiny.sample(model, patcher, steps=3, batch=batch, **kwargs)
    return exact, wiped


@pytest.mark.parametrize("batch", [1, 2])
def test_a_subset_equals_dense_where_it_was_recorded(model, name, batch):
    exact, wiped = errors_of_a_subset(model, batch)
    assert len(exact) >= 3 and max(exact) <= (ROUNDING_BF16 if name.endswith("bf16") else ROUNDING)
    assert max(wiped) > 1e-4 and min(wiped) > 0


def test_a_subset_of_frames_that_have_timesteps_of_their_own():
    """Wan 2.2 5B with a start image: its frame has timestep 0, the others that of the step."""
    model = tiny.wan(comfy.supported_models.WAN22_T2V, 48)
    mask = torch.ones(1, 1, 3, *model.size)
    mask[:, :, 0] = 0
    seen = []
    embedding = model.patcher.model.diffusion_model.time_embedding
    embedding.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    exact, wiped = errors_of_a_subset(model, 1, noise_mask=mask)
    assert set(seen) == {2 * 3}, "each of the three frames has its own"
    assert max(exact) <= ROUNDING and min(wiped) > 1e-4


def test_partial_evaluations_happen_and_say_so(run):
    vanilla, _ = run(steps=14)
    latent, trace = run(PARTIAL, steps=14)
    partial = [e for e in trace.last.evaluations if e.kind == "partial"]
    assert partial, [(e.kind, e.reason) for e in trace.last.evaluations]
    assert all(e.boxes and e.forecast_error is not None and 0 < e.active < 0.6 and e.reason for e in partial)
    assert torch.isfinite(latent).all() and not torch.equal(latent, vanilla) and trace.last.cache_bytes > 0


def test_the_prompt_gives_a_heatmap(model):
    trace = Trace()
    tiny.sample(model, attach(model.patcher, HighlightConfig(), trace), steps=8)
    heard = [e.heatmap for e in trace.last.evaluations if e.heatmap is not None]
    assert heard and 0 <= heard[-1].min() < heard[-1].max() <= 1 and heard[-1].std() > 0.01
    assert heard[-1].shape[-2:] == tuple(model.size)


def test_all_is_all(model, run):
    vanilla, _ = run(steps=8)
    trace = Trace()
    latent = tiny.sample(model, attach(model.patcher, HighlightConfig(threshold=0.0), trace), steps=8)
    assert torch.equal(latent, vanilla)
    assert "the highlight is the whole frame" in {e.reason for e in trace.last.evaluations}


@pytest.mark.parametrize(
    "change",
    [{}, {"prompt": 9}, {"size": (48, 40)}, {"batch": 2}, {"sampler": "dpmpp_2m"}, {"cfg": 1.0}],
    ids=lambda change: next(iter(change), "nothing"),
)
def test_nothing_leaks_into_another_run_on_the_same_model(model, change):
    given = given_mask(model)
    used = attach(model.patcher, PARTIAL, Trace(), given=given)
    tiny.sample(model, used, steps=8)
    fresh = attach(model.patcher, PARTIAL, Trace(), given=given)
    settings = {"steps": 8, **change}
    assert torch.equal(tiny.sample(model, used, **settings), tiny.sample(model, fresh, **settings))


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_after_an_error_the_next_run_is_vanilla(model, run, error):
    vanilla, _ = run(steps=6)
    trace = Trace()

    def callback(step, *_):
        if step == 4:
            raise error

    with pytest.raises(error):
        tiny.sample(model, attach(model.patcher, PARTIAL, trace, given=given_mask(model)), steps=6, callback=callback)
    assert not trace.last.completed and torch.equal(run(steps=6)[0], vanilla)
    assert not any("forward" in m.__dict__ for m in model.patcher.model.diffusion_model.modules())


def test_a_foreign_attention_override_is_called_too(model, name):
    if name in ("pixart", "hunyuan_dit"):
        return  # ComfyUI hands these models' attention no options, so there can be no override
    calls = []

    def override(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    trace = Trace()
    latent = tiny.sample(model, attach(patcher, PARTIAL, trace, given=given_mask(model)), steps=10)
    plain = tiny.sample(model, attach(model.patcher, PARTIAL, Trace(), given=given_mask(model)), steps=10)
    assert calls and torch.equal(latent, plain)


def test_a_foreign_block_replacement_leaves_it_to_the_forecast(model, run):
    patcher = model.patcher.clone()
    patcher.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    trace = Trace()
    tiny.sample(model, attach(patcher, PARTIAL, trace, given=given_mask(model)), steps=10)
    assert not trace.last.count("partial") and trace.last.count("skipped")
    assert any("another node patches dit" in e.reason for e in trace.last.evaluations)
