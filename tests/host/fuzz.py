"""Cases a user could make: node inputs, sizes, schedules and graphs, drawn by hypothesis, on tiny real models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tomesd import TomePatchModel
from highlight_diffusion.engine.trace import RunRecord
from highlight_diffusion.host.attach import KEY
from highlight_diffusion.nodes.highlight import HighlightDiffusion
from highlight_diffusion.nodes.sdtm import HighlightSDTM
from hypothesis import strategies as st

from . import tiny

FAMILIES = {
    "sd15": tiny.sd15, "sd21": tiny.sd21, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux, "lumina2": tiny.lumina2,
    "qwen_image": tiny.qwen_image, "wan": tiny.wan, "flux2": tiny.flux2, "z_image": tiny.z_image, "chroma": tiny.chroma,
    "hidream": tiny.hidream, "hunyuan_video": tiny.hunyuan_video,
}  # fmt: skip
PRECISIONS = ("bf16", "fp16", "fp8 cast to bf16", "bf16 cast to fp32")
MODELS = FAMILIES | {
    f"{name}, {precision}": partial(tiny.built_in, precision, make)
    for name, make in FAMILIES.items()
    for precision in PRECISIONS
}
UNETS = {"sd15", "sd21", "sdxl"}
SLOW = {"dpm_adaptive"}  # takes as many evaluations as it likes; it has its own row in test_sampling
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in SLOW]
NODES: dict[str, Callable[[Any], Any]] = {
    "FreeU": lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).args[0],
    "ToMe": lambda model: TomePatchModel.execute(model, 0.4).args[0],
    "HyperTile": lambda model: HyperTile.execute(model, 64, 2, 0, False)[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 3.0).args[0],
    "SAG": lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0],
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, 0.01, 0.6, "1", "1").args[0],
    "RescaleCFG": lambda model: getattr(RescaleCFG(), RescaleCFG.FUNCTION)(model, 0.7)[0],
    "CFGZeroStar": lambda model: CFGZeroStar.execute(model).args[0],
    "EasyCache": lambda model: EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0],
}


def _or_odd(usual: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly what the widgets allow, now and then anything of the type."""
    return st.integers(0, 79).flatmap(lambda n: odd if n == 41 else usual)


def _going_together(inputs: dict[str, Any]) -> dict[str, Any]:
    """A speed or a fidelity without an interval and shallow evaluations, with which it is refused (`test_config.py`)."""
    asked = inputs["speed"] or inputs["fidelity"]
    return inputs | {"interval": "auto", "shallow": "auto"} if asked else inputs


SHARES = st.floats(0.0, 1.0)
ANY_FLOAT, ANY_INT = st.floats(), st.integers(-(2**31), 2**31)
INTERVALS = st.sampled_from(["auto", "adaptive", "1", "2", "3", "7", "1,3,5,7,9", "9,7,5,3,1", " 4 ", "100"])
INPUTS = st.fixed_dictionaries({
    "enabled": st.integers(0, 9).map(bool), "preset": st.sampled_from(["quality", "balanced", "fast"]),
    "correct": st.sampled_from(["auto", "always", "always", "never"]), "shallow": st.sampled_from(["auto", "always", "never"]),
    "interval": _or_odd(INTERVALS, st.text(max_size=12)),
    "pace": _or_odd(st.sampled_from([0.0, 1.0, 2.0, 5.0, 8.0, 100.0]), ANY_FLOAT),
    "warmup": _or_odd(st.sampled_from([0, 0, 2, 3, 5, 100]), ANY_INT),
    "start_percent": _or_odd(st.sampled_from([0.0, 0.0, 0.2]), ANY_FLOAT),
    "end_percent": _or_odd(st.sampled_from([1.0, 1.0, 0.8]), ANY_FLOAT),
    "threshold": _or_odd(SHARES, ANY_FLOAT), "halo": _or_odd(st.integers(0, 8), ANY_INT),
    "levels": _or_odd(st.integers(0, 8), ANY_INT), "max_area": _or_odd(SHARES, ANY_FLOAT),
    "forecast": st.sampled_from(["auto", "auto", "noise", "denoised"]),
    "memory": st.sampled_from(["device", "device", "8 bit", "offload"]),
    "speed": _or_odd(st.sampled_from([0.0, 0.0, 0.0, 0.0, 1.5, 3.0]), ANY_FLOAT),
    "fidelity": _or_odd(st.sampled_from([0.0, 0.0, 0.0, 0.0, 25.0, 60.0]), ANY_FLOAT),
}).map(_going_together)  # fmt: skip


