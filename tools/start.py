"""Load the pack as a package, the way ComfyUI does, and start one of its programs. Called by run.py."""

from __future__ import annotations

import importlib.util
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


if __name__ == "__main__":
    load_pack()
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (PACK, PACK / "tools")]
    program = importlib.import_module(f"{NAME}.{sys.argv.pop(1)}")
    sys.exit(program.main())
