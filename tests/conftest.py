"""Loads the pack the way ComfyUI does, as `highlight_diffusion`; the checkout itself stays off sys.path, since its
`nodes/` would shadow ComfyUI's `nodes.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from host import packs, release

pytest_plugins = ["compatibility"]
PACK = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load(PACK / "tools" / "start.py").load_pack()
programs = load(PACK / "run.py")
COMFYUI, CHROMIUM = programs.find_comfyui(), programs.find_chromium()
if COMFYUI:
    sys.path.insert(0, str(COMFYUI))
torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schema", action="store_true", help="write the nodes' schema as the one to be kept")
    parser.addoption("--update-models", action="store_true", help="write the tables of docs/models.md from what was run")
    parser.addoption("--full-size", action="store_true", help="run the workflows that need encoders of the published size")
    parser.addoption(
        "--cases",
        type=int,
        help="how many cases the fuzzing tries, others in every run; 80 that are always the same without it",
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    left_out = ([] if COMFYUI else ["host", "browser"]) + ([] if CHROMIUM else ["browser"])
    within = [collection_path, *collection_path.parents]
    return True if any(PACK / "tests" / tier in within for tier in left_out) else None


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that is on ComfyUI in this process, by its folder; `run.py test` chooses by it."""
    for item in items:
        if item.path.is_relative_to(PACK / "tests" / "host"):
            item.add_marker("host")


SUMMARY: list[str] = []


@pytest.fixture(scope="session")
def summary() -> list[str]:
    """Lines to print at the end of the session."""
    return SUMMARY


def pytest_terminal_summary(terminalreporter) -> None:
    if COMFYUI is not None and CHROMIUM is None:
        terminalreporter.write_line("browser tests skipped: no Chromium found; on Debian: apt-get install chromium")
    for line in SUMMARY:
        terminalreporter.write_line(line)
    if COMFYUI is None:
        terminalreporter.write_line(
            "host and browser tests skipped: no ComfyUI found; set COMFYUI_PATH to a checkout, or put one at ~/comfy/ComfyUI"
        )


@pytest.fixture(scope="session")
def pack() -> Path:
    return PACK


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return COMFYUI


@pytest.fixture(scope="session")
def chromium() -> str:
    return CHROMIUM


@pytest.fixture(scope="session")
def repository(pack, tmp_path_factory) -> Path:
    return release.repository(pack, tmp_path_factory.mktemp("remote") / "highlight-diffusion")


@pytest.fixture(scope="session")
def packed(repository, tmp_path_factory) -> Path:
    """The pack as the registry hands it out."""
    return release.unpacked(repository, tmp_path_factory.mktemp("packed") / "highlight-diffusion")


@pytest.fixture(scope="session")
def server(comfyui, packed, tmp_path_factory):
    """One headless ComfyUI in a fresh folder, with the pack as the registry hands it out, for all tests that want one:
    starting it takes longer than most of them."""
    from highlight_diffusion.tools.server import Server

    with Server(comfyui, packed, base=release.fresh_folder(comfyui, tmp_path_factory.mktemp("ComfyUI"))) as running:
        yield running


@pytest.fixture(scope="session")
def server_of_workflows(comfyui, packed, tmp_path_factory):
    """Another, beside the pack whose nodes some of the workflows have, if it is there."""
    from highlight_diffusion.tools.server import Server

    others = [path for path in (packs.place(packs.IP_ADAPTER),) if path.is_dir()]
    base = release.fresh_folder(comfyui, tmp_path_factory.mktemp("ComfyUI"), *others)
    with Server(comfyui, packed, base=base) as running:
        yield running
