"""Runs the pack's commands: `python run.py demo` draws with the bundled models, `python run.py test` tests everything.

Each command first sets up what it needs: a virtual environment in .venv with pinned packages, and a ComfyUI, which is looked
for at COMFYUI_PATH, in the parent of the custom_nodes folder this pack sits in, and at ~/comfy/ComfyUI, and else
installed there with comfy-cli. This file needs the standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACK = Path(__file__).resolve().parent
VENV = PACK / ".venv"
DEFAULT_COMFYUI = Path.home() / "comfy" / "ComfyUI"
PINNED = [
    "torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "einops==0.8.2", "numpy==2.2.6", "safetensors==0.8.0",
    "scipy==1.15.3", "pillow==12.0.0", "pytest==9.2.0", "hypothesis==6.170.15", "torchmetrics==1.9.0", "matplotlib==3.11.2",
    "ruff==0.17.5", "ty==0.0.107", "playwright==1.65.2", "comfy-cli==1.23.0",
    # what other people's packs, which the tests run beside this one, import
    "gguf==0.19.0", "opencv-python-headless==5.0.0.93", "scikit-image==0.26.0", "piexif==1.1.3", "segment-anything==1.0",
    "color-matcher==0.6.0", "mss==10.2.0",
]  # fmt: skip
NO_COMFYUI = (
    "No ComfyUI was found at COMFYUI_PATH, in the folder above custom_nodes, or at ~/comfy/ComfyUI, and comfy-cli could "
    "not install one; set COMFYUI_PATH to yours."
)


class Command(NamedTuple):
    """What a command runs: a module of the pack, or pytest with these arguments. `browser`: whether it may need Chromium."""

    about: str
    module: str | None = None
    pytest: tuple[str, ...] = ()
    browser: bool = False


COMMANDS = {
    "demo": Command("draws with the bundled models, dense and highlighted, and compares the pictures", "bench.demo"),
    "test": Command("runs all tests, or those that pytest's own arguments name", pytest=("tests",), browser=True),
    "check": Command("lints, checks the format and the types; `test` does so too", pytest=("tests/tools/test_checks.py",)),
    "fuzz": Command("tries 5,000 drawn combinations of settings", pytest=("tests/host/test_fuzz.py", "--cases", "5000")),
    "encoders": Command(
        "runs the workflows that need text or vision encoders of the published size (gigabytes of random weights)",
        pytest=("tests/host/test_workflows.py", "--full-size", "-k", "runs_as_it_is"),
    ),
    "compatibility": Command(
        "runs the rows of docs/compatibility.md and writes it",
        pytest=("tests", "-m", "compatibility", "--write-compatibility"), browser=True,
    ),
    "bench": Command("compares accelerators side by side, on a demo model or your own, or in your workflow", "bench.compare"),
    "page": Command("writes docs/benchmarks.md from the results that bench --docs left", "bench.page"),
    "samplers": Command("compares better samplers at equal evaluations, by distance to the path's limit", "bench.samplers"),
    "redundancy": Command("draws how redundant features are, for docs/ingredients.md", "bench.redundancy"),
    "shapes": Command("measures what partial and merged evaluations cost at true shape", "bench.shapes"),
    "gpu": Command("measures everything that only a GPU can say, in under 20 minutes", "bench.gpu"),
    "ablate": Command("measures what each ingredient is worth", "bench.ablate"),
    "highlights": Command("measures how well the highlight fits the objects that the prompt names", "bench.highlights"),
    "control": Command("measures a ControlNet beside Highlight Diffusion", "bench.control"),
    "stochastic": Command("measures what is saved under samplers that add noise, and what appears", "bench.stochastic"),
    "inpainting": Command("measures masked work: speed, and fidelity inside a noise mask", "bench.inpainting"),
    "promises": Command("measures whether presets keep what they promise", "bench.promises"),
    "plans": Command("measures whether plans rank as their expected errors do", "bench.plans"),
    "paths": Command("compares the placement by rules and by the shortest path at equal cost", "bench.paths"),
    "gaps": Command("measures what single gaps cost, beside what the bundled profile expects", "bench.gaps"),
    "tail": Command("shows which gap leads the worst pictures astray, and whether anything told", "bench.tail"),
    "few": Command("measures presets in few steps beside dense runs of even fewer", "bench.few"),
    "evaluations": Command("measures how far each kind of evaluation is off, step by step", "bench.evaluations"),
    "care": Command("measures what careful plans by another model's profile cost and spare", "bench.care"),
    "live": Command("measures what the live preview takes of the sampler's thread", "bench.live"),
    "judge": Command("counts the prompts that the demo models draw right", "bench.judge"),
    "workflows": Command("writes the workflows of the template browser and their thumbnails", "tools.workflows"),
    "locales": Command("writes locales/en from the nodes and says what other languages lack", "tools.locales"),
    "profiles": Command("writes the bundled profiles, of the demo models", "tools.profiles"),
    "screenshots": Command("writes the pictures of the README and of the help pages", "tools.screenshots", browser=True),
    "train": Command("trains a demo model: denoiser, control, image_prompt or vae; export ships it", "tools.train"),
}  # fmt: skip


def find_comfyui() -> Path | None:
    """The ComfyUI checkout to use, or None. Raises SystemExit when COMFYUI_PATH is set to something else."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not (Path(named) / "comfyui_version.py").exists():
            raise SystemExit(f"COMFYUI_PATH is {named}, which is no ComfyUI checkout; correct or unset it")
        return Path(named).resolve()
    places = [PACK.parent.parent] if PACK.parent.name == "custom_nodes" else []
    return next((p for p in [*places, DEFAULT_COMFYUI] if (p / "comfyui_version.py").exists()), None)


