"""The laws of merging tokens, on the bundled transformer in plain torch."""

import pytest
import torch
from highlight_diffusion.demo.load import encode_prompt, load_plain
from highlight_diffusion.demo.plain import sample
from highlight_diffusion.demo.plain_flow import PlainFlow
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig

OFF = HighlightConfig(enabled=False)
PURE = SDTMConfig(mcw=1, protect_steps=0)
STEPS = 10


@pytest.fixture(scope="module")
def model():
    mmdit, text, _ = load_plain("mmdit")
    prompts = ["a large red circle at the left on a plain navy background", "a small blue star on a plain gray background"]
    return PlainFlow(mmdit, torch.cat([encode_prompt(text, prompt) for prompt in prompts]), encode_prompt(text, ""))


def run(model, merging, config=OFF, size=(16, 16), batch: int = 1, seed: int = 0):
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
    return sample(model.of(slice(0, batch)), noise, STEPS, 3.0, config, merging=merging)


@pytest.mark.parametrize("settings", [{"enabled": False}, {"r": 0, "delta": 0}, {"protect_blocks": tuple(range(8))}])
def test_off_is_off(model, settings):
    dense, _ = run(model, None)
    latent, _ = run(model, SDTMConfig(**settings))
    assert torch.equal(latent, dense)


def test_tokens_are_merged_and_the_trace_says_which(model):
    dense, _ = run(model, None)
    for config in (SDTMConfig(), PURE):
        latent, trace = run(model, config)
        merged = [e for e in trace.evaluations if e.merged is not None]
        assert merged and torch.isfinite(latent).all() and not torch.equal(latent, dense)
        assert all(e.active < 1 and e.merged.shape == (1, 8, 8) and 0 < e.merged.mean() < 1 for e in merged)
        assert all(e.tokens_saved == round((1 - e.active) * 64) and "mlp" in e.parts_merged for e in merged)
        assert (trace.cache_bytes > 0) == (config is not PURE)
    assert all(e.reason for e in trace.evaluations)


def test_detail_makes_the_next_evaluation_exact_where_nothing_moved(model):
    """At the state the detail was recorded at, what merged tokens get differs by the merging of what enters alone."""
    dense, _ = run(model, None)
    errors = [float((run(model, config)[0] - dense).abs().mean()) for config in (SDTMConfig(r=0.5), SDTMConfig(r=0.5, mcw=1))]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("size", [(16, 24), (18, 14), (10, 2)])
def test_any_grid(model, size):
    latent, trace = run(model, SDTMConfig(r=0.6), size=size)
    assert torch.isfinite(latent).all() and trace.evaluations[-1].reason


def test_images_of_a_batch_are_merged_apart(model):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    both, _ = sample(model, noise, STEPS, 3.0, OFF, merging=SDTMConfig())
    second, _ = sample(model.of(slice(1, 2)), noise[1:], STEPS, 3.0, OFF, merging=SDTMConfig())
    assert torch.allclose(both[1:], second, atol=2e-4)


def test_a_second_run_equals_the_first(model):
    assert torch.equal(run(model, SDTMConfig())[0], run(model, SDTMConfig())[0])


def test_with_the_highlight_what_it_covers_is_spared(model):
    """A matching knows the highlight of the evaluation before it; where the heatmap moves it, it moves one matching later."""
    _, trace = run(model, SDTMConfig(r=0.5, protect_steps=2), HighlightConfig(interval=(2,), warmup=4))
    merged = [e for e in trace.evaluations if e.merged is not None]
    assert merged and trace.count("skipped") and trace.highlight is not None
    attended = torch.nn.functional.max_pool2d(trace.highlight.float(), 2) > 0  # tokens with a highlighted cell
    inside, outside = (torch.stack([e.merged[area].mean() for e in merged]) for area in (attended, ~attended))
    assert inside.mean() < 0.3 * outside.mean()


def test_with_the_highlight_the_last_steps_are_whole(model):
    """Nothing mends what they get wrong: on the demo transformer the worst picture loses more than merging them saves."""
    config = HighlightConfig(interval=(1, 1, 2, 1), warmup=2)
    _, trace = run(model, SDTMConfig(r=0.5, protect_steps=2), config)
    assert any(e.merged is not None for e in trace.evaluations[:-2])
    assert all(e.merged is None and "whose errors nothing mends" in e.reason for e in trace.evaluations[-2:])


def test_what_is_remembered_can_be_kept_smaller_or_elsewhere(model):
    (plain, full), (coded, small), (moved, _) = (
        run(model, SDTMConfig(memory=memory)) for memory in ("device", "8 bit", "offload")
    )
    assert small.cache_bytes < 0.4 * full.cache_bytes and torch.equal(moved, plain)
    assert 0 < (coded - plain).abs().max() < 0.1 * plain.abs().max()
