"""The commands of the README: `python run.py demo`, `test` and those that measure. Standard library only.

Each sets up what it needs first: a virtual environment in .venv with pinned packages, and a ComfyUI, which is looked
for at COMFYUI_PATH, in the parent of the custom_nodes folder this pack sits in, and at ~/comfy/ComfyUI, and else
installed there with comfy-cli.
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
from pathlib import Path

PACK = Path(__file__).resolve().parent
VENV = PACK / ".venv"
DEFAULT_COMFYUI = Path.home() / "comfy" / "ComfyUI"
PINNED = [
    "torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "einops==0.8.2", "numpy==2.2.6", "safetensors==0.8.0",
    "scipy==1.15.3", "pillow==12.0.0", "pytest==9.2.0", "hypothesis==6.170.15", "torchmetrics==1.9.0", "matplotlib==3.11.2",
    "ruff==0.17.5", "playwright==1.65.2", "comfy-cli==1.23.0",
    # what other people's packs, which the tests run beside this one, import
    "gguf==0.19.0", "opencv-python-headless==5.0.0.93", "scikit-image==0.26.0", "piexif==1.1.3", "segment-anything==1.0",
    "color-matcher==0.6.0", "mss==10.2.0",
]  # fmt: skip
# The tests run in two processes side by side: these, most of which wait for a server or a browser, and the others,
# which have all rows of the compatibility table, so that the whole of it is compared.
BESIDE = [
    "tests/unit", "tests/browser", "tests/host/test_fuzz.py", "tests/host/test_live.py",
    "tests/host/test_release.py", "tests/host/test_robustness.py", "tests/host/test_server.py", "tests/host/test_workflows.py",
]  # fmt: skip
NO_COMFYUI = (
    "No ComfyUI was found at COMFYUI_PATH, in the folder above custom_nodes, or at ~/comfy/ComfyUI, and comfy-cli could "
    "not install one; set COMFYUI_PATH to yours."
)


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
    """All tests, in two processes of one thread each; what the second prints follows when both have ended."""
    environment = {"OMP_NUM_THREADS": "1", **environment}
    pytest = [_python(), "-m", "pytest"]
    others = [*pytest, "tests", *(f"--ignore={path}" for path in BESIDE)]
    with tempfile.TemporaryFile("w+") as printed:
        beside = subprocess.Popen([*pytest, *BESIDE], cwd=PACK, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        first = subprocess.run(others, cwd=PACK, env=environment).returncode
        second = beside.wait()
        printed.seek(0)
        say(printed.read())
    return first or second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tests = {
        "test": ["tests"], "fuzz": ["tests/host/test_fuzz.py", "--cases", "5000"],
        "compatibility": ["tests", "-m", "compatibility", "--write-compatibility"],
        "workflows-full": ["tests/host/test_workflows.py", "--full-size", "-k", "runs_as_it_is"],
    }  # fmt: skip
    modules = {
        "demo": "bench.demo", "judge": "bench.judge", "bench": "bench.compare", "shapes": "bench.shapes",
        "ablate": "bench.ablate", "control": "bench.control", "stochastic": "bench.stochastic", "live": "bench.live",
        "workflows": "tools.workflows", "locales": "tools.locales", "screenshots": "tools.screenshots", "train": "tools.train",
    }  # fmt: skip
    parser.add_argument("command", choices=[*modules, *tests])
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on: to the demo, or to pytest")
    arguments = parser.parse_args()
    comfyui = set_up()
    environment = dict(os.environ)
    if comfyui:
        environment["COMFYUI_PATH"] = str(comfyui)
    if arguments.command in (*tests, "screenshots"):
        set_up_browser()
        environment["CHROMIUM_PATH"] = find_chromium() or ""
    if arguments.command == "test" and comfyui and not arguments.rest:
        return run_tests(environment)
    if arguments.command in tests:
        program = ["-m", "pytest", *tests[arguments.command]]
    else:
        program = [str(PACK / "tools" / "start.py"), modules[arguments.command]]
    return subprocess.run([_python(), *program, *arguments.rest], cwd=PACK, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
