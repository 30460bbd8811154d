"""What a user installs: the packed zip, and ComfyUI-Manager's clone."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from comfy_config.config_parser import load_pyproject_settings
from highlight_diffusion.tools.server import Server

from . import release, schema
from .test_nodes import IDS

pytestmark = pytest.mark.beside
MOST_BYTES = 3 << 20  # beside the demo models' weights
MANAGER_CONFIG = "[default]\nallow_git_url_install = true\nsecurity_level = weak\nnetwork_mode = offline\n"  # weak: before 4.2


def test_comfy_cli_finds_nothing_to_complain_about(repository):
    said = release.comfy_node("validate", repository)
    assert "All validation checks passed" in said
    assert not re.search(r"warning|error", said, re.IGNORECASE), said


def test_the_zip_holds_the_pack_and_nothing_of_its_workshop(packed, pack):
    files = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md"} <= files
    ours = {
        str(path.relative_to(pack))
        for folder in ("engine", "host", "nodes", "js", "workflows", "demo")
        for path in (pack / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "second" not in path.parts
    }
    assert ours and ours <= files, f"not in the zip: {sorted(ours - files)}; committed, and not in .comfyignore?"
    assert not [name for name in files if name.split("/")[0] in ("tests", "bench", "tools", ".ci", ".github", "run.py")]
    assert not [name for name in files if name.startswith(("docs/benchmarks/", "demo/weights/second/"))]


def test_the_readme_in_the_zip_links_to_what_is_in_it(packed):
    links = [link for link in re.findall(r"\]\(([^)#]+)", (packed / "README.md").read_text()) if "://" not in link]
    assert links and not [link for link in links if not (packed / link).is_file()]


def test_weights_are_safetensors_alone(packed):
    suspicious = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".npy", ".npz"}
    assert not [path.name for path in packed.rglob("*") if path.suffix in suspicious]


def test_the_version_is_in_the_changelog(pack):
    version = load_pyproject_settings(pack / "pyproject.toml").project["version"]
    assert f"## {version}\n" in (pack / "CHANGELOG.md").read_text()


def test_nothing_is_published_before_the_tests_passed(pack):
    folder = pack / ".github" / "workflows"
    jobs = yaml.safe_load((folder / "publish.yml").read_text())["jobs"]
    (publish,) = (job for job in jobs.values() if "publish-node-action" in json.dumps(job))
    assert publish["needs"] == "test" and jobs["test"] == {"uses": "./.github/workflows/test.yml"}
    (tests,) = yaml.safe_load((folder / "test.yml").read_text())["jobs"].values()
    assert any(step.get("run") == "python run.py test" for step in tests["steps"])
    required = load_pyproject_settings(pack / "pyproject.toml").tool["comfy"]["requires-comfyui"]
    assert f"v{required.removeprefix('>=')}" in tests["strategy"]["matrix"]["comfyui"]


def test_actions_of_others_are_pinned_by_commit(pack):
    """A tag can be moved to other code later; beside the commit stands the version it was."""
    lines = [line for path in (pack / ".github" / "workflows").iterdir() for line in path.read_text().splitlines()]
    foreign = [line.split("uses:")[1].strip() for line in lines if "uses:" in line and "./" not in line]
    assert len(foreign) >= 4
    assert not [used for used in foreign if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+", used)]


def linked(page: Path) -> set[Path]:
    """The files that a page links to or shows."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    return {(page.parent / link).resolve() for link in links if "://" not in link}


def test_the_zip_is_small_and_the_readme_leads_to_all_documents_in_it(packed):
    """The long tables of the bench and the figures that only they show stay in the repository."""
    size = sum(path.stat().st_size for path in packed.rglob("*") if path.is_file() and "weights" not in path.parts)
    assert size < MOST_BYTES
    found, pages = set(), [packed / "README.md"]
    while pages:
        new = linked(pages.pop()) - found
        found |= new
        pages += [path for path in new if path.suffix == ".md" and path.exists()]
    documents = {path.resolve() for path in (packed / "docs").rglob("*") if path.is_file()}
    assert not documents - found, "link to it, or name it in .comfyignore"
    assert not [path.name for path in documents if path.suffix in (".csv", ".png")]


def test_the_readme_in_the_zip_shows_and_names_only_what_is_in_it(packed):
    text = (packed / "README.md").read_text()
    pictures = [link for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) if "://" not in link]
    assert not [link for link in pictures if not (packed / link).exists()]
    installed, _, checkout = text.partition("## From a git checkout")
    assert "run.py" not in installed or (packed / "run.py").exists()
    assert "not part of the installed pack" in checkout


def test_saved_workflows_find_the_nodes_and_inputs_they_were_saved_with(pack, request):
    found = schema.snapshot()
    path = pack / "tests" / "host" / "schema.json"
    if request.config.getoption("--update-schema"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(path.read_text()), schema.ADVICE


@pytest.mark.skipif(sys.platform == "win32", reason="ComfyUI-Manager hands the clone to another process there")
def test_comfyui_manager_installs_the_pack_and_it_loads_after_a_restart(comfyui, repository, tmp_path):
    """The Manager that core pins, in a fresh ComfyUI folder, from a git remote on this machine."""
    options, base = ("--enable-manager", "--enable-manager-legacy-ui"), tmp_path / "ComfyUI"
    (base / "user" / "__manager").mkdir(parents=True)
    (base / "user" / "__manager" / "config.ini").write_text(MANAGER_CONFIG)
    with Server(comfyui, None, options, base) as server:
        assert not IDS & set(server.get("/object_info"))
        server.open("/v2/customnode/install/git_url", f"file://localhost{repository}".encode())
    with Server(comfyui, None, options, base) as server:
        assert set(server.get("/object_info")) >= IDS
        assert "IMPORT FAILED" not in server.log.read_text()
        installed = server.get("/v2/customnode/installed")
        assert any("highlight-diffusion" in json.dumps(entry) for entry in installed.items())
