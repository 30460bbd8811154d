"""What each kind of evaluation costs on the transformers that people run most, at true shape: a part of `python run.py shapes`.

ComfyUI's own classes at their published width, with random weights and as few blocks as memory and patience ask for; blocks are
all alike, so that ratios are those of the whole network but for what stands around the blocks. Everything runs through the
pack's own executor on a real MODEL. Plans are those of the node, and cost the sum of the medians of their evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.config import PRESETS, HighlightConfig
from ..engine.job import Job
from ..engine.merging.config import SDTMConfig
from ..engine.merging.job import MergeJob
from ..engine.merging.matcher import BUCKETS, Matcher
from ..engine.merging.sites import ATTENTION, MLP
from ..engine.method import DenseContext, Merging
from ..engine.partial.token_subset import TokenSubset
from ..engine.region.heatmap import HeatmapAccumulator
from ..engine.region.regions import UserMasks
from ..engine.trace import LETTERS, Evaluation, Kind, Trace
from .cost import macs
from .gpu.models import AREA as MASK
from .gpu.models import Shape, Subject, published
from .timing import timed
from .true_shape import square

AREAS = (MASK, 0.25)
SAVED = BUCKETS // 2  # of BUCKETS parts of the tokens, that a merged evaluation saves
PART, MERGE, REMEMBER = f"regional {MASK:.0%}", f"merged, {SAVED}/{BUCKETS} saved", "recording for merging"
MERGED = {"merge": ("M", MERGE), "record": ("D", REMEMBER)}  # of dense evaluations, by what the plan has for merging
AT = Evaluation(0, 0, 0.8, "dense", "", 1.0)


@dataclass(frozen=True)
class Turbo:
    """A published transformer. shape: its network, with a few of its blocks. blocks: how many of how many, for people. tokens:
    of a usual prompt. references: pictures of the frame's size that it is given to edit. steps: that it is sampled in."""

    shape: Shape
    blocks: str
    tokens: int
    steps: tuple[int, ...]
    references: int = 0


FLUX2_KLEIN = {
    "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": 24, "mlp_ratio": 3.0, "theta": 2000,
    "in_channels": 128, "out_channels": 128, "hidden_size": 3072, "context_in_dim": 7680, "patch_size": 1, "vec_in_dim": None,
    "depth": 1, "depth_single_blocks": 2, "guidance_embed": False, "global_modulation": True, "mlp_silu_act": True,
    "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
}  # fmt: skip
Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
KREA2 = {
    "image_model": "krea2", "features": 6144, "heads": 48, "kvheads": 12, "layers": 1, "patch": 2, "channels": 16,
    "txtdim": 2560, "txtlayers": 12, "txtheads": 20, "txtkvheads": 20,
}  # fmt: skip
QWEN_IMAGE = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 3584, "default_ref_method": "index",
}  # fmt: skip
TURBO = {
    "Z-Image Turbo": Turbo(Shape("ZImage", Z_IMAGE, 128, 16, 2560, cfg=1.0), "2 of 30 and 1 of 2 refining", 96, (8, 4)),
    "Krea 2": Turbo(Shape("Krea2", KREA2, 128, 16, 12 * 2560, cfg=1.0), "1 of 28", 128, (8, 4)),
    "Flux.2 Klein": Turbo(Shape("Flux2", FLUX2_KLEIN, 64, 128, 7680, cfg=1.0), "1 of 5 and 2 of 20 single", 512, (8, 4)),
    "Flux.2 Klein, one reference": Turbo(
        Shape("Flux2", FLUX2_KLEIN, 64, 128, 7680, cfg=1.0), "1 of 5 and 2 of 20 single", 512, (8, 4), references=1),
    "Qwen-Image-Edit, one reference": Turbo(
        Shape("QwenImage", QWEN_IMAGE, 128, 16, 3584, cfg=1.0), "1 of 60", 256, (20, 8, 4), references=1),
}  # fmt: skip


def native_precision(device: torch.device) -> str:
    """Of PRECISIONS: bfloat16 on a GPU and on a CPU that multiplies matrices of it by itself (AMX), else float32."""
    return "bf16" if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"


def subject_of(model: Turbo, device: torch.device) -> Subject:
    """The MODEL, with a prompt of the usual length and its references."""
    own = published(model.shape, native_precision(device), device)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randn(1, model.tokens, model.shape.context, generator=generator)
    frames = (1,) if model.shape.kind in ("QwenImage", "Krea2") else ()
    latent = torch.randn(1, model.shape.channels, *frames, model.shape.side, model.shape.side, generator=generator)
    given: dict[str, Any] = {"reference_latents": [latent] * model.references} if model.references else {}
    return replace(own, positive=[[prompt, given]])


class Measured(Exception):
    """Ends a run whose first call was measured."""


