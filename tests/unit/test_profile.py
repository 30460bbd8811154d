from dataclasses import replace

import numpy as np
import pytest
import torch
from highlight_diffusion.demo.diffusion import normal_sigmas
from highlight_diffusion.engine.profile import (
    FEATURES,
    LARGEST,
    Profile,
    ProfileError,
    Recorder,
    read_profile,
    write_profile,
)
from highlight_diffusion.engine.time_axis import DIFFUSION, FLOW
from safetensors.torch import load_file, save_file

SIGMAS = normal_sigmas(30).tolist()[:-1]
ABOUT = {"kind": "highlight diffusion profile", "version": "1", "axis": "diffusion", "name": ""}


def smooth(seed: int = 0, pictures: int = 1):
    """Two branches of noise predictions (pictures, 4, 16, 16) that change smoothly along the time axis."""
    draw = torch.Generator().manual_seed(seed)
    parts = torch.randn(2, 5, pictures, 4, 16, 16, generator=draw)

    def eps(sigma: float) -> list[torch.Tensor]:
        way = (DIFFUSION.half_log_snr(sigma) + 3) / 6.5
        return [sum(np.cos(np.pi * k * way) / (1 + k) ** 2 * part for k, part in enumerate(own)) for own in parts]

    return eps


def recorded(seed: int = 0, pictures: int = 1, sigmas=SIGMAS):
    """What a recorder made of these predictions, along Euler's path with CFG 3."""
    eps, recorder = smooth(seed, pictures), Recorder((3.0, -2.0))
    x = torch.randn(pictures, 4, 16, 16, generator=torch.Generator().manual_seed(seed + 1)) * sigmas[0]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        positive, negative = eps(sigma)
        recorder.add(x, [x - sigma * positive, x - sigma * negative], sigma)
        x = x + (3 * positive - 2 * negative) * (following - sigma)
    return recorder.runs()


def test_differences_of_sketches_are_as_large_as_those_of_predictions():
    profile = Profile(recorded(pictures=12), DIFFUSION)
    found, eps = profile.at(SIGMAS, "eps"), smooth(pictures=12)
    for i, j in ((0, 5), (10, 14), (20, 29)):
        true = sum(w * (a - b) for w, a, b in zip((3, -2), eps(SIGMAS[i]), eps(SIGMAS[j]), strict=True)).square().mean()
        sketched = ((found[:, i] - found[:, j]) ** 2).sum(-1).mean()
        assert sketched == pytest.approx(float(true), rel=0.2)


def test_another_schedule_is_read_off_by_interpolation():
    """20 steps of a scheduler whose sigmas lie elsewhere, as a run at these sigmas has them."""
    karras = [(14.6 ** (1 / 7) + i / 19 * (0.04 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7 for i in range(20)]
    between = Profile(recorded(), DIFFUSION).at(karras, "eps")
    exact = Profile(recorded(sigmas=karras), DIFFUSION).at(karras, "eps")
    off = np.abs(between - exact).max((0, 2)) / np.abs(exact).max()
    assert off[:16].max() < 1e-3 and off.max() < 0.05  # the normal schedule's last two sigmas lie a factor of six apart


def test_a_profile_survives_its_file(tmp_path):
    profile = Profile(recorded(pictures=2, sigmas=[s / 15 for s in SIGMAS]), FLOW, "mine")
    write_profile(profile, tmp_path / "p.safetensors")
    again = read_profile(tmp_path / "p.safetensors")
    assert (again.axis, again.name, len(again.runs)) == (FLOW, "mine", 2)
    assert np.allclose(again.at([0.9, 0.3], "eps"), profile.at([0.9, 0.3], "eps"), rtol=1e-2, atol=1e-2)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_runs_add_up_and_the_oldest_make_room(tmp_path):
    first, profile = recorded(0)[0], Profile(recorded(0), DIFFUSION)
    assert len(profile.joined(recorded(1, 3)).runs) == 4
    for seed in range(2, 30):
        profile = profile.joined(recorded(seed))
    write_profile(profile, tmp_path / "p.safetensors")
    assert 8 <= len(profile.runs) < 29 and profile.runs[0] is not first
    assert (tmp_path / "p.safetensors").stat().st_size <= LARGEST


def test_bug_a_long_run_left_a_profile_without_any():
    profile = Profile(recorded(0), DIFFUSION)
    long = replace(profile.runs[0], sigmas=np.geomspace(10, 0.1, 600), eps=np.zeros((2, 600, 64)), x0=np.zeros((2, 600, 64)))
    with pytest.raises(ValueError, match="a run of 600 steps is too long for a profile"):
        profile.joined([long])


def _refused(tmp_path, tensors: dict, about: dict, match: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file(tensors, path, about)
    with pytest.raises(ProfileError, match=match) as error:
        read_profile(path)
    assert "other.safetensors" in str(error.value)


def test_damaged_foreign_and_newer_files_are_refused_by_name(tmp_path):
    path = tmp_path / "p.safetensors"
    write_profile(Profile(recorded(), DIFFUSION), path)
    tensors = load_file(path)
    _refused(tmp_path, tensors, {}, "no profile of Highlight Diffusion")
    _refused(tmp_path, tensors, {**ABOUT, "version": "2"}, "update the pack")
    _refused(tmp_path, {n: t for n, t in tensors.items() if n != "0.eps"}, ABOUT, "not complete")
    _refused(tmp_path, {**tensors, "0.eps": tensors["0.eps"] * torch.nan}, ABOUT, "make no sense")
    _refused(tmp_path, {**tensors, "0.sigmas": tensors["0.sigmas"].flip(0)}, ABOUT, "make no sense")
    _refused(tmp_path, tensors, {**ABOUT, "axis": "flow"}, "make no sense")  # whose sigmas end at 1
    _refused(tmp_path, {**tensors, "0.x0": torch.zeros(2, 30, FEATURES - 1)}, ABOUT, "make no sense")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ProfileError, match=r"p\.safetensors is damaged"):
        read_profile(path)
    path.write_bytes(b"x" * (LARGEST + 1))
    with pytest.raises(ProfileError, match=r"p\.safetensors is no profile"):
        read_profile(path)


def test_a_recorder_leaves_out_what_does_not_fall_and_needs_some_points():
    recorder, x = Recorder((1.0,)), torch.randn(1, 4, 8, 8)
    for sigma in (3.0, 2.0, 2.0, 2.5, 1.0):
        recorder.add(x, [x / 2], sigma)
    assert recorder.sigmas == [3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="3 points and a profile needs 4"):
        recorder.runs()
    recorder.add(x, [x * torch.inf], 0.5)
    with pytest.raises(ValueError, match="not finite"):
        recorder.runs()
