"""A workflow in the frontend's JSON, made of a graph that is stated in code, and a drawing of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .workflow import WIDGET_TYPES

WIDTH, GAP, SLOT, WIDGET, TEXT = 340, 70, 22, 26, 90  # of nodes, in the graph's pixels
NODES_2 = 12  # pixels by which a widget of Nodes 2.0 is higher than one of the classic renderer
SHOWN = {"LoadImage": 240, "PreviewImage": 240, "SaveImage": 240, "HighlightMaskPreview": 300, "HighlightReport": 160}
Link = tuple[int, int, str]  # node, slot, type


def node_info(kind: str) -> dict:
    """A node's inputs and outputs as ComfyUI tells the frontend. Raises KeyError for a node that is not installed."""
    import nodes

    made = nodes.NODE_CLASS_MAPPINGS[kind]
    if hasattr(made, "GET_NODE_INFO_V1"):
        return made.GET_NODE_INFO_V1()
    outputs = list(made.RETURN_TYPES)
    return {"input": made.INPUT_TYPES(), "output": outputs, "output_name": list(getattr(made, "RETURN_NAMES", outputs))}


@dataclass
class Graph:
    """A workflow in the making: nodes in columns, from left to right."""

    name: str
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    heights: dict[int, int] = field(default_factory=dict)

    def add(self, node: str, column: int, title: str = "", **given: Any) -> list[Link]:
        """Add a node; inputs are outputs of others, or widget values, and those left out keep their default.

        Returns its outputs. Raises ValueError for an input the node has not, and for one it needs and was not given.
        """
        info, number = node_info(node), len(self.nodes) + 1
        inputs, widgets, texts, folded = [], [], 0, 0
        for group in ("required", "optional"):
            for name, spec in info["input"].get(group, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options.get("forceInput"):
                    widgets.append(given.pop(name) if name in given else _default(spec, options))
                    texts += bool(options.get("multiline"))
                    folded += node.startswith("Highlight") and bool(options.get("advanced"))
                    if options.get("control_after_generate"):
                        widgets.append("fixed")
                else:
                    link = given.pop(name, None)
                    if link is None and group == "required":
                        raise ValueError(f"{node} needs {name}")
                    inputs.append({"name": name, "type": spec[0], "link": self._link(link, number, len(inputs))})
        if given:
            raise ValueError(f"{node} has no input {', '.join(given)}")
        outputs: list[dict[str, Any]] = []
        for slot, kind in zip(info["output_name"], info["output"], strict=True):
            outputs.append({"name": slot, "type": kind, "links": []})
        rows = len(widgets) - folded + bool(folded)  # what is folded (js/fold.js) has one line
        height = 40 + SLOT * max(len(inputs), len(outputs)) + WIDGET * rows + TEXT * texts + SHOWN.get(node, 0)
        room = height + NODES_2 * (rows + texts)
        self._place(node, column, height, room, title, inputs=inputs, outputs=outputs, widgets_values=widgets)
        return [(number, slot, output["type"]) for slot, output in enumerate(outputs)]

    def note(self, column: int, text: str) -> None:
        """A note in Markdown."""
        lines = sum(1 + len(line) // 46 for line in text.splitlines())
        height = 60 + 20 * lines
        self._place("MarkdownNote", column, height, height + NODES_2, "", inputs=[], outputs=[], widgets_values=[text])

    def _link(self, link: Link | None, target: int, slot: int) -> int | None:
        if link is None:
            return None
        number = len(self.links) + 1
        self.links.append([number, link[0], link[1], target, slot, link[2]])
        self.nodes[link[0] - 1]["outputs"][link[1]]["links"].append(number)
        return number

    def _place(self, kind: str, column: int, height: int, room: int, title: str, **rest: Any) -> None:
        """Put a node of this height below the others of its column, with room for what Nodes 2.0 makes of it."""
        top = self.heights.get(column, 40)
        self.heights[column] = top + room + GAP
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [40 + column * (WIDTH + GAP), top], "size": [WIDTH, height],
            "flags": {}, "order": len(self.nodes), "mode": 0, **rest, "properties": {"Node name for S&R": kind},
        }  # fmt: skip
        self.nodes.append(node | ({"title": title} if title else {}))

    def as_json(self) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(self.nodes),
            "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [], "config": {}, "extra": {},
            "version": 0.4,
        }  # fmt: skip


def _default(spec: Any, options: dict) -> Any:
    """A widget's value as the frontend sets it on a new node; a list of files that is empty here gives none."""
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    if choices or isinstance(spec[0], list) or spec[0] == "COMBO":
        return choices[0] if choices else ""
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(spec[0], "")


def thumbnail(graph: dict, size: tuple[int, int] = (480, 300)) -> Image.Image:
    """A drawing of a workflow: its nodes with their titles, and its links."""
    right = max(n["pos"][0] + n["size"][0] for n in graph["nodes"]) + 40
    bottom = max(n["pos"][1] + n["size"][1] for n in graph["nodes"]) + 40
    scale, over = min(size[0] / right, size[1] / bottom), 3
    image = Image.new("RGB", (size[0] * over, size[1] * over), (34, 34, 38))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11 * over)
    at = lambda x, y: (x * scale * over, y * scale * over)  # noqa: E731
    nodes = {n["id"]: n for n in graph["nodes"]}
    for _, source, out, target, into, _ in graph["links"]:
        a, b = nodes[source], nodes[target]
        start = at(a["pos"][0] + a["size"][0], a["pos"][1] + SLOT * (out + 1))
        end = at(b["pos"][0], b["pos"][1] + SLOT * (into + 1))
        draw.line([start, end], fill=(110, 130, 160), width=over)
    for node in graph["nodes"]:
        kind = node["type"]
        fill = (190, 120, 30) if kind.startswith("Highlight") else (84, 84, 60) if "Note" in kind else (62, 66, 74)
        (x, y), (w, h) = node["pos"], node["size"]
        draw.rounded_rectangle([at(x, y), at(x + w, y + h)], 4 * over, fill=fill)
        label = node.get("title") or ("Note" if "Note" in kind else kind)
        while label and draw.textlength(label, font) > w * scale * over - 4 * over:
            label = label[:-1]
        left, top = at(x, y)
        draw.text((left + 2 * over, top + over), label, fill=(235, 235, 235), font=font)
    return image.resize(size, Image.Resampling.LANCZOS)
