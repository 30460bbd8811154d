"""A saved workflow as the API prompt the frontend would make of it."""

from __future__ import annotations

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Workflow JSON (frontend's format) -> API prompt. Raises ValueError for a node the server does not know."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in ("Note", "MarkdownNote"):
            continue
        if kind not in object_info:
            raise ValueError(f"the workflow uses node {kind}, which this ComfyUI does not have")
        inputs = _widgets(node, object_info[kind])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = list(links[socket["link"]])
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": node.get("title", kind)}}
    return prompt


def _widgets(node: dict, info: dict) -> dict:
    """Widget values by input name; a seed's "control after generate" is the frontend's own and left out.

    A widget that came after the workflow was saved keeps its default.
    """
    values, inputs = list(node.get("widgets_values") or []), {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            if (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options.get("forceInput"):
                if not values:
                    if "default" in options:
                        inputs[name] = options["default"]
                    continue
                inputs[name] = values.pop(0)
                if values and options.get("control_after_generate"):
                    values.pop(0)
    return inputs


def of_type(prompt: dict, kind: str) -> dict:
    """The inputs of the one node of that type. Raises ValueError when there is none or several."""
    found = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    if len(found) != 1:
        raise ValueError(f"the prompt has {len(found)} nodes of type {kind}, not one")
    return found[0]
