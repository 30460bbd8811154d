"""The page of the bench says what its CSV files say."""

import csv

import numpy as np
import pytest
from highlight_diffusion.bench import page
from highlight_diffusion.bench.page import OURS, Points, complete, fidelity_at, leads, ratio_at

KEYS = ("sampler", "steps", "cells")  # what a table of the bench begins with; others in its folder are left alone


def points(name: str, ratios: list[float], fidelities: list[float], prompts: int = 10) -> Points:
    spread = np.linspace(-1, 1, prompts)
    fidelity = np.array(fidelities)[:, None] + spread
    return Points(name, tuple(f"{r:g}" for r in ratios), np.array(ratios), fidelity, np.arange(prompts))


def row(method: str, setting: str, prompt: int, psnr: float = 40.0, macs: int = 50, **more) -> dict[str, str]:
    given = {
        "method": method,
        "setting": setting,
        "prompt": prompt,
        "seed": 0,
        "psnr": psnr,
        "dense_macs": 100,
        "macs": macs,
        "wanted": 0,
        "right": 0,
        "psnr_inside": "nan",
    }
    return {name: str(value) for name, value in (given | more).items()}


def test_strengths_that_are_cheaper_and_better_are_the_curve():
    ratio, mean, low = points("x", [1.2, 1.5, 2.0, 3.0], [40, 35, 42, 30]).curve()
    assert ratio.tolist() == [2.0, 3.0] and mean.tolist() == [42.0, 30.0]
    assert low[0] == pytest.approx(42 + np.percentile(np.linspace(-1, 1, 10), 10))


def test_between_two_points_a_curve_is_interpolated_in_the_logarithm():
    curve = points("x", [1.0, 4.0], [50, 30]).curve()
    assert fidelity_at(2.0, curve)[0] == pytest.approx(40.0) and ratio_at(40.0, curve) == pytest.approx(2.0)
    assert np.isnan(fidelity_at(4.5, curve)[0]) and np.isnan(ratio_at(51.0, curve))
    assert fidelity_at(0.5, curve)[0] == 50.0 and ratio_at(20.0, curve) == pytest.approx(4.0)


def test_a_lead_is_at_the_peer_s_cost_and_at_its_fidelity():
    ours, peer = points(OURS, [1.5, 3.0], [50, 30]), points("peer", [1.1, 1.5, 2.0, 3.2], [45, 44, 42, 20])
    first, second, third = leads(ours, peer)
    assert (first.setting, first.ratio) == ("1.5", 1.5), "1.1 lies outside the compared range"
    assert first.decibels == pytest.approx(6.0) and first.decile == pytest.approx(6.0)
    assert first.surely == pytest.approx(6.0), "the same pictures differ by the same everywhere"
    assert second.decibels == pytest.approx(fidelity_at(2.0, ours.curve())[0] - 42)
    assert second.times == pytest.approx(ratio_at(42.0, ours.curve()) / 2)
    assert np.isnan(third.decibels), "ours does not reach that cost"
    assert page.least([first, second, third]) is (first if first.decibels < second.decibels else second)


def test_bug_pictures_that_an_interrupted_run_lacks_count_for_none():
    """Curves of different prompts were compared."""
    whole = [row(method, "1", prompt) for method in ("dense", OURS, "b") for prompt in range(3)]
    found = complete([*whole, row(OURS, "1", 3), row("dense", "", 3)])
    assert set(found) == {OURS, "b"}
    assert found[OURS].fidelity.shape == found["b"].fidelity.shape == (1, 3)


def test_a_strength_that_a_later_run_adds_does_not_drop_the_others_pictures():
    whole = [row(method, "1", prompt) for method in ("dense", OURS, "b") for prompt in range(3)]
    found = complete([*whole, row("b", "2", 0)])
    assert found["b"].settings == ("1",) and found[OURS].fidelity.shape == (1, 3)


def test_objects_are_counted_beside_those_of_the_dense_pictures():
    kinds = {"dense": (2, "100"), OURS: (1, "30")}
    rows = [row(name, "1" if name == OURS else "", prompt, wanted=2, right=right, psnr_inside=inside)
            for name, (right, inside) in kinds.items() for prompt in range(3)]  # fmt: skip
    bare = [row(name, "1" if name == OURS else "", 3, psnr_inside="nan") for name in kinds]
    (found,) = complete([*rows, *bare])[OURS].objects
    assert (found.inside, found.right, found.dense) == (30, 3, 6), "a background alone counts for none"


def page_of(folder, methods) -> str:
    """The page of five pictures of methods: name, setting, PSNR of the first, MACs."""
    rows = [
        row(method, setting, prompt, psnr + prompt, macs, sampler="euler", steps=20, cells=32)
        for method, setting, psnr, macs in methods
        for prompt in range(5)
    ]
    folder.mkdir()
    with (folder / "unet.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sampler", "steps", "cells", *(name for name in rows[0] if name not in KEYS)])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "other.csv").write_text("model,sampler\n")
    return page.write(folder).read_text()


PRESETS = (("dense", "", 100, 100), (OURS, "quality", 60, 70), (OURS, "balanced", 40, 50), (OURS, "fast", 30, 30))


def test_where_a_peer_is_ahead_the_page_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    monkeypatch.setattr(page, "FOLDER", folder)
    text = page_of(folder, (*PRESETS, ("better", "a", 45, 50), ("worse", "b", 35, 50)))
    assert "| better | **-5.0 [-5.0] / -5.0 dB" in text and "| worse | +5.0 [+5.0] / +5.0 dB" in text
    assert "above 1 of 2 strengths; not above 20 steps, 256 px: better a (2.0x) -5.0 / -5.0." in text
    assert "| balanced | 2.00x: 42.0 / 40.4 / 40.0 |" in text and (folder / "unet.png").exists()


def test_bug_where_no_peer_was_measured_the_page_says_so(tmp_path, monkeypatch):
    """It had an empty table and "Ours is above 0 of 0 strengths"."""
    folder = tmp_path / "benchmarks"
    monkeypatch.setattr(page, "FOLDER", folder)
    text = page_of(folder, PRESETS)
    assert page.NO_PEERS in text and "| beside |" not in text and "Ours is above" not in text