def jobs(state: Any, call: Any) -> dict[str, Callable[[], object]]:
    """What is measured of a call, by name, after all was recorded that it lacks."""
    grid = state.grid
    side = grid.frame[0]
    subsets = {f"{area:.0%}": TokenSubset([square(area, side, grid.patch)], grid) for area in AREAS}
    matcher = Matcher(SDTMConfig(), grid, 1)
    matcher.learn(torch.randn(1, *call.x.shape[1:], device=call.x.device))
    matcher.match("structure", SAVED, DenseContext())
    record = MergeJob(matcher.matched, frozenset((ATTENTION, MLP)), True, uses_residuals=True)

    def done(job: Job) -> Callable[[], Tensor]:
        return lambda: state.apply_model(job, call)

    def recorded(*names: str) -> Tensor:
        own = tuple(subsets[name] for name in names)
        for subset in own:
            subset.begin(0.9)
        return state.apply_model(Job(AT, record=own), call)

    recorded(*subsets)
    done(Job(AT, tasks=(record,)))()
    return {
        "dense": call,
        "recording 25%": lambda: recorded("25%"),
        "listening": lambda: state.apply_model(Job(AT, capture=HeatmapAccumulator()), call),
        **{f"regional {name}": done(Job(AT, compute=(subset,))) for name, subset in subsets.items()},
        REMEMBER: done(Job(AT, tasks=(record,))),
        MERGE: done(Job(AT, tasks=(replace(record, record=False),))),
    }


def costs_of(subject: Subject, repeats: int, device: torch.device) -> dict[str, tuple[int, float]]:
    """Multiply-accumulates and median seconds of each kind of evaluation in the first call of a run."""
    from comfy.patcher_extension import WrappersMP

    from ..host.attach import KEY, attach
    from ..host.call import ModelCall

    found: dict[str, tuple[int, float]] = {}

    def measure(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        call = ModelCall(executor, x, t, c_concat, c_crossattn, control, transformer_options, kwargs)
        calls = jobs(transformer_options[KEY], call)
        counted = {name: macs(own) for name, own in calls.items()}
        seconds = timed(calls, repeats, device, warm=False)  # counting was the warm-up
        found.update({name: (counted[name], seconds[name]) for name in calls})
        raise Measured

    model = attach(subject.model, HighlightConfig(enabled=False), Trace())
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "measure", measure)
    try:
        subject.sample(model, 4)
    except Measured:
        return found
    raise AssertionError("the model was never called")


def planned(subject: Subject, steps: int, preset: str, masked: bool) -> list[tuple[str, str]]:
    """The letter of every evaluation that the node plans, and which of `jobs` it is; the network itself does not run."""
    from comfy.patcher_extension import WrappersMP

    from ..host.attach import KEY, attach

    trace, states = Trace(), []

    def idle(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        states[:] = [transformer_options[KEY]]
        return torch.zeros_like(x)

    model = attach(subject.model, HighlightConfig(**PRESETS[preset]), trace, given=UserMasks(subject.mask) if masked else None)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "idle", idle)
    subject.sample(model, steps)
    assert trace.last is not None
    plan = states[0].engine.state.plan
    return [step_in_plan(e.planned or e.kind, plan.merging(e.step)) for e in trace.last.evaluations]


def step_in_plan(kind: Kind, merging: Merging | None) -> tuple[str, str]:
    """The letter of an evaluation and its name among `jobs`, empty where nothing is computed."""
    if kind == "dense" and merging in MERGED:
        return MERGED[merging]
    return LETTERS[kind], {"dense": "dense", "partial": PART, "skipped": ""}[kind]


@torch.no_grad()
def measure_transformer(name: str, repeats: int) -> list[str]:
    """The tables of one of TURBO, as markdown."""
    model, device = TURBO[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = subject_of(model, device)
    costs = costs_of(subject, repeats, device)
    counted, took = costs["dense"]
    lines = [f"### {name}, 1024x1024, one stream, {native_precision(device)}, {device.type}, blocks: {model.blocks}", "",
             "| evaluation | MACs / dense | seconds / dense |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {kind} | {own / counted:.3f} | {seconds / took:.3f} |" for kind, (own, seconds) in costs.items()]
    cost = {"": (0.0, 0.0)} | {name: (own / counted, seconds / took) for name, (own, seconds) in costs.items()}
    lines += ["", "| plan, euler, simple, CFG 1 | steps | evaluations | times faster, by MACs | by the sum of medians |",
              "|---|---|---|---|---|"]  # fmt: skip
    for steps in model.steps:
        for preset in PRESETS:
            for masked in (False, True):
                plan = planned(subject, steps, preset, masked)
                by_macs, by_clock = (steps / sum(cost[name][i] for _, name in plan) for i in range(2))
                title = f"{preset}, mask of {MASK:.0%}" if masked else preset
                letters = "".join(letter for letter, _ in plan)
                lines.append(f"| {title} | {steps} | `{letters}` | {by_macs:.2f} | {by_clock:.2f} |")
    return [*lines, "", f"Dense: {took:.2f} s, {counted / 1e9:.0f} GMACs.", ""]
