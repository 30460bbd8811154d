"""Unmodified packs of others beside ours: looked for in the folder HIGHLIGHT_PACKS names, or in ~/comfy/packs."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

SOURCES = {"ComfyUI_IPAdapter_plus": "https://github.com/cubiq/ComfyUI_IPAdapter_plus"}


def load(name: str) -> dict:
    """ComfyUI's node classes, those of this pack among them; skips the test where the pack is not there."""
    import nodes

    folder = Path(os.environ.get("HIGHLIGHT_PACKS", "~/comfy/packs")).expanduser() / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there: git clone {SOURCES[name]} {folder}", allow_module_level=True)
    if not any(getattr(module, "__file__", None) == str(folder / "__init__.py") for module in list(sys.modules.values())):
        assert asyncio.run(nodes.load_custom_node(str(folder))), f"{name} does not import in this ComfyUI"
    return nodes.NODE_CLASS_MAPPINGS
