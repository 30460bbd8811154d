import numpy as np
import pytest
import torch
from highlight_diffusion.bench import ablate
from highlight_diffusion.bench.compare import Tally
from highlight_diffusion.bench.cost import CostModel, macs
from highlight_diffusion.bench.fidelity import BEST, psnr, ssim
from highlight_diffusion.demo.plain import PlainModel
from highlight_diffusion.demo.unet import UNet
from highlight_diffusion.engine.trace import Evaluation, RunRecord
from highlight_diffusion.tools.comfy import Sampling
from highlight_diffusion.tools.workflow import of_type, to_prompt


def test_psnr_of_a_known_error():
    a = np.zeros((8, 8, 3))
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(a, a) == BEST
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    b = a.copy()
    b[:4] = 0.1
    assert psnr(a, b, mask) == pytest.approx(20.0) and psnr(a, b) == pytest.approx(23.01, abs=0.01)


def test_ssim_of_equal_and_unequal_pictures():
    a = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, 1 - a) < 0.1


def test_macs_of_known_layers():
    linear, conv = torch.nn.Linear(8, 16), torch.nn.Conv2d(3, 5, 3, padding=1)
    q = torch.randn(1, 2, 10, 4)
    assert macs(lambda: linear(torch.randn(4, 8))) == 4 * 8 * 16
    assert macs(lambda: conv(torch.randn(1, 3, 6, 6))) == 5 * 3 * 9 * 36
    assert macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 10 * 10 * 4


def test_cost_counts_each_kind_of_evaluation():
    context = torch.randn(1, 77, 128)
    model = CostModel(PlainModel(UNet(), context, context), (1, 4, 32, 32))
    window = (0, 16, 0, 16)
    run = RunRecord((1, 4, 32, 32), "euler", (2.0, 1.0, 0.5, 0.0))
    run.evaluations = [
        Evaluation(0, 0, 2.0, "dense", "", 1.0),
        Evaluation(1, 1, 1.0, "partial", "", 0.25, ((window,),), ((window,),)),
        Evaluation(2, 2, 0.5, "skipped", "", 0.0),
    ]
    cost = model.of(run.as_dict())
    assert cost.dense == model.full and cost.dense_run == 3 * model.full
    assert 0.2 * model.full < cost.partial < 0.35 * model.full
    assert cost.heatmap == 0 and 0 < model.listened < 0.02 * model.full
    assert 2.2 < cost.ratio < 2.6


INFO = {
    "Sampler": {
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"control_after_generate": True}], "name": [["a", "b"]]}}
    },
    "Loader": {"input": {"required": {}}},
}
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "Loader", "widgets_values": []},
        {"id": 2, "type": "Sampler", "inputs": [{"name": "model", "link": 7}], "widgets_values": [5, "fixed", "b"]},
        {"id": 3, "type": "Note", "widgets_values": ["hello"]},
    ],
    "links": [[7, 1, 0, 2, 0, "MODEL"]],
}


def test_a_workflow_becomes_the_prompt_the_frontend_would_send():
    prompt = to_prompt(WORKFLOW, INFO)
    assert prompt["2"]["inputs"] == {"seed": 5, "name": "b", "model": ["1", 0]} and set(prompt) == {"1", "2"}
    assert of_type(prompt, "Sampler")["seed"] == 5


def test_a_workflow_saved_before_an_input_was_added_has_its_default():
    later = {"optional": {"memory": [["device", "offload"], {"default": "device"}]}}
    info = {**INFO, "Sampler": {"input": {**INFO["Sampler"]["input"], **later}}}
    assert to_prompt(WORKFLOW, info)["2"]["inputs"] == to_prompt(WORKFLOW, INFO)["2"]["inputs"] | {"memory": "device"}


def test_an_unknown_node_is_named():
    with pytest.raises(ValueError, match="node Sampler"):
        to_prompt(WORKFLOW, {"Loader": INFO["Loader"]})
    with pytest.raises(ValueError, match="0 nodes of type KSampler"):
        of_type(to_prompt(WORKFLOW, INFO), "KSampler")


def test_tally_adds_up_pieces_it_has_met():
    def run(dense, *boxes):
        made = RunRecord((1, 4, 32, 32), "euler", (1.0, 0.0), depth=4)
        kinds = [("dense", ())] * dense + [("partial", ((box,),)) for box in boxes]
        made.evaluations = [
            Evaluation(i, i, 1.0, kind, "", 0.0, windows=windows, heatmap=torch.zeros(1) if kind == "dense" else None)
            for i, (kind, windows) in enumerate(kinds)
        ]
        return made

    tally, sampling = Tally(), Sampling()
    small, shifted, large = (2, 10, 2, 10), (4, 12, 6, 14), (2, 20, 2, 20)
    assert tally.of(run(3), sampling) is None
    assert tally.learn(run(3), sampling, 300) == 300
    assert tally.of(run(5), sampling) == 500
    assert tally.learn(run(2, small), sampling, 207) == 207
    assert tally.of(run(1, small, shifted), sampling) == 114
    assert tally.of(run(1, small, large), sampling) is None
    assert tally.of(run(1), Sampling(cfg=1.0)) is None


def test_tally_tells_merged_evaluations_apart_by_what_was_merged_not_by_their_reason():
    def run(*merged):
        made = RunRecord((1, 4, 32, 32), "euler", (1.0, 0.0))
        made.evaluations = [
            Evaluation(i, i, 1.0, "dense", f"in words {i}", 1.0, merged=torch.ones(1, 2, 2), tokens_saved=n, parts_merged=parts)
            for i, (n, parts) in enumerate(merged)
        ]
        return made

    tally, sampling = Tally(), Sampling()
    both, mlp = (64, ("attention", "mlp")), (64, ("mlp",))
    assert tally.learn(run(both, both), sampling, 120) == 120
    assert tally.of(run(both), sampling) == 60
    assert tally.of(run(mlp), sampling) is None and tally.of(run((32, both[1])), sampling) is None
    assert tally.learn(run(both, mlp), sampling, 140) == 140
    assert tally.of(run(mlp, mlp), sampling) == 160


def test_bug_stale_ingredients_are_stale():
    """Five rows of the ablation were one and the same, since what they override had got another name."""
    conv, norm, keys = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.GroupNorm(1, 1), ("positive",)
    for variant in ablate.VARIANTS:
        window = ablate.AblatedWindow((0, 2, 0, 2), (4, 4))
        window.variant = variant
        for sigma, value in ((2.0, 1.0), (1.0, 2.0)):
            window.begin(sigma)
            for module in (conv, norm):
                window.put(module, keys, torch.tensor([value]))
        for module, name in ((conv, "rings"), (norm, "statistics")):
            assert (float(window.get(module, keys, 0.5)) == 2.0) == (name in variant.stale)
