"""Files for the browser, in ComfyUI's temporary folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths

FOLDER = "highlight_diffusion"


def save_json(name: str, content: dict) -> dict[str, str]:
    """Write a JSON file, replacing one of that name at once; returns what the route /view needs to find it."""
    folder = Path(folder_paths.get_temp_directory()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, separators=(",", ":")))
    os.replace(fresh, path)
    return {"filename": path.name, "subfolder": FOLDER, "type": "temp"}
