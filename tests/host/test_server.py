"""The demo workflow on a real headless ComfyUI, in a fresh folder, with the pack as the registry hands it out."""

import copy
import json

import numpy as np
import pytest
from highlight_diffusion.tools.server import ServerError
from highlight_diffusion.tools.workflow import of_type, to_prompt
from PIL import Image

pytestmark = pytest.mark.beside


@pytest.fixture(scope="module")
def prompt(server):
    """The demo template as it is served."""
    workflow = server.get("/api/workflow_templates/highlight-diffusion/highlight_demo.json")
    return to_prompt(workflow, server.get("/object_info"))


def picture(server, outputs) -> np.ndarray:
    saved = next(o for o in outputs.values() if "highlight_runs" not in o)
    return np.asarray(Image.open(server.path_of(saved["images"][0])).convert("RGB"))


def last_run(outputs) -> dict:
    return next(o for o in outputs.values() if "highlight_runs" in o)["highlight_runs"][-1]


def test_the_pack_loads_without_a_complaint(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log and "highlight-diffusion" in log
    assert not [line for line in log.splitlines() if "highlight" in line.lower() and "warn" in line.lower()]


def test_the_demo_workflow_runs_and_is_accelerated(server, prompt):
    outputs = server.run(prompt)
    image, run = picture(server, outputs), last_run(outputs)
    assert image.shape == (512, 512, 3) and image.std() > 10
    kinds = [e["kind"] for e in run["evaluations"]]
    assert len(kinds) == 20 and kinds.count("dense") < 13
    preview = next(o for o in outputs.values() if "highlight_runs" in o)
    told = json.loads(server.path_of(preview["highlight_files"][-1]).read_text())
    assert len(told["cells"]) == 20 and told["done"]["completed"] and len(told["heatmaps"]) >= 3
    assert "pictures" not in told  # nobody watched
    assert len(preview["highlight_pictures"]) == 1


def test_off_equals_the_sampler_without_our_node_and_on_is_close(server, prompt):
    off = copy.deepcopy(prompt)
    of_type(off, "HighlightDiffusion")["enabled"] = False
    bare = {k: v for k, v in copy.deepcopy(prompt).items() if v["class_type"] != "HighlightMaskPreview"}
    of_type(bare, "KSampler")["model"] = of_type(bare, "HighlightDiffusion")["model"]
    bare = {k: v for k, v in bare.items() if v["class_type"] != "HighlightDiffusion"}
    dense = picture(server, server.run(bare))
    assert np.array_equal(picture(server, server.run(off)), dense)
    on = picture(server, server.run(prompt))
    assert 0 < np.abs(on.astype(int) - dense).mean() < 10


def test_a_prompt_served_from_the_cache_keeps_its_trace(server, prompt):
    server.run(prompt)
    again = copy.deepcopy(prompt)
    of_type(again, "HighlightMaskPreview")["image_index"] = 0
    assert last_run(server.run(again))["evaluations"]


@pytest.mark.parametrize(("interval", "words"), [("0", "smallest is 1"), ("soon", "write")])
def test_bad_interval_is_refused_by_the_server(server, prompt, interval, words):
    bad = copy.deepcopy(prompt)
    of_type(bad, "HighlightDiffusion")["interval"] = interval
    with pytest.raises(ServerError, match=words):
        server.run(bad)


def test_reversed_percentages_fail_the_node_and_the_next_prompt_works(server, prompt):
    bad = copy.deepcopy(prompt)
    of_type(bad, "HighlightDiffusion").update(start_percent=0.8, end_percent=0.3)
    with pytest.raises(ServerError, match=r"start_percent 0.8 is not below end_percent 0.3"):
        server.run(bad)
    assert last_run(server.run(prompt))["completed"]


def test_two_prompts_queued_at_once_are_as_each_alone(server, prompt):
    prompts = [copy.deepcopy(prompt) for _ in range(2)]
    for variant, (seed, preset) in zip(prompts, [(11, "balanced"), (12, "fast")], strict=True):
        of_type(variant, "KSampler").update(seed=seed, steps=12)
        of_type(variant, "HighlightDiffusion")["preset"] = preset
    together = [server.result(prompt_id) for prompt_id in [server.post(variant) for variant in prompts]]
    pictures = [picture(server, outputs) for outputs in together]
    assert not np.array_equal(*pictures)
    for variant, expected in zip(prompts, pictures, strict=True):
        of_type(variant, "HighlightDiffusion")["threshold"] = 0.6000001  # nothing from the cache
        assert np.array_equal(picture(server, server.run(variant)), expected)


def test_the_template_browser_has_the_workflows_with_their_pictures(server, pack):
    listed = server.get("/api/workflow_templates")["highlight-diffusion"]
    assert set(listed) == {path.stem for path in (pack / "workflows").glob("*.json")}
    for name in listed:
        json.loads(server.open(f"/api/workflow_templates/highlight-diffusion/{name}.json"))
        assert server.open(f"/api/workflow_templates/highlight-diffusion/{name}.jpg").startswith(b"\xff\xd8")


def test_node_help_is_served(server):
    for name in ("HighlightDiffusion", "HighlightMaskPreview", "HighlightDemoModel"):
        assert server.open(f"/extensions/highlight-diffusion/docs/{name}.md").startswith(b"# ")
