"""Every shipped workflow, unmodified, in a real ComfyUI: stock loader nodes, files of the true layout with random weights.

What needs text or vision encoders of the published size (gigabytes) is left to `python run.py encoders`. That the
frontend makes the same prompts of them is tested in tests/browser/test_workflows.py.
"""

import json

import pytest
from highlight_diffusion.engine.trace import KINDS
from highlight_diffusion.tools.server import PACK
from highlight_diffusion.tools.workflow import to_prompt
from PIL import Image

from . import checkpoints, packs
from .test_server import last_run, picture

pytestmark = pytest.mark.beside
FULL = {
    "highlight_sdxl_ipadapter", "highlight_sd15_controlnet_ipadapter", "highlight_sd35_sdtm", "highlight_flux_sdtm_controlnet",
}  # fmt: skip
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
SDTM_ALONE = {"highlight_sd35_sdtm"}  # computes every evaluation, with merged tokens


def read(name: str) -> dict:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runnable" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full-size")
        metafunc.parametrize("runnable", [name for name in WORKFLOWS if (name in FULL) == full])


def test_a_workflow_runs_as_it_is(runnable, server_of_workflows, request, summary):
    graph, server = read(runnable), server_of_workflows
    packs.needed_by(graph)
    checkpoints.provide(graph, server.base / "models")
    full = request.config.getoption("--full-size")
    outputs = server.run(to_prompt(graph, server.get("/object_info")), timeout=3600 if full else 300)
    image, run = picture(server, outputs), last_run(outputs)
    kinds = [e["kind"] for e in run["evaluations"]]
    assert image.ndim == 3 and image.std() > 0 and run["completed"]
    assert kinds.count("skipped") + kinds.count("partial") or runnable in SDTM_ALONE, run["evaluations"]
    if full:
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
        summary.append(f"{runnable}: {image.shape[1]}x{image.shape[0]}, {counts}; {run['seconds']:.0f} s in the sampler")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_a_thumbnail_and_says_which_files_go_where(name, pack):
    graph = read(name)
    with Image.open(pack / "workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.width >= 256
    notes = " ".join(n["widgets_values"][0] for n in graph["nodes"] if n["type"] in ("Note", "MarkdownNote"))
    assert notes and all(file.removesuffix(".safetensors") in notes for file in checkpoints.files_of(graph))


def test_the_workflows_are_what_their_generator_writes(pack):
    packs.folder(packs.IP_ADAPTER)
    from highlight_diffusion.tools import workflows

    workflows.load_nodes()
    for make in workflows.GRAPHS:
        graph = make()
        written = json.loads((pack / "workflows" / f"{graph.name}.json").read_text())
        assert written == graph.as_json(), f"{graph.name} is out of date: python run.py workflows"
