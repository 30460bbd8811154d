"""What partial evaluations lack: recorded, kept in one of three ways, extrapolated, dropped."""

import math

import pytest
import torch
from highlight_diffusion.engine.partial.cache import ActivationCache, CacheEntry, ImageRows
from highlight_diffusion.engine.partial.storage import STORAGES, CpuStorage, DenseStorage, Int8Storage
from highlight_diffusion.engine.time_axis import FLOW
from highlight_diffusion.engine.tuning import ACTIVATION_DAMPING
from hypothesis import given, settings
from hypothesis import strategies as st

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PLACE, KEYS = (3, 0), ("positive", "negative")


def rows(*values: float) -> torch.Tensor:
    """A part with a row of two tokens for each stream."""
    return torch.tensor(values)[:, None, None].expand(-1, 2, 4).clone()


def recorded(*sigmas_and_rows: tuple[float, torch.Tensor], **kwargs) -> ActivationCache:
    held = ActivationCache(**kwargs)
    for sigma, part in sigmas_and_rows:
        held.begin(sigma)
        held.put(PLACE, KEYS, part)
    return held


# -- how tensors are kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [64, 128, 40])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3e3])
def test_eight_bits_are_off_by_half_a_step_of_their_group_at_most(device, dtype, channels, size):
    x = (size * torch.randn(2, 5, channels, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    x[0, 0] = 0
    kept = Int8Storage(x)
    back, width = kept.restored(), 64 if channels % 64 == 0 else channels
    assert back.dtype == dtype and back.shape == x.shape and back.device == x.device and not back[0, 0].any()
    step = x.float().unflatten(-1, (-1, width)).abs().amax(-1, keepdim=True) / 127
    off = (back.float() - x.float()).abs().unflatten(-1, (-1, width))
    rounding = 2 * torch.finfo(dtype).eps * x.float().abs().max() + torch.finfo(dtype).smallest_normal
    assert (off <= 0.5 * step + rounding).all() and off.max() > 0
    assert kept.bytes == x.numel() + 4 * x.numel() // width


def test_groups_of_channels_have_scales_of_their_own():
    """A channel a thousand times as large as the others must not cost those of other groups their bits."""
    x = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0))
    x[..., 0] = 1000.0
    off = (Int8Storage(x).restored() - x).abs()
    assert off[..., 64:].max() < 0.02 < off[..., 1:64].max()


@pytest.mark.parametrize("device", DEVICES)
def test_what_stays_on_the_device_is_no_copy_and_what_is_offloaded_is_one_on_the_host(device):
    x = torch.randn(2, 3, 8, device=device)
    before = x.clone()
    kept, offloaded = DenseStorage(x), CpuStorage(x)
    assert kept.restored().data_ptr() == x.data_ptr() and offloaded.x.device.type == "cpu"
    assert kept.bytes == offloaded.bytes == x.numel() * 4
    x.zero_()
    assert not kept.restored().any() and torch.equal(offloaded.restored(), before)
    assert offloaded.restored().device == x.device


@pytest.mark.parametrize(("memory", "way"), STORAGES.items())
def test_only_tokens_are_kept_as_memory_says(memory, way):
    held = ActivationCache()
    held.memory = memory
    held.begin(1.0)
    held.put("tokens", KEYS, torch.randn(2, 3, 64), tokens=True)
    held.put("edge", KEYS, torch.randn(2, 3, 64))
    parts = held.entries[-1].parts
    assert type(parts["tokens"][KEYS]) is way and type(parts["edge"][KEYS]) is DenseStorage
    assert held.bytes == parts["tokens"][KEYS].bytes + 4 * 2 * 3 * 64


def test_no_graph_is_kept_alive():
    held = recorded((1.0, rows(1.0, 2.0).requires_grad_()))
    assert not held.get(PLACE, KEYS, 1.0).requires_grad


# -- streams -------------------------------------------------------------------------------------------------------------


@given(st.permutations(range(5)), st.sets(st.integers(1, 4)), st.permutations(range(5)), st.integers(1, 5))
@settings(deadline=None)
def test_streams_are_found_in_any_order_and_from_any_calls(order, cuts, wanted, count):
    """A host puts the streams of an evaluation into calls as it likes, at every evaluation anew."""
    recording, ends = CacheEntry(1.0), [0, *sorted(cuts), 5]
    for start, end in zip(ends, ends[1:], strict=False):
        keys = tuple(order[start:end])
        recording.parts.setdefault(PLACE, {})[keys] = DenseStorage(rows(*(float(key) for key in keys)))
    wanted = tuple(wanted[:count])
    assert recording.holds(wanted) and not recording.holds((*wanted, "another"))
    assert torch.equal(recording.get(PLACE, wanted), rows(*(float(key) for key in wanted)))


def test_a_stream_may_have_many_rows_and_they_stay_together():
    recording = CacheEntry(1.0, {PLACE: {("a", "b"): DenseStorage(torch.arange(6.0)[:, None])}})
    assert recording.get(PLACE, ("b", "a"))[:, 0].tolist() == [3, 4, 5, 0, 1, 2]


def test_what_was_not_recorded_is_an_error_not_a_guess():
    held = recorded((1.0, rows(1.0, 2.0)))
    assert not CacheEntry(1.0).holds(KEYS)
    with pytest.raises(KeyError):
        held.get(PLACE, ("another",), 0.5)
    with pytest.raises(KeyError):
        held.get("elsewhere", KEYS, 0.5)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_regions_rows_are_those_of_its_image(images):
    """A call's rows are its streams, each with all images one after the other."""
    call = torch.tensor([[10.0 * stream + image] for stream in range(2) for image in range(images)])
    for image in range(images):
        assert ImageRows(image, images).of(call)[:, 0].tolist() == [image, 10.0 + image]


