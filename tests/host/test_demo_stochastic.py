"""Samplers that add noise, on the bundled demo UNet: what is saved must not draw what the dense run does not."""

import csv

import pytest
from highlight_diffusion.bench.stochastic import Stochastic
from highlight_diffusion.demo.scenes import unseen_scenes
from highlight_diffusion.tools.comfy import Sampling

pytestmark = pytest.mark.beside
SEED = 4242
SCENES = unseen_scenes(8, SEED, (1, 2, 3, 0))


@pytest.mark.parametrize(
    ("sampler", "steps", "preset", "scene"),
    [("sa_solver", 12, "balanced", 0), ("sa_solver", 20, "fast", 0), ("dpmpp_2m_sde", 20, "fast", 0)],
)
def test_bug_objects_that_are_not_there_under_samplers_that_add_noise(tmp_path, sampler, steps, preset, scene):
    """Forecasts reached over more fresh noise than they are good for, and objects appeared that nobody had asked for."""
    bench = Stochastic("unet", [SCENES[scene]], SEED, tmp_path)
    bench.compare(Sampling(sampler, steps, 3.0, "normal"), [preset], fewer=False)
    with (tmp_path / "stochastic.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["new"] == "0" and row["right"] == row["dense_right"]
    assert float(row["psnr"]) > 25  # the same picture
    assert set(row["kinds"]) == {"D", "h"}
