"""A reader should know from the folder what a file may import."""

import ast

import pytest

COMFYUI = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution"}
ALLOWED = {
    "engine": {"engine"},
    "host": {"host", "engine", "demo"},
    "nodes": {"nodes", "host", "engine"},
    "demo": {"demo", "engine"},
    "tools": {"tools", "demo", "engine", "host", "nodes"},
    "bench": {"bench", "tools", "demo", "engine", "host", "nodes"},
}


def imports(path, depth):
    """(pack folder or None, absolute top-level name or None) of every import of a file so many folders deep."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((None, name.name.split(".")[0]) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield None, node.module.split(".")[0]
            elif node.level <= depth:
                yield path.parts[-1 - depth], None
            elif node.module:
                yield node.module.split(".")[0], None


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_flow_one_way(pack, folder):
    for path in (pack / folder).rglob("*.py"):
        for inner, outer in imports(path, len(path.relative_to(pack).parts) - 1):
            assert inner is None or inner in ALLOWED[folder], f"{path} imports {inner}"
            assert outer not in COMFYUI or folder in ("host", "tools", "bench"), f"{path} imports {outer}"
            assert outer != "comfy_api" or folder in ("host", "nodes"), f"{path} imports {outer}"
