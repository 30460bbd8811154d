"""Load the pack as a package, the way ComfyUI does, and start one of its programs. Called by run.py."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parent.parent
NAME = "highlight_diffusion"


def load_pack() -> ModuleType:
    """Import the pack under a fixed name, whatever its folder is called and from wherever this runs."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
        assert spec is not None and spec.loader is not None, f"{PACK / '__init__.py'} is missing"
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def program_of(name: str) -> ModuleType:
    """Import a program of the pack, which may import ComfyUI's modules where COMFYUI_PATH says where they are."""
    load_pack()
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (PACK, PACK / "tools")]
    if os.environ.get("COMFYUI_PATH"):
        importlib.import_module(f"{NAME}.tools.comfy").find_core()
    return importlib.import_module(f"{NAME}.{name}")


if __name__ == "__main__":
    sys.exit(program_of(sys.argv.pop(1)).main())
