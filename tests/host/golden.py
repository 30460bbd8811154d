"""A golden record: what many runs on the real ComfyUI decide and compute, to the bit, to compare two commits by.

    python tests/host/golden.py write FILE [--only PATTERN]
    python tests/host/golden.py compare FILE [--only PATTERN]

`compare` prints every difference by run and field and exits with 1 where there is one. Both commits have to be recorded on one
machine with the same packages: no two machines round alike.
"""

# ruff: noqa: E402  (the pack is loaded, and ComfyUI told to stay on the CPU, before either is imported)
from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.util
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[2]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (PACK, Path(__file__).resolve().parent)]
sys.path.insert(0, str(PACK / "tests"))
_module(PACK / "tools" / "start.py").load_pack()
if (comfyui := _module(PACK / "run.py").find_comfyui()) is None:
    raise SystemExit("no ComfyUI found; set COMFYUI_PATH to a checkout, or put one at ~/comfy/ComfyUI")
sys.path.insert(0, str(comfyui))
torch.set_num_threads(1)

from comfy import cli_args

cli_args.args.cpu = True
logging.getLogger().setLevel(logging.CRITICAL)

import comfy.model_management
import folder_paths
from highlight_diffusion.demo.load import encode_prompt, load_plain
from highlight_diffusion.demo.plain import PlainModel
from highlight_diffusion.demo.plain import sample as plain_sample
from highlight_diffusion.demo.plain_flow import PlainFlow
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import attach, attach_merging
from highlight_diffusion.host.demo import load_clip, load_mmdit, load_unet
from highlight_diffusion.nodes.words import HighlightWords

import nodes
from host import fuzz, nets, packs, sampling, tiny

Result = tuple[torch.Tensor | None, RunRecord]
SIZE = (16, 24)
BOX = (4, 12, 8, 16)
MASKED = dict(interval=(4,), warmup=3, halo=0, max_area=1.0, correct="always")
PACES = {"quality": 2.0, "balanced": 5.0, "fast": 8.0}
PROMPTS = (
    "a large red circle at the top left on a plain navy background",
    "a small yellow square at the right on a plain gray background",
)
RUNS: dict[str, Callable[[], Result]] = {}


# -- models --------------------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], tiny.Tiny]] = {
    "sd15": tiny.sd15, "sd21": tiny.sd21, "sdxl": tiny.sdxl, "koala": tiny.koala, "refiner": tiny.refiner,
    "demo unet": lambda: tiny.Tiny(load_unet(), context=128),
    "demo mmdit": lambda: tiny.Tiny(load_mmdit(), context=128), **tiny.TRANSFORMERS,
}  # fmt: skip


@cache
def model(name: str) -> tiny.Tiny:
    return MODELS[name]()


@cache
def clip():
    return load_clip()


@cache
def encoded(prompt: str) -> list:
    return clip().encode_from_tokens_scheduled(clip().tokenize(prompt))


@cache
def plain(kind: str):
    denoiser, text, _ = load_plain(kind)
    made = PlainModel if kind == "unet" else PlainFlow
    return made(denoiser, torch.cat([encode_prompt(text, p) for p in PROMPTS]), encode_prompt(text, ""))


# -- how a run is made ---------------------------------------------------------------------------------------------------


def box(size=SIZE, at=BOX, batch: int = 1) -> torch.Tensor:
    mask = torch.zeros(batch, *size)
    mask[:, at[0] : at[1], at[2] : at[3]] = 1
    return mask


def sampled(
    name: str, config: dict | None = None, merging: dict | None = None, given: UserMasks | None = None, patch=None,
    merging_first: bool = False, hook=None, sampled=tiny.sample, **settings,
) -> Result:  # fmt: skip
    """One run of a model. config, merging: the settings of either method, None without it. patch: what other nodes do to the
    MODEL before. hook: called before each call of the network, with its number and its arguments."""
    made, trace = model(name), Trace()
    patcher = made.patcher if patch is None else patch(made.patcher)
    if merging is not None and merging_first:
        patcher = attach_merging(patcher, SDTMConfig(**merging), trace)
    if config is not None:
        patcher = attach(patcher, HighlightConfig(**config), trace, given=given)
    if merging is not None and not merging_first:
        patcher = attach_merging(patcher, SDTMConfig(**merging), trace)
    if name.startswith("demo"):
        settings = {"positive": encoded(PROMPTS[0]), "negative": encoded(""), "cfg": 3.0, **settings}
    calls = iter(range(10**6))
    handle = hook and made.patcher.model.diffusion_model.register_forward_pre_hook(
        lambda network, args: hook(next(calls), network, args)
    )
    try:
        latent = sampled(made, patcher, **{"size": SIZE if made.size == (16, 16) else made.size, "steps": 12, **settings})
    except (comfy.model_management.InterruptProcessingException, torch.cuda.OutOfMemoryError):
        latent = None
    finally:
        if handle:
            handle.remove()
    return latent, trace.last


