"""The MODELs that are measured: published architectures with random weights, and the demo models, in any precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...demo.load import encode_prompt, load_plain
from ...engine.config import PRESETS, HighlightConfig
from ...engine.merging.config import SDTMConfig
from ...engine.region.regions import UserMasks
from ...engine.trace import RunRecord, Trace
from ..true_shape import FLUX, SD3, SD15, SDXL, randomise, square

AREA = 0.10  # of the frame, which the highlight is given
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "fp32": (torch.float32, None), "fp16": (torch.float16, None), "bf16": (torch.bfloat16, None),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16), "fp8 matmul": (torch.float8_e4m3fn, torch.bfloat16),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A published architecture at a size.

    kind: its class in `comfy.supported_models`. config: of its network. side: of the latent. channels: of the latent. context:
    width of the prompt's tokens. pooled: of the pooled prompt, None without. cfg: 1 calls one stream. gigabytes: of its
    weights in half precision.
    """

    kind: str
    config: dict[str, Any]
    side: int
    channels: int
    context: int
    pooled: int | None = None
    cfg: float = 4.0
    gigabytes: float = 0.0


SHAPES = {
    "SD15": Shape("SD15", SD15, 64, 4, 768, gigabytes=1.7),
    "SDXL": Shape("SDXL", SDXL, 128, 4, 2048, 1280, gigabytes=5.2),
    "SD3": Shape("SD3", SD3 | {"input_size": None, "num_blocks": 24}, 128, 16, 4096, 2048, gigabytes=4.2),
    "Flux": Shape("Flux", FLUX, 128, 16, 4096, 768, cfg=1.0, gigabytes=24.0),
}
_SMALL = {"model_channels": 32, "context_dim": 64, "num_res_blocks": [1, 1, 1], "transformer_depth_middle": 1}
TINY = {
    "SD15": Shape(
        "SD15", SD15 | _SMALL | {
            "num_heads": 2, "channel_mult": [1, 2, 2], "transformer_depth": [1, 1, 0],
            "transformer_depth_output": [1, 1, 1, 1, 0, 0],
        }, 24, 4, 64,
    ),
    "SDXL": Shape(
        "SDXL", SDXL | _SMALL | {
            "num_head_channels": 16, "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1],
        }, 24, 4, 64, 1280,
    ),
    "SD3": Shape(
        "SD3", {
            "in_channels": 16, "depth": 2, "num_blocks": 3, "input_size": None, "adm_in_channels": 64,
            "pos_embed_scaling_factor": None, "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
        }, 24, 16, 64, 64,
    ),
    "Flux": Shape(
        "Flux", FLUX | {
            "axes_dim": [4, 6, 6], "num_heads": 4, "hidden_size": 64, "context_in_dim": 64, "vec_in_dim": 32, "depth": 2,
            "depth_single_blocks": 2,
        }, 24, 16, 64, 32, cfg=1.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A MODEL and what to sample it with. mask: float (1, side, side), the highlight that is given."""

    model: Any
    positive: list
    negative: list
    channels: int
    side: int
    cfg: float
    scheduler: str
    transformer: bool

    @property
    def mask(self) -> Tensor:
        y0, y1, x0, x1 = square(AREA, self.side, 2)
        mask = torch.zeros(1, self.side, self.side)
        mask[:, y0:y1, x0:x1] = 1
        return mask

    @torch.inference_mode()
    def sample(self, model: Any, steps: int) -> Tensor:
        """Latent (1, C, [1,] side, side) on the CPU in float32, by Euler, on this MODEL with nodes applied."""
        import comfy.sample

        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, self.channels, self.side, self.side))
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(
            model, noise, steps, self.cfg, "euler", self.scheduler, self.positive, self.negative, latent, disable_pbar=True,
            seed=1,
        ).float().cpu()  # fmt: skip


def _conditioning(shape: Shape, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    pooled = {} if shape.pooled is None else {"pooled_output": torch.randn(1, shape.pooled, generator=generator)}
    return [[torch.randn(1, 77, shape.context, generator=generator), pooled]]


def _fill(network: torch.nn.Module, device: torch.device) -> None:
    """Random weights; the same ones on every device where the network is small."""
    small = sum(parameter.numel() for parameter in network.parameters()) < 1e8
    randomise(network, torch.Generator("cpu" if small else device).manual_seed(0))


def published(shape: Shape, precision: str, device: torch.device) -> Subject:
    """A published architecture, weights random, in a precision of PRECISIONS, which stays on its device."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = getattr(comfy.supported_models, shape.kind)(shape.config)
    config.unet_config.update(shape.config)  # instead of what the class knows of its published size
    config.set_inference_dtype(*PRECISIONS[precision])
    config.optimizations["fp8"] = precision == "fp8 matmul"
    model = config.get_model({}, "", device=device)
    _fill(model.diffusion_model, device)
    patcher = ModelPatcher(model, load_device=device, offload_device=device)
    transformer = shape.kind not in ("SD15", "SDXL")
    return Subject(
        patcher, _conditioning(shape, 1), _conditioning(shape, 2), shape.channels, shape.side, shape.cfg,
        "simple" if transformer else "normal", transformer,
    )  # fmt: skip


@contextmanager
def _weights_in(precision: str) -> Iterator[None]:
    from comfy import cli_args

    name = f"{precision.replace('fp8', 'fp8_e4m3fn')}_unet"
    before = getattr(cli_args.args, name)
    setattr(cli_args.args, name, True)
    try:
        yield
    finally:
        setattr(cli_args.args, name, before)


def demo(kind: str, precision: str, device: torch.device, side: int = 32) -> Subject:
    """A demo model with its trained weights, "unet" or "mmdit"."""
    from ...host.demo import load_mmdit, load_unet

    with _weights_in(precision):
        model = {"unet": load_unet, "mmdit": load_mmdit}[kind]()
    model.load_device = device
    text = load_plain(kind)[1]
    positive, negative = ([[encode_prompt(text, words), {}]] for words in ("a large red circle in the middle", ""))
    return Subject(model, positive, negative, 4, side, 3.0, "simple" if kind == "mmdit" else "normal", kind == "mmdit")


Method = Callable[[Any, Trace], Any]  # the MODEL with nodes applied, whose runs go into the trace


def methods(subject: Subject) -> dict[str, Method]:
    """What may be sampled, by name: the MODEL as it is, the node in place but off, the presets with a mask of AREA, and one
    method for each kind of evaluation."""
    from ...host.attach import attach, attach_merging

    masks = UserMasks(subject.mask)

    def node(given: UserMasks | None = masks, **settings: Any) -> Method:
        return lambda model, trace: attach(model, HighlightConfig(max_area=1.0, **settings), trace, given=given)

    found = {"vanilla": lambda model, trace: model, "off": node(enabled=False)}
    found |= {name: node(**own) for name, own in PRESETS.items()}
    found["forecast"] = node(None, correct="never")
    found["partial"] = node(interval=(4,), warmup=3, correct="always")
    if subject.transformer:
        found["merged"] = lambda model, trace: attach_merging(model, SDTMConfig(), trace)
    else:
        found["shallow"] = node(None, shallow="always", correct="never", pace=8.0)
    return found


def run_of(subject: Subject, method: str, steps: int) -> tuple[Tensor, RunRecord | None]:
    """The latent that a method samples, and the record of its run; None for the MODEL as it is."""
    trace = Trace()
    latent = subject.sample(methods(subject)[method](subject.model, trace), steps)
    return latent, trace.last
