"""What saved workflows rely on: node ids, the inputs by name, order and type, their defaults, and the outputs."""

import highlight_diffusion.nodes as pack_nodes
from comfy_api.latest import io

ADVICE = (
    "a node's id, inputs or outputs changed. Saved workflows name ids and inputs and hold widget values in order: add new "
    "inputs at the end and optional. For a rename, register an io.NodeReplace in HighlightExtension.on_load. Then "
    "`python run.py test tests/host/test_release.py --update-schema`, and say it in CHANGELOG.md"
)


def snapshot() -> dict:
    """Node id -> its inputs and outputs, as ComfyUI hands them to the frontend."""
    nodes = [value for value in vars(pack_nodes).values() if isinstance(value, type) and issubclass(value, io.ComfyNode)]
    return {node.GET_SCHEMA().node_id: _node(node.GET_NODE_INFO_V1()) for node in nodes}


def _node(info: dict) -> dict:
    return {
        "inputs": {group: [_input(*item) for item in inputs.items()] for group, inputs in info["input"].items() if inputs},
        "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
    }


def _input(name: str, spec: tuple) -> dict:
    settings = spec[1] if len(spec) > 1 else {}
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    options = {"options": spec[0]} if isinstance(spec[0], list) else {}
    kept = {key: settings[key] for key in ("default", "options", "min", "max", "step") if key in settings}
    return {"name": name, "type": kind, **options, **kept}
