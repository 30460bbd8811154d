"""Partial evaluation on the demo UNet with random weights: exact at the moment of recording."""

import pytest
import torch
from highlight_diffusion.demo.unet import UNet, UNetConfig
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.unet_blocks import computing_window, depth_and_alignment, recording_windows
from highlight_diffusion.engine.partial.unet_window import Window, shallow_window

KEYS = ("positive", "negative")


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    model = UNet(UNetConfig(model_channels=32, channel_mult=(1, 2, 2, 2), head_channels=32)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(height: int, width: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, context = torch.randn(2, 4, height, width, generator=g), torch.randn(2, 77, 128, generator=g)
    return x, torch.tensor([500, 500]), context


def record(unet: UNet, box, frame, sigma: float = 5.0, seed: int = 1, depth=None) -> tuple[Window, torch.Tensor]:
    window, (x, t, context) = Window(box, frame, depth=depth), inputs(*frame, seed)
    window.begin(sigma)
    with recording_windows(unet, [window], KEYS):
        dense = unet(x, t, context)
    return window, dense


@pytest.mark.parametrize("frame", [(32, 32), (32, 48)])
@pytest.mark.parametrize("box", [(8, 24, 8, 24), (0, 16, 16, 32), (16, 32, 0, 8), (0, 32, 0, 32)])
def test_window_equals_dense_where_it_was_recorded(unet, box, frame):
    window, dense = record(unet, box, frame)
    x, t, context = inputs(*frame)
    with computing_window(unet, window, KEYS, 5.0):
        inside = unet(window.crop(x), t, context)
    expected = window.crop(dense)
    bare = unet(window.crop(x), t, context)
    assert (inside - expected).abs().max() <= 2e-5 * expected.abs().max()
    if box != (0, 32, 0, 32) or frame != (32, 32):
        assert (bare - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 8, 11])
def test_a_window_of_any_depth_equals_dense_where_it_was_recorded(unet, depth):
    align = 2 ** sum(i in (3, 6, 9) for i in range(depth))
    box = (8, 24, 0, 16) if align > 2 else (6, 18, 10, 28)
    window, dense = record(unet, box, (32, 32), depth=depth)
    x, t, context = inputs(32, 32)
    with computing_window(unet, window, KEYS, 5.0):
        inside = unet(window.crop(x), t, context)
    expected = window.crop(dense)
    assert inside.shape == expected.shape
    assert (inside - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_a_shallow_window_runs_none_of_the_blocks_within(unet):
    window, _ = record(unet, (6, 18, 10, 28), (32, 32), depth=3)
    whole, _ = record(unet, (8, 24, 8, 24), (32, 32))
    x, t, context = inputs(32, 32)
    seen = []
    handles = [m.register_forward_hook(lambda m, i, o: seen.append(o.shape)) for m in unet.middle_block.modules()]
    with computing_window(unet, window, KEYS, 5.0):
        unet(window.crop(x), t, context)
    for handle in handles:
        handle.remove()
    assert all(shape[-2:] == (1, 1) for shape in seen) and window.bytes < whole.bytes


@pytest.mark.parametrize("depth", [-1, 12])
def test_a_depth_the_unet_has_not_is_refused(unet, depth):
    with pytest.raises(ValueError, match=f"depth is {depth}; this UNet has 12 blocks"):
        record(unet, (8, 24, 8, 24), (32, 32), depth=depth)


@pytest.mark.parametrize(
    ("frame", "levels", "depth", "align"),
    [((32, 32), 0, None, 8), ((32, 32), 1, 3, 1), ((32, 32), 2, 6, 2), ((32, 32), 4, None, 8), ((32, 32), 9, None, 8),
     ((36, 32), 0, 9, 4), ((34, 32), 3, 6, 2), ((33, 32), 2, 3, 1)],
)  # fmt: skip
def test_windows_reach_as_many_levels_as_divide_the_frame(unet, frame, levels, depth, align):
    assert depth_and_alignment(unet, frame, levels) == (depth, align)


def test_recording_changes_no_bit(unet):
    x, t, context = inputs(32, 32)
    for depth in (None, 3):
        _, dense = record(unet, (8, 24, 8, 24), (32, 32), depth=depth)
        assert torch.equal(dense, unet(x, t, context))


def test_forwards_are_restored_also_after_an_error(unet):
    class Stop(Exception):
        pass

    window, _ = record(unet, (8, 24, 8, 24), (32, 32))
    for context in (recording_windows(unet, [window], KEYS), computing_window(unet, window, KEYS, 5.0)):
        with pytest.raises(Stop), context:
            raise Stop
    assert not any("forward" in module.__dict__ for module in unet.modules())
    assert all(m.padding == (1, 1) for m in unet.modules() if getattr(m, "kernel_size", None) == (3, 3))


def test_a_foreign_forward_survives(unet):
    calls, conv = [], unet.out[2]
    original = conv.forward
    conv.forward = foreign = lambda x: (calls.append(1), original(x))[1]
    try:
        record(unet, (8, 24, 8, 24), (32, 32))
        assert calls and conv.forward is foreign
    finally:
        del conv.forward


def test_streams_recorded_apart_serve_a_call_with_both(unet):
    window, (x, t, context) = Window((8, 24, 8, 24), (32, 32)), inputs(32, 32)
    window.begin(5.0)
    for i, key in enumerate(KEYS):
        with recording_windows(unet, [window], [key]):
            unet(x[i : i + 1], t[:1], context[i : i + 1])
    with computing_window(unet, window, KEYS, 5.0):
        inside = unet(window.crop(x), t, context)
    expected = window.crop(unet(x, t, context))
    assert (inside - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_windows_of_two_images_are_exact_each_on_its_own(unet):
    """A batch of two images in two streams; every image has another window."""
    (x, t, context), frame = inputs(32, 32), (32, 32)
    x, t, context = (torch.cat([v, v.flip(0)]) for v in (x, t, context))
    windows = [Window((8, 24, 8, 24), frame, rows=ImageRows(0, 2)), Window((0, 16, 16, 32), frame, rows=ImageRows(1, 2))]
    for window in windows:
        window.begin(5.0)
    with recording_windows(unet, windows, KEYS):
        dense = unet(x, t, context)
    full = torch.zeros_like(dense)
    for window in windows:
        with computing_window(unet, window, KEYS, 5.0):
            window.paste(full, unet(window.crop(window.rows.of(x)), window.rows.of(t), window.rows.of(context)))
        expected = window.crop(window.rows.of(dense))
        assert (window.crop(window.rows.of(full)) - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert not full[0, :, :8].any() and full[1].any()


def test_only_two_recordings_are_kept_and_their_size_is_known(unet):
    window, _ = record(unet, (8, 24, 8, 24), (32, 32), sigma=5.0)
    one = window.bytes
    assert one > 0
    for sigma in (4.0, 3.0):
        window.begin(sigma)
        x, t, context = inputs(32, 32)
        with recording_windows(unet, [window], KEYS):
            unet(x, t, context)
    assert window.bytes == 2 * one and [r.sigma for r in window.entries] == [4.0, 3.0]


@pytest.mark.parametrize("frame", [(32, 32), (32, 48)])
def test_a_shallow_evaluation_equals_dense_where_it_was_recorded(unet, frame):
    window, (x, t, context) = shallow_window(frame), inputs(*frame)
    window.begin(5.0)
    with recording_windows(unet, [window], KEYS):
        dense = unet(x, t, context)
    with computing_window(unet, window, KEYS, 5.0):
        shallow = unet(x, t, context)
    assert torch.equal(shallow, dense)
    window.begin(4.0)
    with recording_windows(unet, [window], KEYS):
        unet(inputs(*frame, seed=2)[0], t, context)
    with computing_window(unet, window, KEYS, 4.0):
        other = unet(x, t, context)
    assert (other - dense).abs().max() > 1e-3 * dense.abs().max(), "what enters from within must matter"


def test_windows_of_several_depths_are_recorded_in_one_call(unet):
    box, frame = (8, 24, 0, 16), (32, 32)
    windows = [Window(box, frame, depth=6), Window(box, frame, depth=3), shallow_window(frame)]
    x, t, context = inputs(*frame)
    for window in windows:
        window.begin(5.0)
    with recording_windows(unet, windows, KEYS):
        dense = unet(x, t, context)
    for window in windows:
        with computing_window(unet, window, KEYS, 5.0):
            inside = unet(window.crop(x), t, context)
        expected = window.crop(dense)
        assert (inside - expected).abs().max() <= 2e-5 * expected.abs().max()
