"""The engine on the bundled transformer in plain torch."""

import pytest
import torch
from highlight_diffusion.demo.detector import all_right, colour_map
from highlight_diffusion.demo.load import encode_prompt, load_plain
from highlight_diffusion.demo.plain import sample
from highlight_diffusion.demo.plain_flow import PlainFlow
from highlight_diffusion.demo.scenes import parse_caption
from highlight_diffusion.demo.vae import SCALE
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.trace import inside

PROMPTS = [
    "a large red circle at the top left on a plain navy background",
    "a small yellow square at the right on a plain gray background",
    "a large green triangle at the bottom on a plain beige background",
]
CONFIG = HighlightConfig(correct="always")
STEPS = 20


@pytest.fixture(scope="module")
def modules():
    return load_plain("mmdit")


def model_of(modules, prompt: str = PROMPTS[0]) -> PlainFlow:
    mmdit, text, _ = modules
    return PlainFlow(mmdit, encode_prompt(text, prompt), encode_prompt(text, ""))


def run(model, config, seed: int = 0, size=(32, 32), batch: int = 1, regional=None):
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
    return sample(model, noise, STEPS, 3.0, config, regional)


def picture(modules, latent) -> torch.Tensor:
    with torch.inference_mode():
        return (modules[2].decode(latent / SCALE)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)


def test_it_draws_what_it_is_asked(modules):
    right = [
        all_right(
            parse_caption(prompt), picture(modules, run(model_of(modules, prompt), HighlightConfig(enabled=False))[0]).numpy()
        )
        for prompt in PROMPTS
    ]
    assert sum(right) >= 2, right


def test_off_and_everything_give_the_dense_latent(modules):
    model = model_of(modules)
    dense, _ = run(model, HighlightConfig(enabled=False))
    for config in (HighlightConfig(interval=(1,)), HighlightConfig(threshold=0.0)):
        latent, trace = run(model, config)
        assert torch.equal(latent, dense) and trace.count("dense") == STEPS


def test_a_subset_is_nearer_to_dense_than_the_forecast(modules):
    """At each partial evaluation of three runs, inside the highlight."""
    nearer = []

    def regional(model, job, x, state):
        evaluation = job.evaluation
        computed, truth = model.do(job, x), model(x, evaluation.sigma)
        guess = state.forecasts.predict(evaluation.index, x, evaluation.sigma)
        for box in inside(evaluation.boxes):
            for c, g, t in zip(computed, guess, truth, strict=True):
                nearer.append(bool((c - t)[box].norm() < (g - t)[box].norm()))
        return computed

    for prompt in PROMPTS:
        run(model_of(modules, prompt), CONFIG, regional=regional)
    assert nearer and sum(nearer) >= 0.75 * len(nearer), nearer


def test_the_heat_lies_on_the_objects_of_the_picture(modules):
    ratios = []
    for seed, prompt in enumerate(PROMPTS):
        latent, trace = run(model_of(modules, prompt), CONFIG, seed)
        objects = torch.from_numpy(colour_map(picture(modules, latent).numpy()) >= 0).float()
        heat = next(e.heatmap for e in reversed(trace.evaluations) if e.heatmap is not None)[0]
        within = torch.nn.functional.interpolate(objects[None, None], heat.shape[-2:], mode="area")[0] > 0.5
        ratios.append(float(heat[within].mean() / heat[~within].mean()))
    assert sum(ratios) / len(ratios) > 1.5, ratios


def test_runs_do_not_touch_each_other(modules):
    model = model_of(modules)
    first = run(model, CONFIG)[0]
    for change in ({"seed": 4}, {"size": (32, 40)}, {"batch": 2}):
        run(model, CONFIG, **change)
    assert torch.equal(run(model, CONFIG)[0], first)
    assert not any("forward" in m.__dict__ or "attend" in m.__dict__ for m in model.mmdit.modules())
