"""The pack as a user gets it: packed by comfy-cli, or cloned from a git remote."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

QUIET = {"DO_NOT_TRACK": "1", "GIT_TERMINAL_PROMPT": "0"}


def repository(pack: Path, folder: Path) -> Path:
    """The work tree's tracked files as a repository of their own with one commit, at `folder`."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=pack, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (pack / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((pack / name).read_bytes())
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*author, "commit", "-q", "-m", "release"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def comfy_node(command: str, folder: Path) -> str:
    """What `comfy node validate` or `pack` says. Raises CalledProcessError when it is not content."""
    program = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", command]
    done = subprocess.run(program, cwd=folder, check=True, capture_output=True, text=True, env={**os.environ, **QUIET})
    return done.stdout + done.stderr


def unpacked(repository: Path, folder: Path) -> Path:
    """The zip that `comfy node pack` makes of a repository, unpacked at `folder`."""
    comfy_node("pack", repository)
    with zipfile.ZipFile(repository / "node.zip") as archive:
        archive.extractall(folder)
    return folder


def fresh_folder(comfyui: Path, base: Path, *packs: Path) -> Path:
    """A folder for a headless ComfyUI, with the picture ComfyUI comes with and these packs beside ours."""
    (base / "input").mkdir()
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    (base / "custom_nodes").mkdir()
    for pack in packs:
        (base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
    return base
