"""The commands of run.py, and what the documents say of them."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def run(pack):
    spec = importlib.util.spec_from_file_location("run_of_the_pack", pack / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_one_word_with_a_line_of_help_and_something_to_run(run, pack):
    for name, command in run.COMMANDS.items():
        assert name.isalpha() and command.about and "\n" not in command.about
        assert bool(command.module) != bool(command.pytest), name
        if command.module:
            path = pack / command.module.replace(".", "/")
            program = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            assert "\ndef main() -> int:\n" in program.read_text(), name
        else:
            assert (pack / command.pytest[0]).exists(), name
    assert all(f"  {name} " in run._parser().format_help() for name in run.COMMANDS)


def test_bug_files_that_are_named_were_run_after_all_others(run):
    """`run.py test FILE` handed pytest the whole folder beside the file."""
    command = run.COMMANDS["test"]
    assert run.program_of(command, ["tests/tools/test_run.py::test_x", "-q"]) == ["-m", "pytest"]
    assert run.program_of(command, ["-k", "sdxl"]) == ["-m", "pytest", "tests"]


def test_documents_and_sources_name_commands_that_there_are(run, pack):
    files = [*pack.glob("*.md"), *(pack / "docs").rglob("*.md")]
    files += [path for folder in ("bench", "tools", "demo", "tests") for path in (pack / folder).rglob("*.py")]
    named = {(path.name, word) for path in files for word in re.findall(r"python run\.py ([a-z][\w-]*)", path.read_text())}
    assert len(named) > 10
    assert not [(name, word) for name, word in named if word not in run.COMMANDS]


def started(pack, modules: list[str], comfyui: str | None) -> subprocess.CompletedProcess:
    """Import programs as tools/start.py does, in a process that knows of no ComfyUI but this."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMFYUI_PATH")}
    found = f"import sys; sys.path.insert(0, {str(pack / 'tools')!r}); import start"
    command = [sys.executable, "-c", f"{found}\nfor name in {modules!r}: start.program_of(name)"]
    given = {"COMFYUI_PATH": comfyui} if comfyui else {}
    return subprocess.run(command, env=environment | given, capture_output=True, text=True, cwd=pack)


def test_bug_programs_did_not_start_but_where_comfyui_was_importable_by_itself(run, pack):
    """`python run.py bench` and `few` failed at their first import for everyone but those who had set PYTHONPATH."""
    modules = [command.module for command in run.COMMANDS.values() if command.module]
    if comfyui := run.find_comfyui():
        done = started(pack, modules, str(comfyui))
        assert not done.returncode, done.stderr[-2000:]
    alone = [f"bench.{name}" for name in ("demo", "few", "gaps", "judge", "evaluations", "ablate")]
    done = started(pack, [*alone, "tools.train", "tools.profiles"], None)
    assert not done.returncode, done.stderr[-2000:]