def add(title: str, name: str, config: dict | None = None, **settings) -> None:
    """A run of `sampled`; what is callable among the conditionings and masks is made of the model when it runs."""

    def run() -> Result:
        made = {k: v(model(name)) if k in ("positive", "negative", "both") else v for k, v in settings.items()}
        if "both" in made:
            made["positive"], made["negative"] = made.pop("both")
        return sampled(name, config, **made)

    assert title not in RUNS, title
    RUNS[title] = run


# -- the runs ------------------------------------------------------------------------------------------------------------


def plans() -> None:
    """When each evaluation is what."""
    for name in ("demo unet", "demo mmdit"):
        for steps in (8, 12, 20, 30):
            for preset in ("balanced",) if steps in (8, 30) else PACES:
                add(f"{name}, {preset}, {steps} steps", name, {"pace": PACES[preset]}, steps=steps)
    changes: dict[str, dict] = {
        "interval 3": {"interval": (3,)}, "interval list": {"interval": (1, 3, 5, 7)}, "interval 1": {"interval": (1,)},
        "adaptive": {"interval": "adaptive", "pace": 20.0}, "disabled": {"enabled": False},
        "start and end percent": {"start_percent": 0.2, "end_percent": 0.8}, "warm-up 5": {"warmup": 5},
        "correct always": {"correct": "always"}, "correct never": {"correct": "never"},
        "shallow always": {"shallow": "always", "correct": "never"}, "shallow never": {"shallow": "never"},
        "shallow and corrected": {"shallow": "always", "correct": "always", "pace": 8.0},
        "forecast noise": {"forecast": "noise"}, "forecast denoised": {"forecast": "denoised"},
        "not revised": {"revise": False}, "threshold 0": {"threshold": 0.0},
        "threshold 0.4": {"threshold": 0.4, "correct": "always"},
        "levels 0": {"levels": 0, **MASKED}, "levels 1": {"levels": 1, **MASKED}, "halo 4": {**MASKED, "halo": 4},
        "max area 0.05": {"max_area": 0.05, "correct": "always"}, "one gap of all": {"interval": (100,), "correct": "always"},
        "8 bit": {"memory": "8 bit", **MASKED}, "offload": {"memory": "offload", **MASKED},
    }  # fmt: skip
    for title, config in changes.items():
        for name in ("sd15", "sd3"):
            add(f"{name}, {title}", name, {"threshold": 0.5, "max_area": 1.0, **config}, steps=14)
    for kind in ("8 bit", "offload"):
        add(f"demo unet, shallow, {kind}", "demo unet", {"shallow": "always", "correct": "never", "memory": kind, "pace": 8.0})
    add("demo unet, adaptive, corrected", "demo unet", {"interval": "adaptive", "correct": "always"}, steps=20)
    add("demo mmdit, adaptive", "demo mmdit", {"interval": "adaptive"}, steps=20)