# -- recordings and what they tell of later ------------------------------------------------------------------------------


def test_the_last_two_recordings_are_held():
    held = ActivationCache()
    assert not held.entries and held.bytes == 0
    for sigma in (8.0, 4.0, 2.0):
        held.begin(sigma)
        held.put(PLACE, KEYS, rows(sigma, 0.0))
    assert [recording.sigma for recording in held.entries] == [4.0, 2.0]
    assert held.bytes == 2 * 4 * 2 * 2 * 4


@pytest.mark.parametrize("again", [2.0, 2.0 * (1 - 1e-7), 3.0])
def test_a_recording_at_the_same_or_a_higher_sigma_takes_the_place_of_the_newest(again):
    """Heun evaluates twice at one sigma, and a sampler may step back: two recordings there would have no slope."""
    held = recorded((4.0, rows(1.0, 1.0)), (2.0, rows(2.0, 2.0)), (again, rows(3.0, 3.0)))
    assert [recording.sigma for recording in held.entries] == [4.0, again]
    assert torch.equal(held.get(PLACE, KEYS, again), rows(3.0, 3.0))


def test_one_recording_is_taken_as_it_is():
    held = recorded((4.0, rows(1.0, 5.0)))
    assert torch.equal(held.get(PLACE, KEYS, 1.0), rows(1.0, 5.0))


@pytest.mark.parametrize(("sigma", "spacings"), [(2.0, 0), (math.sqrt(2), 0.5), (1.0, 1), (0.5, 2), (0.01, 4), (3.0, 0)])
def test_two_go_on_by_a_share_of_their_slope_not_back_and_not_far(sigma, spacings):
    """By one spacing where sigma halves again; by four at most."""
    held = recorded((4.0, rows(10.0, 0.0)), (2.0, rows(8.0, 1.0)))
    expected = rows(8.0 - 2.0 * ACTIVATION_DAMPING * spacings, 1.0 + ACTIVATION_DAMPING * spacings)
    assert torch.allclose(held.get(PLACE, KEYS, sigma), expected)


def test_a_flow_goes_on_along_its_own_axis():
    sigmas = 0.9, 0.8, 0.7
    held = recorded((sigmas[0], rows(1.0, 0.0)), (sigmas[1], rows(2.0, 0.0)), axis=FLOW)
    places = [FLOW.half_log_snr(sigma) for sigma in sigmas]
    on = (places[2] - places[1]) / (places[1] - places[0])
    assert torch.allclose(held.get(PLACE, KEYS, sigmas[2]), rows(2.0 + ACTIVATION_DAMPING * on, 0.0))
    other = recorded((sigmas[0], rows(1.0, 0.0)), (sigmas[1], rows(2.0, 0.0)))
    assert not torch.allclose(held.get(PLACE, KEYS, sigmas[2]), other.get(PLACE, KEYS, sigmas[2]), atol=1e-2)


def test_without_damping_share_the_newest_is_taken_as_it_is():
    held = recorded((4.0, rows(10.0, 0.0)), (2.0, rows(8.0, 1.0)))
    held.damping = 0.0
    assert torch.equal(held.get(PLACE, KEYS, 0.5), rows(8.0, 1.0))


def test_extrapolating_changes_no_recording():
    held = recorded((4.0, rows(10.0, 0.0)), (2.0, rows(8.0, 1.0)))
    first = held.get(PLACE, KEYS, 0.5)
    assert torch.equal(held.get(PLACE, KEYS, 0.5), first) and torch.equal(held.get(PLACE, KEYS, 2.0), rows(8.0, 1.0))


def test_each_stream_goes_on_by_its_own_slope_whatever_calls_they_came_in():
    held = ActivationCache()
    held.begin(4.0)
    for key, value in (("negative", 0.0), ("positive", 10.0)):
        held.put(PLACE, (key,), rows(value))
    held.begin(2.0)
    held.put(PLACE, KEYS, rows(8.0, 1.0))
    assert torch.allclose(held.get(PLACE, KEYS, 1.0), rows(8.0 - 2 * ACTIVATION_DAMPING, 1.0 + ACTIVATION_DAMPING))
    assert torch.allclose(held.get(PLACE, ("negative",), 1.0), rows(1.0 + ACTIVATION_DAMPING))


def test_a_stream_that_the_older_recording_lacks_has_no_slope():
    held = ActivationCache()
    held.begin(4.0)
    held.put(PLACE, ("positive",), rows(10.0))
    held.begin(2.0)
    held.put(PLACE, KEYS, rows(8.0, 1.0))
    assert torch.equal(held.get(PLACE, KEYS, 1.0), rows(8.0, 1.0))


def test_recordings_of_other_lengths_have_no_slope():
    """The host put other prompts together, and their text has another length."""
    held = recorded((4.0, rows(10.0, 0.0)), (2.0, torch.ones(2, 3, 4)))
    assert torch.equal(held.get(PLACE, KEYS, 1.0), torch.ones(2, 3, 4))


@pytest.mark.parametrize("memory", STORAGES)
def test_every_way_of_keeping_goes_on_alike(memory):
    generator = torch.Generator().manual_seed(0)
    older, newer = (torch.randn(2, 5, 64, generator=generator) for _ in range(2))
    held = ActivationCache()
    held.memory = memory
    for sigma, part in ((4.0, older), (2.0, newer)):
        held.begin(sigma)
        held.put(PLACE, KEYS, part, tokens=True)
    expected = newer + ACTIVATION_DAMPING * (newer - older)
    off = (held.get(PLACE, KEYS, 1.0) - expected).abs().max()
    assert off < (0.05 if memory == "8 bit" else 1e-5)
