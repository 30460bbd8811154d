"""The engine on the bundled model in plain torch: dense, partial and forecast, without ComfyUI."""

import pytest
import torch
from highlight_diffusion.demo.detector import colour_map
from highlight_diffusion.demo.diffusion import normal_sigmas
from highlight_diffusion.demo.load import encode_prompt, load_plain
from highlight_diffusion.demo.plain import PlainModel, dense_call, sample, window_call
from highlight_diffusion.demo.vae import SCALE
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job, Request
from highlight_diffusion.engine.partial.unet_blocks import depth_and_alignment
from highlight_diffusion.engine.partial.unet_window import shallow_window, windows_of
from highlight_diffusion.engine.setup import start_run
from highlight_diffusion.engine.trace import RunRecord, inside

CONFIG = HighlightConfig(correct="always")
PROMPT = "a large red circle at the top left on a plain navy background"
STEPS = 16


@pytest.fixture(scope="module")
def model() -> PlainModel:
    unet, text, _ = load_plain()
    return PlainModel(unet, encode_prompt(text, PROMPT), encode_prompt(text, ""))


def run(model: PlainModel, config: HighlightConfig, seed: int = 0, size=(32, 32), batch: int = 1):
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
    return sample(model, noise, STEPS, 3.0, config)


@pytest.fixture(scope="module")
def dense(model) -> torch.Tensor:
    return run(model, HighlightConfig(enabled=False))[0]


@pytest.mark.parametrize(
    "config", [HighlightConfig(interval=(1,)), HighlightConfig(threshold=0.0)], ids=["interval 1", "everything"]
)
def test_off_and_everything_give_the_dense_latent(model, dense, config):
    latent, trace = run(model, config)
    assert torch.equal(latent, dense) and trace.count("dense") == STEPS


def test_highlighted_is_near_dense_and_computes_less(model, dense):
    latent, trace = run(model, CONFIG)
    assert trace.count("skipped") >= 4 and len(trace.evaluations) == STEPS and trace.completed
    assert 0 < (latent - dense).square().mean().sqrt() < 0.1 * dense.std()


def test_runs_do_not_touch_each_other(model):
    first = run(model, CONFIG)[0]
    for change in ({"seed": 4}, {"size": (32, 48)}, {"batch": 2}):
        run(model, CONFIG, **change)
    assert torch.equal(run(model, CONFIG)[0], first)
    assert not any("forward" in m.__dict__ for m in model.unet.modules())


def test_the_heat_lies_on_the_objects_of_the_picture(model):
    unet, text, vae = load_plain()
    ratios = []
    for seed, colour in enumerate(("red", "yellow", "green", "purple")):
        prompt = f"a large {colour} circle at the top left on a plain navy background"
        latent, trace = run(PlainModel(unet, encode_prompt(text, prompt), model.negative), CONFIG, seed)
        picture = vae.decode(latent / SCALE)[0] / 2 + 0.5
        objects = torch.from_numpy(colour_map(picture.permute(1, 2, 0).numpy()) >= 0).float()
        heat = next(e.heatmap for e in reversed(trace.evaluations) if e.heatmap is not None)[0]
        inside = torch.nn.functional.interpolate(objects[None, None], heat.shape[-2:], mode="area")[0] > 0.5
        ratios.append(float(heat[inside].mean() / heat[~inside].mean()))
    assert sum(ratios) / len(ratios) > 1.5, ratios


@pytest.mark.parametrize("levels", [0, 2])
def test_a_window_is_exact_where_it_was_recorded_and_nearer_than_the_forecast_later(model, levels):
    """Along a dense path: record at one step, compute the window at that step and at the next, with its history."""
    size, sigmas = (32, 32), normal_sigmas(20).tolist()
    trace = RunRecord((1, 4, *size), "euler", tuple(sigmas))
    depth, align = depth_and_alignment(model.unet, size, levels)
    config = HighlightConfig(interval=(4,), warmup=3, max_area=1.0, correct="always")
    run = start_run(config, trace, align, windows_of(size, depth=depth))
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    exact, better = [], []
    with torch.inference_mode():
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            truth = model(x, sigma)

            def regional(job, x=x, truth=truth):
                computed = window_call(model, job, x)
                guess = run.state.forecasts.predict(job.evaluation.index, x, job.evaluation.sigma)
                for box in inside(job.evaluation.boxes):
                    for c, g, t in zip(computed, guess, truth, strict=True):
                        better.append(bool((c - t)[box].norm() < (g - t)[box].norm()))
                return computed

            def dense(job, x=x, truth=truth):
                result = dense_call(model, job, x)
                for window in job.record:
                    again = window_call(model, Job(job.evaluation, compute=(window,)), x)
                    for a, t in zip(again, truth, strict=True):
                        scale = t.abs().max()
                        exact.append(float((window.crop(a) - window.crop(t)).abs().max() / scale))
                return result

            run.evaluate(Request(x, sigma, "dense path"), lambda job: regional(job) if job.compute else dense(job))
            denoised = truth[1] + 3.0 * (truth[0] - truth[1])
            x = x + (x - denoised) / sigma * (following - sigma)
    assert exact and max(exact) < 1e-4
    assert better and sum(better) >= 0.75 * len(better), better


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde"])
def test_what_enters_shallow_evaluations_is_copied_under_an_sde_and_else_extrapolated(sampler):
    sigmas, size = tuple(normal_sigmas(12).tolist()), (32, 32)
    whole = shallow_window(size)
    start_run(HighlightConfig(pace=8.0), RunRecord((1, 4, *size), sampler, sigmas), 2, windows_of(size), shallow=whole)
    for sigma, value in ((2.0, 1.0), (1.0, 2.0)):
        whole.begin(sigma)
        whole.put("place", ("positive",), torch.tensor([value]))
    later = float(whole.get("place", ("positive",), 0.5))
    assert later == 2.0 if sampler == "dpmpp_2m_sde" else later > 2.0
