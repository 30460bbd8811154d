"""Unmodified packs of others beside ours: looked for in the folder HIGHLIGHT_PACKS names, or in ~/comfy/packs."""

import asyncio
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

IP_ADAPTER = "ComfyUI_IPAdapter_plus"
SOURCES = {
    IP_ADAPTER: "https://github.com/cubiq/ComfyUI_IPAdapter_plus",
    "ComfyUI-Advanced-ControlNet": "https://github.com/Kosinkadink/ComfyUI-Advanced-ControlNet",
    "ComfyUI-AnimateDiff-Evolved": "https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved",
    "ComfyUI-GGUF": "https://github.com/city96/ComfyUI-GGUF",
    "ComfyUI-Impact-Pack": "https://github.com/ltdrdata/ComfyUI-Impact-Pack",
    "ComfyUI-CacheDiT": "https://github.com/Jasonzzt/ComfyUI-CacheDiT",
    "ComfyUI-FSampler": "https://github.com/obisin/ComfyUI-FSampler",
    "ComfyUI-KJNodes": "https://github.com/kijai/ComfyUI-KJNodes",
    "ComfyUI-MagCache": "https://github.com/Zehong-Ma/ComfyUI-MagCache",
    "ComfyUI-Spectrum": "https://github.com/judian17/ComfyUI-Spectrum",
    "ComfyUI-Spectrum-SDXL-Proper": "https://github.com/xmarre/ComfyUI-Spectrum-SDXL-Proper",
    "ComfyUI-Spectrum-KSampler": "https://github.com/sorryhyun/ComfyUI-Spectrum-KSampler",
    "ComfyUI-Spectrum-sdxl": "https://github.com/ruwwww/ComfyUI-Spectrum-sdxl",
    "ComfyUI-TaylorSeer": "https://github.com/philipy1219/ComfyUI-TaylorSeer",
    "ComfyUI-TeaCache": "https://github.com/welltop-cn/ComfyUI-TeaCache",
    "ComfyUI-TiledDiffusion": "https://github.com/shiimizu/ComfyUI-TiledDiffusion",
    "ComfyUI_UltimateSDUpscale": "https://github.com/ssitu/ComfyUI_UltimateSDUpscale",
    "Comfy-WaveSpeed": "https://github.com/chengzeyi/Comfy-WaveSpeed",
    "MeanCache": "https://github.com/UnicomAI/MeanCache",
    "cache-dit": "https://github.com/vipshop/cache-dit",
    "comfyui-meancache-z": "https://github.com/facok/comfyui-meancache-z",
}


def place(name: str) -> Path:
    """Where a pack is looked for."""
    return Path(os.environ.get("HIGHLIGHT_PACKS", "~/comfy/packs")).expanduser() / name


def folder(name: str) -> Path:
    """Where a pack is; skips the test where it is not there."""
    found = place(name)
    if not found.is_dir():
        pytest.skip(f"{name} is not there: git clone --recursive {SOURCES[name]} {found}", allow_module_level=True)
    return found


def needed_by(workflow: dict) -> None:
    """Skips the test of a workflow whose nodes are of a pack that is not there."""
    if any(node["type"].startswith("IPAdapter") for node in workflow["nodes"]):
        folder(IP_ADAPTER)


def load(name: str) -> dict:
    """ComfyUI's node classes, those of this pack among them; skips the test where the pack is not there."""
    import nodes

    path = folder(name)
    if not any(getattr(module, "__file__", None) == str(path / "__init__.py") for module in list(sys.modules.values())):
        assert asyncio.run(nodes.load_custom_node(str(path))), f"{name} does not import in this ComfyUI"
    return nodes.NODE_CLASS_MAPPINGS


def part(name: str, inside: str, module: str) -> ModuleType:
    """One module of a pack whose whole would need more than is here, imported from the folder `inside` as the pack does."""
    path = str(folder(name) / inside)
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(module)


def alone(name: str, file: str) -> ModuleType:
    """One file of such a pack that imports none of its others, where a name in its folder is one of ComfyUI's own modules."""
    spec = importlib.util.spec_from_file_location(f"{name} {file}", folder(name) / file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
