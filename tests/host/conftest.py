"""Real ComfyUI in this process, on the CPU."""

import logging
from pathlib import Path

import pytest
from comfy import cli_args

from . import release

cli_args.args.cpu = True  # before anything imports comfy.model_management
logging.getLogger().setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def repository(pack, tmp_path_factory) -> Path:
    return release.repository(pack, tmp_path_factory.mktemp("remote") / "highlight-diffusion")


@pytest.fixture(scope="session")
def packed(repository, tmp_path_factory) -> Path:
    """The pack as the registry hands it out."""
    return release.unpacked(repository, tmp_path_factory.mktemp("packed") / "highlight-diffusion")
