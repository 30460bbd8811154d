"""Keeps locales/ and docs/nodes.md in step with the nodes: `python run.py locales`.

Writes locales/en/nodeDefs.json and docs/nodes.md from the nodes themselves, and says what other languages lack or have
too much.
"""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from .comfy import boot
from .console import say
from .server import PACK

LOCALES, NODES_PAGE = PACK / "locales", PACK / "docs" / "nodes.md"
WIDTH = 126  # columns of the page's prose
NODES_INTRODUCTION = """# Nodes and knobs

`python run.py locales` writes this page from the nodes' own schemas, so it says what the tooltips say; do not edit it. What a
tooltip is too short for stands in [how-it-works.md](how-it-works.md#the-knobs-in-more-detail) and, for token merging, in
[sdtm.md](sdtm.md). An input that is marked "advanced" can be left alone.
"""


def _schemas() -> list[Any]:
    """The schemas of all nodes of the pack, in the order in which the pack lists them."""
    from ..nodes import HighlightExtension

    return [node.GET_SCHEMA() for node in asyncio.run(HighlightExtension().get_node_list())]


def of_nodes() -> dict[str, dict]:
    """The texts of every node of the pack, in the form of ComfyUI's nodeDefs.json."""
    return {schema.node_id: _of_node(schema) for schema in _schemas()}


def nodes_page() -> str:
    """The page docs/nodes.md: for each node its description, and a table of its inputs and one of its outputs."""
    return "\n".join([NODES_INTRODUCTION, *(line for schema in _schemas() for line in _section(schema))])


def _section(schema: Any) -> Iterator[str]:
    """The lines of the page that describe one node."""
    description = textwrap.fill(schema.description, WIDTH)
    yield from (f"## {schema.display_name}", "", description, "", f"Node id: `{schema.node_id}`.", "")
    yield from ("| input | default | values | meaning |", "|---|---|---|---|")
    for i in schema.inputs:
        notes = [note for note in ("optional", "advanced") if getattr(i, note, None) or (i.extra_dict or {}).get(note)]
        name = f"`{i.id}`" + (f" ({', '.join(notes)})" if notes else "")
        yield f"| {name} | {_default(i)} | {_values(i)} | {i.tooltip} |"
    if schema.outputs:
        yield from ("", "| output | meaning |", "|---|---|")
        yield from (f"| {output.display_name or output.io_type} | {output.tooltip} |" for output in schema.outputs)
    yield ""


def _default(i: Any) -> str:
    """The default of an input as it is written in a table: a dash where it has none, since it is connected."""
    default = getattr(i, "default", None)
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"`{default:g}`"
    return "-" if default is None else f"`{default}`" if default != "" else "empty"


def _values(i: Any) -> str:
    """What an input takes: its options, its range, or its type."""
    if options := getattr(i, "options", None):
        return ", ".join(f"`{option}`" for option in options)
    if getattr(i, "min", None) is not None:
        return f"{i.min:g} to {i.max:g}"
    return {"BOOLEAN": "on, off", "STRING": "text", "*": "anything"}.get(i.io_type, i.io_type)


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
    NODES_PAGE.write_text(nodes_page(), encoding="utf-8")
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