def families() -> None:
    """Every model with a mask, and as it is without one."""
    for name in MODELS:
        if not name.startswith("demo"):
            size = {"pixart": (48, 40), "wan": (8, 12), "hunyuan_video": (8, 12)}.get(name, SIZE)
            at = (size[0] // 4, size[0] // 2, size[1] // 3, size[1] // 3 * 2)
            given = UserMasks(box(size, at))
            add(f"{name}, a mask", name, MASKED, given=given, size=size, steps=9)
    for name in ("sdxl", "flux", "qwen_image", "lumina2"):
        add(f"{name}, found", name, {"threshold": 0.5, "max_area": 1.0, "correct": "always"}, steps=12)


def masks() -> None:
    """What the user gives, in batches and sizes of all kinds."""
    lower = box(at=(8, 16, 0, 8))
    apart = box(batch=3)
    apart[1], apart[2, :6] = lower[0], 1
    for name in ("sd15", "sd3"):
        add(f"{name}, a mask and a protected part", name, MASKED, given=UserMasks(box(), lower))
        add(f"{name}, a protected part", name, MASKED | {"threshold": 0.55}, given=UserMasks(protect=lower))
        add(f"{name}, an empty mask", name, MASKED, given=UserMasks(torch.zeros(1, *SIZE)))
        add(f"{name}, a mask of the whole frame", name, MASKED, given=UserMasks(torch.ones(1, *SIZE)))
        add(f"{name}, a mask, all automatic", name, {}, given=UserMasks(box()), steps=20)
        add(f"{name}, batch of 2", name, {"threshold": 0.5, "max_area": 1.0, "correct": "always"}, batch=2)
        add(f"{name}, batch of 3 with a mask each", name, MASKED, given=UserMasks(apart), batch=3)
        add(f"{name}, batch of two prompts", name, MASKED, positive=sampling.two_prompts, batch=2, given=UserMasks(box()))
        add(f"{name}, a size that does not fit", name, MASKED, given=UserMasks(box((17, 23))), size=(17, 23))
        add(f"{name}, image to image", name, {}, denoise=0.6, steps=16)
        add(f"{name}, a part of a schedule", name, {}, steps=24, start_step=6, last_step=20, force_full_denoise=False)
        add(f"{name}, inpainting", name, MASKED, noise_mask=box()[None], given=UserMasks(box()))
    add("demo unet, batch of 2", "demo unet", {"correct": "always"}, batch=2)
    add("demo mmdit, batch of 2", "demo mmdit", {"correct": "always"}, batch=2)


def samplers() -> None:
    names = [
        "euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "uni_pc", "res_multistep",
        "sa_solver", "er_sde", "ddim", "deis", "lms",
    ]  # fmt: skip
    config = {"threshold": 0.5, "max_area": 1.0, "correct": "always"}
    for sampler in names:
        add(f"sd15, {sampler}", "sd15", config, sampler=sampler)
        add(f"sd3, {sampler}", "sd3", MASKED, sampler=sampler, given=UserMasks(box()), steps=10)
    for sampler in ("dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "heun"):
        add(f"demo unet, all automatic, {sampler}", "demo unet", {}, sampler=sampler)
        add(f"demo mmdit, all automatic, {sampler}", "demo mmdit", {}, sampler=sampler)
    for sampler in ("heun", "euler_ancestral"):
        add(f"sd15, adaptive, {sampler}", "sd15", config | {"interval": "adaptive"}, sampler=sampler, steps=16)
    for scheduler in ("karras", "sgm_uniform", "beta"):
        add(f"sd15, {scheduler}", "sd15", config, scheduler=scheduler)


def conditionings() -> None:
    config = {"threshold": 0.5, "max_area": 1.0, "correct": "always"}
    for name in ("sd15", "sd3"):
        add(f"{name}, CFG 1", name, config, cfg=1.0)
        for title, positive in sampling.POSITIVES.items():
            add(f"{name}, {title}", name, config, positive=positive, steps=14)
    add("sd15, two prompts of other lengths in a batch", "sd15", MASKED, given=UserMasks(box(batch=2)), batch=2,
        positive=lambda made: tiny.cond(made, 1, 154), negative=lambda made: tiny.cond(made, 2))  # fmt: skip
    for name in ("demo unet", "demo mmdit"):
        add(f"{name}, words", name, {"correct": "always"}, steps=16, positive=lambda _: HighlightWords.execute(
            encoded(PROMPTS[0]), clip(), PROMPTS[0], "red circle").args[0])  # fmt: skip


def others() -> None:
    """Beside nodes of others."""
    config = {"threshold": 0.5, "max_area": 1.0, "correct": "always"}
    for name in ("FreeU", "ToMe", "HyperTile", "PAG", "SAG", "RescaleCFG", "EasyCache"):
        add(f"sd15, {name}", "sd15", config, patch=fuzz.NODES[name])
    for name in ("SLG", "CFGZeroStar"):
        add(f"sd3, {name}", "sd3", MASKED, given=UserMasks(box()), patch=fuzz.NODES[name])

    def replaced(patcher):
        clone = patcher.clone()
        clone.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
        return clone

    def multiplied(patcher):
        clone = patcher.clone()
        clone.set_model_attn1_output_patch(lambda out, extra: 1.1 * out)
        return clone

    add("sd3, a block replaced", "sd3", MASKED, given=UserMasks(box()), patch=replaced)
    add("sd3, a block replaced, merging", "sd3", merging={}, patch=replaced, steps=6)
    add("sd15, attention patched", "sd15", config, patch=multiplied)


def errors() -> None:
    """Memory that runs out, and an interruption. A call in part is told by what enters the network, or the first block."""

    def out_of_memory() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def small(number, network, args) -> None:
        if tuple(args[0].shape[-2:]) != SIZE:
            out_of_memory()

    def numbered(wanted: int) -> Callable:
        def hook(number, network, args) -> None:
            if number == wanted:
                out_of_memory()

        return hook

    def interrupt(step, *_) -> None:
        if step == 6:
            raise comfy.model_management.InterruptProcessingException

    def few_tokens() -> Result:
        """In the transformer's first layer, which computes less than a frame of tokens in a partial evaluation."""
        layer = model("sd3").patcher.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
        handle = layer.register_forward_pre_hook(
            lambda _, args: out_of_memory() if args[0].shape[1] < SIZE[0] * SIZE[1] // 4 else None
        )
        try:
            return sampled("sd3", MASKED, given=UserMasks(box()))
        finally:
            handle.remove()

    add("sd15, memory runs out in a partial evaluation", "sd15", MASKED, given=UserMasks(box()), hook=small)
    RUNS["sd3, memory runs out in a partial evaluation"] = few_tokens
    for name in ("sd15", "sd3"):
        for number in (0, 3):
            add(f"{name}, memory runs out in call {number}", name, MASKED, given=UserMasks(box()), hook=numbered(number))
        add(f"{name}, interrupted", name, MASKED, given=UserMasks(box()), callback=interrupt)
    add("sd3, merging, memory runs out in call 3", "sd3", merging={}, hook=numbered(3), steps=8)
    add("sd15, shallow, memory runs out in call 4", "sd15", {"shallow": "always", "correct": "never", "pace": 8.0},
        hook=numbered(4))  # fmt: skip


def merging() -> None:
    """SDTM alone, and both methods in one run."""
    presets = {
        "quality": {"r": 0.3, "protect_steps": 3}, "balanced": {"r": 0.5, "protect_steps": 4},
        "fast": {"r": 0.6, "protect_steps": 6},
    }  # fmt: skip
    for preset, settings in presets.items():
        for name in ("demo mmdit", "sd35m"):
            add(f"{name}, merging, {preset}", name, merging=settings, steps=12)
    pure = {"mcw": 1.0, "protect_steps": 0}
    changes: dict[str, dict] = {
        "mcw 1": pure, "mcw 0.5": {"mcw": 0.5}, "protect_steps 2": {"protect_steps": 2}, "not rotated": {"rotate": False},
        "MLP alone in detail": {"detail_attention": False, "switch": 0.2}, "a_p": {"a_p": 0.3},
        "not proportional": {"proportional": False}, "8 bit": {"memory": "8 bit"}, "offload": {"memory": "offload"},
        "window 4": {"window": 4, **pure}, "threshold": {"threshold": 0.1}, "reuse 1": {"reuse": 1, "delta": 0.0, **pure},
        "blocks protected": {"protect_blocks": (0, -1)}, "a share of the schedule": {"start_percent": 0.2, "end_percent": 0.8},
        "disabled": {"enabled": False}, "nothing to save": {"r": 0.0, "delta": 0.0},
    }  # fmt: skip
    for title, settings in changes.items():
        add(f"sd35m, merging, {title}", "sd35m", merging=settings, steps=8)
    for title, settings in {
        "batch": {"batch": 2},
        "heun": {"sampler": "heun"},
        "CFG 1": {"cfg": 1.0},
        "odd": {"size": (18, 26)},
    }.items():
        add(f"flux, merging, {title}", "flux", merging={}, steps=8, **settings)
    for name in tiny.TRANSFORMERS:
        size = {"pixart": (48, 40), "wan": (8, 12), "hunyuan_video": (8, 12)}.get(name, SIZE)
        add(f"{name}, merging", name, merging={"protect_steps": 3, "switch": 0.6}, steps=6, size=size)
    for name in ("sd3", "flux", "demo mmdit"):
        for first in (False, True):
            order = "merging first" if first else "highlight first"
            add(f"{name}, both, {order}", name, {"interval": (3,), "warmup": 2, "correct": "always", "max_area": 1.0},
                merging={"r": 0.4, **pure}, merging_first=first)  # fmt: skip
    add(
        "sd3, both, a mask and remembered detail",
        "sd3",
        MASKED | {"interval": (2,)},
        merging={},
        given=UserMasks(box()),
        steps=14,
    )
    add("sd3, both, regions by area", "sd3", {}, merging={}, positive=sampling.with_area, steps=14)
    add("sd35m, merging, SLG", "sd35m", merging=pure, patch=fuzz.NODES["SLG"], steps=6)


def control() -> None:
    """Control nets of every kind, and an image prompt."""
    for kind, net in nets.NETS.items():
        MODELS[f"for {kind}"] = net.model

        def both(made, net=net, **settings) -> tuple[list, list]:
            prompts = tiny.cond(made, 1), tiny.cond(made, 2)
            return nets.applied(net.make(made), *prompts, nets.picture(SIZE), vae=net.vae, **settings)

        add(f"{kind}, reused", f"for {kind}", MASKED, both=both, given=UserMasks(box()), steps=8)
        if kind in ("ControlNet", "SD3"):
            add(f"{kind}, computed", f"for {kind}", MASKED | {"control": "compute"}, both=both, given=UserMasks(box()), steps=8)
            add(f"{kind}, batch of 2", f"for {kind}", MASKED, both=both, given=UserMasks(box()), steps=8, batch=2)
            add(f"{kind}, ended", f"for {kind}", MASKED | {"interval": (7,)}, given=UserMasks(box()), steps=16,
                both=lambda made, both=both: both(made, end=0.4))  # fmt: skip
        if kind == "SD3":
            add(f"{kind}, merging", f"for {kind}", merging={}, both=both, steps=8)


def image_prompts() -> None:
    if not packs.place(packs.IP_ADAPTER).is_dir():
        raise SystemExit(f"{packs.IP_ADAPTER} is not at {packs.place(packs.IP_ADAPTER)}, and some runs are beside it")

    @cache
    def adapter():
        from host import test_ip_adapter as made_there

        MODELS["for IP-Adapter"] = made_there.sd15
        vision = made_there.clip_vision(made_there.VISION)
        tiny.randomise(vision.model)
        with tempfile.TemporaryDirectory() as folder:
            made_there.adapter_file(model("for IP-Adapter"), False, Path(folder) / "tiny.safetensors")
            folder_paths.add_model_folder_path("ipadapter", folder)
            weights = nodes.NODE_CLASS_MAPPINGS["IPAdapterModelLoader"]().load_ipadapter_model("tiny.safetensors")[0]
        return weights, vision

    def adapted(patcher, kind: str = "IPAdapterAdvanced", pictures: int = 1, **settings):
        weights, vision = adapter()
        return nodes.NODE_CLASS_MAPPINGS[kind]().apply_ipadapter(
            patcher, weights, image=nets.picture((28, 28), 0, batch=pictures), clip_vision=vision, weight=0.8,
            weight_type="linear", **settings,
        )[0]  # fmt: skip

    left = torch.zeros(1, 8 * SIZE[0], 8 * SIZE[1])
    left[:, :, : 4 * SIZE[1]] = 1
    chains: dict[str, tuple[Callable, dict]] = {
        "alone": (adapted, {}), "with a mask": (lambda patcher: adapted(patcher, attn_mask=left), {}),
        "for a share": (lambda patcher: adapted(patcher, start_at=0.0, end_at=0.5), {}),
        "a picture each": (lambda patcher: adapted(patcher, "IPAdapterBatch", 2), {"batch": 2}),
    }  # fmt: skip
    for title, (patch, settings) in chains.items():

        def run(patch=patch, settings=settings) -> Result:
            adapter()
            return sampled("for IP-Adapter", MASKED, given=UserMasks(box()), patch=patch, steps=10, **settings)

        RUNS[f"IP-Adapter, {title}"] = run


def without_comfyui() -> None:
    """The engine on the plain demo models."""
    both = {"merging": SDTMConfig()}
    changes: dict[str, tuple[dict, dict, int]] = {
        "corrected": ({"correct": "always"}, {}, 1), "automatic": ({}, {}, 1),
        "shallow": ({"shallow": "always", "correct": "never", "pace": 8.0}, {}, 1),
        "adaptive": ({"interval": "adaptive"}, {}, 1), "batch of 2": ({"correct": "always"}, {}, 2),
        "8 bit": ({"correct": "always", "memory": "8 bit"}, {}, 1), "merging": ({"enabled": False}, both, 1),
        "both": ({"interval": (3,)}, both, 2),
    }  # fmt: skip
    for kind in ("unet", "mmdit"):
        for title, (config, settings, batch) in changes.items():
            if kind == "unet" and settings or kind == "mmdit" and title == "shallow":
                continue

            def run(kind=kind, config=config, settings=settings, batch=batch) -> Result:
                noise = torch.randn(batch, 4, *SIZE, generator=torch.Generator().manual_seed(3))
                return plain_sample(plain(kind).of(slice(0, batch)), noise, 14, 3.0, HighlightConfig(**config), **settings)

            RUNS[f"plain {kind}, {title}"] = run


for group in (
    plans, families, masks, samplers, conditionings, others, errors, merging, control, without_comfyui, image_prompts
):  # fmt: skip
    group()


# -- the record ----------------------------------------------------------------------------------------------------------


def digest(tensor: torch.Tensor | None) -> str | None:
    """Shape, type and SHA-256 of the bytes."""
    if tensor is None:
        return None
    data = tensor.detach().cpu().contiguous()
    return f"{tuple(data.shape)} {data.dtype} {hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()}"


def record(latent: torch.Tensor | None, run: RunRecord) -> dict[str, Any]:
    """What is compared: one value for the run or a list with one for each evaluation."""
    each = (
        "kind",
        "planned",
        "reason",
        "step",
        "sigma",
        "forecast_error",
        "active",
        "boxes",
        "windows",
        "control",
        "recording",
    )
    told = {name: [getattr(e, name) for e in run.evaluations] for name in each}
    told |= {name: [digest(getattr(e, name)) for e in run.evaluations] for name in ("heatmap", "merged", "words")}
    told |= {name: getattr(run, name) for name in ("highlight_reason", "cache_bytes", "depth", "revises", "completed")}
    return json.loads(json.dumps(told | {"highlight": digest(run.highlight), "latent": digest(latent)}))


def recorded(only: str) -> Iterator[tuple[str, dict]]:
    for name, run in RUNS.items():
        if fnmatch.fnmatch(name, only):
            torch.manual_seed(0)
            try:
                yield name, record(*run())
            except Exception as error:  # told by its run, so that one that is broken hides no other
                yield name, {"error": f"{type(error).__name__}: {error}"}


def in_short(told: dict) -> str:
    if "error" in told:
        return told["error"]
    counts = {kind: told["kind"].count(kind) for kind in sorted(set(told["kind"]))}
    return f"{counts}, {sum(m is not None for m in told['merged'])} merged"


def differences(name: str, before: dict, after: dict) -> Iterator[str]:
    for what in sorted({*before, *after}):
        old, new = before.get(what), after.get(what)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for i, (one, other) in enumerate(zip(old, new, strict=True)):
                if one != other:
                    yield f"{name}: {what} of evaluation {i}: {one!r} -> {other!r}"
        else:
            yield f"{name}: {what}: {old!r} -> {new!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "compare", "list"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help='names of runs, as "sd15, *"')
    asked = parser.parse_args()
    say = lambda text: sys.stdout.write(text + "\n") and sys.stdout.flush()  # noqa: E731
    if asked.command == "list":
        say("\n".join(RUNS))
        return 0
    if asked.file is None:
        parser.error("name the file of the record")
    started = time.perf_counter()
    if asked.command == "write":
        found = {}
        for name, told in recorded(asked.only):
            found[name] = told
            say(f"{time.perf_counter() - started:6.1f} s  {name}: {in_short(told)}")
        asked.file.write_text(json.dumps(found, indent=1))
        broken = [name for name, told in found.items() if "error" in told]
        say(f"{len(found)} runs written to {asked.file}; {len(broken)} failed {broken or ''}")
        return 1 if broken else 0
    known = {name: told for name, told in json.loads(asked.file.read_text()).items() if fnmatch.fnmatch(name, asked.only)}
    found = [f"{name}: not run any more" for name in known if name not in RUNS]
    count = 0
    for name, told in recorded(asked.only):
        count += 1
        found += list(differences(name, known[name], told)) if name in known else [f"{name}: not in the record"]
    say("\n".join([*found, f"{count} runs compared, {len(found)} differences"]))
    return 1 if found or not count else 0


if __name__ == "__main__":
    sys.exit(main())
