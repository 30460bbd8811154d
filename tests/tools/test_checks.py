"""Lint, format and types of the source, by the pinned ruff and ty: `python run.py check`."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKS = {
    "lint": ["ruff", "check", "--no-cache"],
    "format": ["ruff", "format", "--check", "--no-cache"],
    "types": ["ty", "check", "--output-format", "concise", "--python", sys.prefix],
}


@pytest.fixture
def checkout(pack, tmp_path) -> Path:
    """The pack under a name that can be imported, whatever its folder is called."""
    (tmp_path / "highlight_diffusion").symlink_to(pack, target_is_directory=True)
    return tmp_path / "highlight_diffusion"


def done(check: str, folder: Path) -> subprocess.CompletedProcess:
    program, *arguments = CHECKS[check]
    scripts = Path(sysconfig.get_path("scripts"))
    where = ["--project", str(folder)] if program == "ty" else [str(folder)]
    return subprocess.run([scripts / program, *arguments, *where], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("check", CHECKS)
def test_the_source_is_clean(check, checkout):
    found = done(check, checkout)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("check", "source"),
    [("lint", "import os\n"), ("format", "x = {  }\n"), ("types", "from ..nodes import none\n\nx: int = ''\n")],
)
def test_each_check_sees_what_it_is_for(check, source, pack, tmp_path):
    """In a pack with one file, by the same settings."""
    folder = tmp_path / "highlight_diffusion"
    (folder / "engine").mkdir(parents=True)
    (folder / "pyproject.toml").write_text((pack / "pyproject.toml").read_text())
    (folder / "engine" / "wrong.py").write_text(source)
    found = done(check, folder)
    assert found.returncode == 1 and "wrong.py" in found.stdout + found.stderr, found
    assert check != "types" or len(re.findall(r"error\[", found.stdout)) == 2, found.stdout


def test_what_the_type_checker_leaves_out_is_there(pack):
    """A name left behind by a file that was moved would leave out nothing, or later something else."""
    section = re.search(r"^exclude = \[(.*?)^\]", (pack / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    names = re.findall(r'"([^"]+)"', section[1]) if section else []
    assert not [name for name in names if not (pack / name).exists()]
