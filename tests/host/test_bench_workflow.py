"""The bench on a user's own workflow: what it samples is what the graph samples, and it ends with a page."""

import json
import sys

import pytest
import torch
from highlight_diffusion.bench import compare, prompts
from highlight_diffusion.bench.workflow import WorkflowSubject, read_prompt
from highlight_diffusion.tools import workflows
from highlight_diffusion.tools.comfy import Sampling, Subject
from highlight_diffusion.tools.start import PACK

pytestmark = pytest.mark.beside
DEMO = PACK / "workflows" / "highlight_demo_turbo_4.json"
PROMPT = "a large red circle at the left on a plain gray background"


@pytest.fixture(scope="module", autouse=True)
def our_nodes():
    workflows.load_nodes()


def custom(path, guider: str = "CFGGuider"):
    """A workflow of SamplerCustomAdvanced, exported for the API, saved at `path`."""
    inputs = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 1.0}
    if guider == "BasicGuider":
        inputs = {"model": ["1", 0], "conditioning": ["2", 0]}
    graph = {
        "1": ("HighlightDemoModel", {"kind": "mmdit turbo 4"}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "anything"}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": (guider, inputs),
        "5": ("KSamplerSelect", {"sampler_name": "euler"}),
        "6": ("BasicScheduler", {"model": ["1", 0], "scheduler": "simple", "steps": 4, "denoise": 1.0}),
        "7": ("RandomNoise", {"noise_seed": 5}),
        "8": ("EmptyLatentImage", {"width": 256, "height": 256, "batch_size": 1}),
        "9": ("SamplerCustomAdvanced", {
            "noise": ["7", 0], "guider": ["4", 0], "sampler": ["5", 0], "sigmas": ["6", 0], "latent_image": ["8", 0],
        }),
        "10": ("VAEDecode", {"samples": ["9", 0], "vae": ["1", 2]}),
    }  # fmt: skip
    path.write_text(json.dumps({name: {"class_type": kind, "inputs": own} for name, (kind, own) in graph.items()}))
    return path


@pytest.mark.parametrize("guider", ["CFGGuider", "BasicGuider"])
def test_a_custom_sampler_s_workflow_samples_as_the_ksampler_does(tmp_path, guider):
    subject = WorkflowSubject(custom(tmp_path / "custom.json", guider))
    assert subject.sampling == Sampling("euler", 4, 1.0, "simple") and subject.size == 32
    demo = Subject.demo("mmdit turbo 4")
    for steps, seed in ((4, 7), (3, 8)):
        sampling = Sampling("euler", steps, 1.0, "simple")
        (ours, _), (wanted, _) = (own.sample(own.model, PROMPT, seed, sampling) for own in (subject, demo))
        assert torch.equal(ours, wanted)
    assert subject.decode(ours).shape == (256, 256, 3)


def test_a_saved_workflow_is_read_without_our_nodes_in_its_model():
    subject = WorkflowSubject(DEMO)
    assert subject.sampling == Sampling("euler", 4, 1.0, "simple") and subject.size == 64
    demo = Subject.demo("mmdit turbo 4", subject.size)
    dense = subject.sample(subject.model, PROMPT, 3, subject.sampling)[0]
    assert torch.equal(dense, demo.sample(demo.model, PROMPT, 3, subject.sampling)[0])


@pytest.mark.parametrize("data, told", [
    ({"nodes": [], "links": [], "definitions": {"subgraphs": [1]}}, "export it with Workflow, Export"),
    ({"nodes": [{"id": 1, "type": "NoSuchNode"}], "links": []}, "uses node NoSuchNode, which is not installed"),
    ({"a": 1}, "is no workflow"),
])  # fmt: skip
def test_another_file_is_refused_and_the_error_says_what_to_do(tmp_path, data, told):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=told):
        read_prompt(path)


def test_a_workflow_without_a_sampler_is_refused(tmp_path):
    graph = json.loads(custom(tmp_path / "x.json").read_text())
    del graph["9"], graph["10"]
    (tmp_path / "x.json").write_text(json.dumps(graph))
    with pytest.raises(ValueError, match="0 nodes of type KSampler"):
        WorkflowSubject(tmp_path / "x.json")


def bench(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(compare, "boot", lambda: None)  # it is imported already
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert compare.main() == 0


def test_the_bench_of_a_workflow_ends_with_a_page_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text(f"# scenes\n{PROMPT}\n")
    arguments = ("--workflow", str(custom(tmp_path / "mine.json")), "--prompts", str(tmp_path / "prompts.txt"), "--no-profile",
                 "--only", "Highlight,fewer", "--out", str(tmp_path / "out"))  # fmt: skip
    bench(monkeypatch, *arguments)
    text, rows = (tmp_path / "out" / "benchmarks.md").read_text(), (tmp_path / "out" / "mine.csv").read_text()
    assert "## mine" in text and "| fewer steps | " in text and (tmp_path / "out" / "mine.png").exists()
    monkeypatch.setattr(compare.Comparison, "picture", lambda *args: pytest.fail("a picture was made again"))
    bench(monkeypatch, *arguments)
    assert (tmp_path / "out" / "mine.csv").read_text() == rows


def test_a_model_of_one_s_own_is_profiled_first(tmp_path, monkeypatch):
    import folder_paths
    from highlight_diffusion.host.profiles import own_profile

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    subject = WorkflowSubject(custom(tmp_path / "mine.json"))
    compare.log_profile(subject, subject.sampling, prompts.PROFILED)
    found = own_profile(subject.model)
    assert found is not None and len(found.runs) == len(prompts.PROFILED)
    compare.log_profile(subject, subject.sampling, prompts.PROFILED)
    assert own_profile(subject.model).runs == found.runs, "it was made again"