def find_chromium() -> str | None:
    """A Chromium for the browser tests: CHROMIUM_PATH, or the system's; None where there is none."""
    names = (os.environ.get("CHROMIUM_PATH"), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _install(*arguments: str) -> None:
    subprocess.run([_python(), "-m", "uv", "pip", "install", "-q", "--python", _python(), *arguments], check=True)


def _install_comfyui() -> Path | None:
    """Install ComfyUI with comfy-cli at its default place; None when its source cannot be reached."""
    say("installing ComfyUI with comfy-cli ...")
    comfy = _python().with_name("comfy.exe" if os.name == "nt" else "comfy")
    command = [comfy, "--skip-prompt", "--workspace", DEFAULT_COMFYUI, "install", "--cpu", "--skip-manager"]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "DO_NOT_TRACK": "1"}
    try:
        subprocess.run(command, check=True, timeout=600, capture_output=True, env=environment, stdin=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return find_comfyui()


def _requirements(comfyui: Path | None) -> list[Path]:
    """ComfyUI's own, and those of the ComfyUI-Manager it pins, which the tests install the pack with."""
    names = ("requirements.txt", "manager_requirements.txt")
    return [comfyui / name for name in names if (comfyui / name).exists()] if comfyui else []


def set_up() -> Path | None:
    """Make the environment, or bring it up to date; returns the ComfyUI to use, None where none can be had."""
    if not _python().exists():
        say("making a virtual environment in .venv ...")
        venv.create(VENV, with_pip=True)
        subprocess.run([_python(), "-m", "pip", "install", "-q", "uv"], check=True)
    comfyui = find_comfyui()
    wanted = [*PINNED, str(comfyui), *(path.read_text() for path in _requirements(comfyui))]
    stamp, digest = VENV / "installed", hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        say("installing pinned packages ...")
        _install(*PINNED)
        if comfyui is None:
            comfyui = _install_comfyui()
        if comfyui is not None:
            _install(*(f"-r{path}" for path in _requirements(comfyui)), *PINNED)
        stamp.write_text(digest)
    say(f"ComfyUI: {comfyui}" if comfyui else NO_COMFYUI)
    return comfyui


def set_up_browser() -> None:
    """Install Chromium and node with apt-get, where they are missing and that is ours to do."""
    missing = [package for package, found in {"chromium": find_chromium(), "nodejs": shutil.which("node")}.items() if not found]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not missing or not root or not shutil.which("apt-get"):
        return
    say(f"installing {' and '.join(missing)} with apt-get ...")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        if subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL).returncode:
            return


def run_tests(environment: dict[str, str]) -> int:
    """Run all tests in two processes of one thread each; what the second prints follows when both have ended.

    The first has the tests on ComfyUI in this process, among them all rows of the compatibility table. The second has
    those that are marked `beside` and those that need no ComfyUI. A test is in exactly one of them, wherever it is.
    """
    environment = {"OMP_NUM_THREADS": "1", **environment}
    pytest = [_python(), "-m", "pytest", "tests"]
    with tempfile.TemporaryFile("w+") as printed:
        chosen = [*pytest, "-m", "beside or not host"]
        beside = subprocess.Popen(chosen, cwd=PACK, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        first = subprocess.run([*pytest, "-m", "host and not beside"], cwd=PACK, env=environment).returncode
        second = beside.wait()
        printed.seek(0)
        say(printed.read())
    return first or second


def program_of(command: Command, rest: Sequence[str]) -> list[str]:
    """What python is given for a command, before the rest of the line; files that this names are run in place of all tests."""
    if not command.pytest:
        return [str(PACK / "tools" / "start.py"), str(command.module)]
    named = command.pytest == ("tests",) and any((PACK / own.partition("::")[0]).exists() for own in rest)
    return ["-m", "pytest", *([] if named else command.pytest)]


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    table = "\n".join(f"  {name:{width}}{command.about}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"commands:\n{table}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to it, or to pytest; try --help")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    command = COMMANDS[arguments.command]
    comfyui = set_up()
    environment = dict(os.environ)
    if comfyui:
        environment["COMFYUI_PATH"] = str(comfyui)
    if command.browser:
        set_up_browser()
        environment["CHROMIUM_PATH"] = find_chromium() or ""
    if arguments.command == "test" and comfyui and not arguments.rest:
        return run_tests(environment)
    program = program_of(command, arguments.rest)
    return subprocess.run([_python(), *program, *arguments.rest], cwd=PACK, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
