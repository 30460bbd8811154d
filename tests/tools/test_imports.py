"""A reader should know from the folder what a file may import; nothing imports itself in a ring, or what is not declared."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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


def modules(pack: Path) -> dict[tuple[str, ...], Path]:
    """The pack's own modules, by the folders and the name that lead to each; a package is named by its folder."""
    files = [path for folder in ALLOWED for path in (pack / folder).rglob("*.py")]
    names = {path.relative_to(pack).with_suffix("").parts: path for path in [*files, pack / "__init__.py"]}
    return {name[:-1] if name[-1] == "__init__" else name: path for name, path in names.items()}


def imported(name: tuple[str, ...], path: Path, known: dict) -> set[tuple[str, ...]]:
    """The pack's modules that one of them imports, at its top or within a function."""
    package = name if path.stem == "__init__" else name[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            found |= {(*base, alias.name) if (*base, alias.name) in known else base for alias in node.names}
    return found & set(known)


def ring(graph: dict[tuple[str, ...], set[tuple[str, ...]]]) -> list[str]:
    """The modules of one ring of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [".".join(name) or "the pack" for name in error.args[1]]
    return []


def test_no_module_imports_itself_in_a_ring(pack):
    known = modules(pack)
    graph = {name: imported(name, path, known) for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(graph) > 100  # the imports are seen
    assert not ring(graph)


def test_a_ring_is_seen_through_an_import_within_a_function(tmp_path):
    (tmp_path / "engine").mkdir()
    sources = {"a": "from .b import x", "b": "def f():\n    from . import c", "c": "from ..engine.a import y", "d": "import e"}
    for name, source in sources.items():
        (tmp_path / "engine" / f"{name}.py").write_text(source)
    known = modules(tmp_path)
    graph = {name: imported(name, path, known) for name, path in known.items() if name and path.exists()}
    assert set(ring(graph)) == {"engine.a", "engine.b", "engine.c"}


NAMES = {"PIL": "pillow"}  # where a package is imported by another name than it is installed by
COMES_WITH_COMFYUI = COMFYUI | {"comfy_api", "torch", "nodes"}


def test_what_a_shipped_file_imports_is_declared(pack):
    line = re.search(r"^dependencies = (.*)$", (pack / "pyproject.toml").read_text(), re.MULTILINE)
    declared = set(ast.literal_eval(line[1]))
    assert declared == set((pack / "requirements.txt").read_text().split())
    for path in [path for folder in ("engine", "host", "nodes", "demo") for path in (pack / folder).rglob("*.py")]:
        found = {outer for _, outer in imports(path, len(path.relative_to(pack).parts) - 1) if outer}
        foreign = found - sys.stdlib_module_names - COMES_WITH_COMFYUI
        missing = {NAMES.get(name, name) for name in foreign} - {re.split(r"[<>=!~]", name)[0] for name in declared}
        assert not missing, f"{path} imports {missing}; add to requirements.txt and pyproject.toml"
