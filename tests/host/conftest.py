"""Real ComfyUI in this process, on the CPU unless the environment names another device."""

import logging
from collections.abc import Callable

import inputs
import pytest
import torch
from comfy import cli_args
from highlight_diffusion.engine.region import regions
from highlight_diffusion.engine.trace import RunRecord

cli_args.args.cpu = inputs.DEVICE.type == "cpu"  # before anything imports comfy.model_management
cli_args.args.use_pytorch_cross_attention = True  # as on a GPU; what else ComfyUI takes on a CPU is three times slower
logging.getLogger().setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="package")
def no_gradients():
    """ComfyUI runs nodes without gradients; with them, what the samplers of tests compute would be kept for ever."""
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="package")
def any_attention_is_prominent():
    """Models of random weights look at every word alike; here what they look at makes a highlight all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "MIN_PROMINENCE", 0.0)
        yield


def _observed(observe: Callable[[RunRecord], None], sampled: Callable[..., RunRecord]) -> Callable[..., RunRecord]:
    def checked(*args, **kwargs) -> RunRecord:
        run = sampled(*args, **kwargs)
        observe(run)
        return run

    return checked


@pytest.fixture
def check(observe):
    """Checks a row of the compatibility table and takes its outcome up into it."""
    from .sampling import run_thrice  # imports ComfyUI, which must find the arguments above

    return _observed(observe, run_thrice)


@pytest.fixture
def check_merging(observe):
    """The same for SDTM Token Merging alone."""
    from .sampling import merge_thrice

    return _observed(observe, merge_thrice)


@pytest.fixture
def user(tmp_path):
    """ComfyUI's user directory, an empty one for this test alone."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_user_directory(before)