@st.composite
def masks(draw) -> torch.Tensor | None:
    """No mask, or one of any size: none of it, all of it, a box, or noise."""
    if draw(st.integers(0, 2)):
        return None
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    mask = torch.zeros(draw(st.integers(1, 2)), height, width)
    kind = draw(st.sampled_from(["none", "all", "box", "box", "noise"]))
    if kind == "all":
        mask.fill_(1.0)
    elif kind == "box":
        mask[:, height // 4 : height // 4 + max(1, height // 3), : max(1, width // 3)] = 1.0
    elif kind == "noise":
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    return mask


@dataclass(frozen=True)
class References:
    """Pictures that an edit model is given: their sizes, how it places them, and which of the conds have them."""

    sizes: tuple[tuple[int, int], ...]
    method: str | None
    conds: tuple[str, ...]

    def of(self, model: str, channels: int, size: tuple[int, int]) -> dict:
        """What the conditioning of a model carries of them, nothing for one that knows none."""

        def latent(*shape: int) -> torch.Tensor:
            return torch.randn(1, *shape, generator=torch.Generator().manual_seed(len(self.sizes)))

        if model in ("flux", "flux2", "chroma", "qwen_image"):
            frames = (1,) if model == "qwen_image" else ()
            named = {"reference_latents_method": self.method} if self.method else {}
            return {"reference_latents": [latent(channels, *frames, *own) for own in self.sizes], **named}
        if model in ("lumina2", "z_image"):
            even = [(2 * height, 2 * width) for height, width in self.sizes]
            texts = [latent(5 + 30 * number, 64) for number in range(len(even))]
            return {"reference_latents": [latent(channels, *own) for own in even], "reference_latents_text_embeds": texts}
        if model == "wan":
            more = {"time_dim_concat": latent(channels, 2, *size)} if self.method == "offset" else {}
            return {"context_latents": [latent(channels, 1, *own) for own in self.sizes], **more}
        if model == "hunyuan_video":
            return {"ref_latent": latent(channels, 1, *size)}
        return {"concat_latent_image": latent(channels, *size)} if model == "hidream" else {}


METHODS = [None, "index", "offset", "uxo", "index_timestep_zero", "negative_index"]


@st.composite
def references(draw) -> References | None:
    if draw(st.integers(0, 2)):
        return None
    sides = st.integers(1, 12)
    conds = st.sampled_from([("positive", "negative"), ("positive",), ("negative",)])
    return References(
        tuple(draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))), draw(st.sampled_from(METHODS)), draw(conds)
    )


