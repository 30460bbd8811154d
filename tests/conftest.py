"""Loads the pack the way ComfyUI does, as `highlight_diffusion`; the checkout itself stays off sys.path, since its
`nodes/` would shadow ComfyUI's `nodes.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest_plugins = ["compatibility"]
PACK = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load(PACK / "bench" / "start.py").load_pack()
COMFYUI = load(PACK / "run.py").find_comfyui()
if COMFYUI:
    sys.path.insert(0, str(COMFYUI))
torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schema", action="store_true", help="write the nodes' schema as the one to be kept")
    parser.addoption("--full-size", action="store_true", help="run the workflows that need encoders of the published size")
    parser.addoption("--cases", type=int, default=300, help="how many cases the fuzzing tries")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if COMFYUI is None and PACK / "tests" / "host" in [collection_path, *collection_path.parents] else None


def pytest_terminal_summary(terminalreporter) -> None:
    if COMFYUI is None:
        terminalreporter.write_line(
            "host tests skipped: no ComfyUI found; set COMFYUI_PATH to a checkout, or put one at ~/comfy/ComfyUI"
        )


@pytest.fixture(scope="session")
def pack() -> Path:
    return PACK


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return COMFYUI
