"""Keeps locales/ in step with the nodes: `python run.py locales`.

Writes locales/en/nodeDefs.json from the nodes themselves, and says what other languages lack or have too much.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from .comfy import boot
from .console import say
from .server import PACK

LOCALES = PACK / "locales"


def of_nodes() -> dict[str, dict]:
    """The texts of every node of the pack, in the form of ComfyUI's nodeDefs.json."""
    from ..nodes import HighlightExtension

    return {
        node.GET_SCHEMA().node_id: _of_node(node.GET_SCHEMA()) for node in asyncio.run(HighlightExtension().get_node_list())
    }


def _of_node(schema: Any) -> dict:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs},
        "outputs": {
            str(place): {"name": output.display_name or output.io_type, "tooltip": output.tooltip}
            for place, output in enumerate(schema.outputs)
        },
    }


def read(language: str) -> dict[str, dict]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def languages() -> list[str]:
    return sorted(path.name for path in LOCALES.iterdir() if path.is_dir())


def paths(texts: dict, before: str = "") -> Iterator[str]:
    """The dotted path of every text."""
    for name, value in texts.items():
        if isinstance(value, dict):
            yield from paths(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def main() -> int:
    boot()
    english = of_nodes()
    text = json.dumps(english, indent=2, ensure_ascii=False) + "\n"
    (LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    wrong = 0
    for language in languages():
        lacking = set(paths(english)) - set(paths(read(language)))
        surplus = set(paths(read(language))) - set(paths(english))
        for path in sorted(lacking):
            say(f"locales/{language}/nodeDefs.json lacks {path}")
        for path in sorted(surplus):
            say(f"locales/{language}/nodeDefs.json has {path}, which no node has")
        wrong += len(lacking) + len(surplus)
    say(f"{len(english)} nodes in {', '.join(languages())}")
    return 1 if wrong else 0