@dataclass(frozen=True)
class Case:
    """One graph and how it is sampled."""

    model: str
    inputs: dict
    before: tuple[str, ...]
    after: tuple[str, ...]
    positive: str
    tokens: int
    sampling: dict
    masks: dict = field(repr=False)
    references: References | None
    merging: bool  # by SDTM, where the model is a transformer
    resize: tuple[float, int, str] | None  # of SamplerLCMUpscale, in place of the sampler
    spoilt: tuple[int, float] | None  # an evaluation, and the value in the network's output there

    @property
    def family(self) -> str:
        """The model's name without its precision."""
        return self.model.split(",")[0]

    def graph(self, model: Any, ours: bool) -> Any:
        """The MODEL as its chain of nodes leaves it, with or without our node in it."""
        for name in self.before:
            model = NODES[name](model)
        if ours:
            model, _ = HighlightDiffusion.execute(model=model, **self.inputs, **self.masks).result
            if self.merging and self.family not in UNETS:
                model = HighlightSDTM.execute(model=model, **MERGING).result[0]
        for name in self.after:
            model = NODES[name](model)
        return model

    def sample(self, model: tiny.Tiny, ours: bool) -> torch.Tensor:
        """The latent that the graph makes."""
        patcher, conds, told = self.graph(model.patcher, ours), self.conditioning(model), dict(self.sampling)
        if self.resize is None:
            return tiny.sample(model, patcher, **conds, **told)
        latent = torch.zeros(told["batch"], model.channels, *([] if model.frames is None else [model.frames]), *told["size"])
        sampling, sampler = patcher.get_model_object("model_sampling"), SamplerLCMUpscale.execute(*self.resize).args[0]
        noise = comfy.sample.prepare_noise(latent, 1)
        sigmas = comfy.samplers.calculate_sigmas(sampling, told["scheduler"], told["steps"])
        torch.manual_seed(1)  # of the noise that this sampler adds
        return comfy.sample.sample_custom(
            patcher, noise, told["cfg"], sampler, sigmas, conds["positive"], conds["negative"], latent, disable_pbar=True,
            seed=1,
        )  # fmt: skip

    @contextmanager
    def spoiling(self, model: tiny.Tiny) -> Iterator[list[RunRecord]]:
        """While this holds, one evaluation of a run with our node is not finite; yields the run, once that was so."""
        runs: list[RunRecord] = []

        def spoil(network, args, kwargs, output):
            run = kwargs["transformer_options"].get(KEY)
            if run is not None and run.record.evaluations and run.record.evaluations[-1].index == self.spoilt[0]:
                runs[:] = [run.record]
                return torch.full_like(output, self.spoilt[1])

        hook = model.patcher.model.diffusion_model.register_forward_hook(spoil, with_kwargs=True) if self.spoilt else None
        try:
            yield runs
        finally:
            if hook is not None:
                hook.remove()

    def conditioning(self, model: tiny.Tiny) -> dict[str, list]:
        """The positive and the negative, with what references they have."""
        both = {"positive": self.prompts(model), "negative": tiny.cond(model, 2)}
        if self.references is not None:
            for name in self.references.conds:
                for _, carried in both[name]:
                    carried.update(self.references.of(self.family, model.channels, self.sampling["size"]))
        return both

    def prompts(self, model: tiny.Tiny) -> list:
        height, width = self.sampling["size"]
        first, second = tiny.cond(model, 1, self.tokens), tiny.cond(model, 3)
        if self.positive == "area":
            second[0][1].update(area=(max(1, height // 2), max(1, width // 2), 0, 0), strength=1.0)
        elif self.positive == "mask":
            second[0][1].update(mask=torch.ones(1, height, width), mask_strength=0.7)
        elif self.positive == "range":
            first[0][1].update(start_percent=0.0, end_percent=0.4)
            second[0][1].update(start_percent=0.4, end_percent=1.0)
        return first if self.positive == "one" else first + second


RESIZES = st.tuples(
    st.sampled_from([1.0, 1.5, 2.0, 0.5]), st.sampled_from([-1, 1, 3]), st.sampled_from(SamplerLCMUpscale.UPSCALE_METHODS)
)
MERGING = {"enabled": True, "preset": "fast", "protect_blocks": ""}


def rarely(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Once in eight cases, else None."""
    return st.integers(0, 7).flatmap(lambda n: strategy if n == 5 else st.none())


@st.composite
def cases(draw) -> Case:
    chain = st.lists(st.sampled_from(sorted(NODES)), max_size=2, unique=True).map(tuple)
    sides = st.one_of(st.sampled_from([8, 16, 24]), st.integers(1, 24))
    sampling = {
        "size": (draw(sides), draw(sides)), "batch": draw(st.sampled_from([1, 1, 2, 3])), "steps": draw(st.integers(1, 14)),
        "cfg": draw(st.sampled_from([4.0, 4.0, 1.0, 0.0])), "sampler": draw(st.sampled_from(SAMPLERS)),
        "scheduler": draw(st.sampled_from(comfy.samplers.KSampler.SCHEDULERS)),
        "denoise": draw(st.sampled_from([1.0, 1.0, 0.5])),
    }  # fmt: skip
    precision = draw(st.sampled_from([""] * len(PRECISIONS) + [f", {name}" for name in PRECISIONS]))
    few = st.integers(0, 3).flatmap(lambda n: chain if n == 0 else st.just(()))
    return Case(
        draw(st.sampled_from(sorted(FAMILIES))) + precision, draw(INPUTS), draw(few), draw(few),
        draw(st.sampled_from(["one", "one", "two", "area", "mask", "range"])), draw(st.sampled_from([77, 77, 1, 40, 154])),
        sampling, {"mask": draw(masks()), "protect": draw(masks())}, draw(references()), draw(st.booleans()),
        draw(rarely(RESIZES)),
        draw(rarely(st.tuples(st.integers(0, 10), st.sampled_from([float("nan"), float("inf"), -float("inf")])))),
    )  # fmt: skip
