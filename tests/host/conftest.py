"""Real ComfyUI in this process, on the CPU."""

import logging
import shutil
from pathlib import Path

import pytest
from comfy import cli_args
from highlight_diffusion.bench.server import Server
from highlight_diffusion.engine.trace import Run

from . import packs, release

cli_args.args.cpu = True  # before anything imports comfy.model_management
logging.getLogger().setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def repository(pack, tmp_path_factory) -> Path:
    return release.repository(pack, tmp_path_factory.mktemp("remote") / "highlight-diffusion")


@pytest.fixture(scope="session")
def packed(repository, tmp_path_factory) -> Path:
    """The pack as the registry hands it out."""
    return release.unpacked(repository, tmp_path_factory.mktemp("packed") / "highlight-diffusion")


@pytest.fixture(scope="session")
def server(comfyui, packed, tmp_path_factory, request):
    """A headless ComfyUI in a fresh folder, with the pack as the registry hands it out and the picture ComfyUI comes with."""
    base = tmp_path_factory.mktemp("ComfyUI")
    (base / "input").mkdir()
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    if request.config.getoption("--full-size"):
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / packs.IP_ADAPTER).symlink_to(packs.folder(packs.IP_ADAPTER), target_is_directory=True)
    with Server(comfyui, packed, base=base) as running:
        yield running


@pytest.fixture
def check(observe):
    """Checks a row of the compatibility table and takes its outcome up into it."""
    from .sampling import run_thrice  # imports ComfyUI, which must find the arguments above

    def checked(*args, **kwargs) -> Run:
        run = run_thrice(*args, **kwargs)
        observe(run)
        return run

    return checked
