import numpy as np
import pytest
import torch
from highlight_diffusion.bench.gaps import Bench
from highlight_diffusion.bench.promises import snr
from highlight_diffusion.bench.tail import Tail


@pytest.fixture(scope="module")
def tail():
    with torch.inference_mode():
        return Tail(Bench("mmdit", 16, 8, 3, 4747), 2.0)


def test_a_gap_alone_is_what_it_is_in_a_plan_of_that_gap(tail):
    bench = tail.bench
    assert [*tail.dense] == sorted({*tail.dense}) and len(tail.dense) == 4
    assert sorted(i for gap in tail.gaps for i in gap.forecast) == tail.forecast
    with torch.inference_mode():
        for gap in tail.gaps:
            assert np.array_equal(gap.off, bench.off(bench.latents(gap.forecast)))
            assert gap.off.shape == (3,) and (gap.off > 0).all() and (gap.probe is None) == (gap.end == bench.steps)
        assert not bench.off(bench.latents([])).any(), "all dense is the dense run"


def test_a_probe_is_of_what_the_sampler_is_given_and_a_peak_is_no_less(tail):
    probed = [gap for gap in tail.gaps if gap.probe is not None]
    assert probed and all((gap.peak >= gap.probe * 0.999).all() for gap in probed)


def test_the_worst_pictures_come_first_with_the_gap_that_costs_them_most(tail):
    with torch.inference_mode():
        found = list(tail.worst(2))
    order = tail.off.argsort()[::-1]
    for index, (row, pictures) in zip(order, found, strict=False):
        gap = max(tail.gaps, key=lambda own: own.off[index])
        assert f"| {gap.start} to {gap.end} |" in row and tail.bench.scenes[index].caption in row
        assert [caption.split(",")[0] for _, caption in pictures] == ["dense", "path", f"{gap.start} to {gap.end} dense"]


def test_a_signal_to_noise_ratio_is_of_each_picture():
    latents = torch.ones(2, 4, 8, 8)
    other = latents.clone()
    other[1] += 0.1
    assert snr(latents, other) == pytest.approx([100.0, 20.0], abs=1e-3)
