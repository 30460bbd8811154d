"""What runs in a user's ComfyUI opens no connection, runs no text as code, and reads no format that can carry code."""

import ast
import re
from pathlib import Path

import pytest

SHIPPED = ("__init__.py", "engine", "host", "nodes", "demo")
NETWORK = {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "websocket", "websockets"}
CODE = {"pickle", "cPickle", "dill", "marshal", "shelve", "ctypes", "subprocess", "pty", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "numpy.load", "np.load"}


def shipped(pack: Path) -> list[Path]:
    folders = [pack / name for name in SHIPPED]
    return [path for root in folders for path in ([root] if root.is_file() else sorted(root.rglob("*.py")))]


def offences(source: str) -> list[str]:
    """What a file imports or calls that it must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in NETWORK | CODE]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in NETWORK | CODE:
            found.append(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            found.append(ast.unparse(node))
    return found


def test_the_check_itself_sees_what_it_is_for():
    assert offences("import pickle, urllib.request\nfrom socket import socket\neval('1')\ntorch.load('x')") == [
        "pickle", "urllib.request", "socket", "eval('1')", "torch.load('x')",
    ]  # fmt: skip
    assert not offences("import json\nmodel.eval()\nre.compile('x')\nfrom .code import x")


def test_no_network_no_code_from_text_no_unsafe_format(pack):
    found = {str(path.relative_to(pack)): offences(path.read_text()) for path in shipped(pack)}
    assert len(found) > 30 and not {path: what for path, what in found.items() if what}


def test_no_route_is_added_to_the_server(pack):
    """A route would need validation of what it is given; the pack has none, and events only go out."""
    for path in shipped(pack):
        assert not re.search(r"\.routes\b|add_routes|add_route\b", path.read_text()), path


@pytest.mark.parametrize(
    "pattern", [r"https?://(?!www\.w3\.org/)", r"\beval\(", r"new Function", r"\.innerHTML\s*=", r"\bimport\("]
)
def test_scripts_of_the_browser_fetch_nothing_foreign_and_run_no_text(pack, pattern):
    scripts = [path for path in (pack / "js").rglob("*") if path.suffix in (".js", ".mjs", ".css")]
    assert not [str(path) for path in scripts if re.search(pattern, path.read_text())]
