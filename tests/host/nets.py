"""Tiny control nets of the real classes with random weights, for the tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.cldm.cldm
import comfy.cldm.dit_embedder
import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.qwen_image.controlnet
import comfy.model_management
import comfy.ops
import comfy.t2i_adapter.adapter
import torch

from . import tiny

OPERATIONS = comfy.ops.disable_weight_init
DEVICE = torch.device("cpu")
UNET = dict(dims=2, dtype=torch.float32, device=DEVICE, operations=OPERATIONS)


class Vae:
    """Stands for the VAE that nets on latents want: pictures become latents by averaging."""

    def __init__(self, channels: int, frames: bool = False):
        self.channels, self.frames = channels, frames

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).mean(1, keepdim=True)
        latent = latent.repeat(1, self.channels, 1, 1)
        return latent.unsqueeze(2) if self.frames else latent


@dataclass(frozen=True)
class Net:
    """A kind of control net: how it is made for a tiny model, and the VAE it wants."""

    model: Callable[[], tiny.Tiny]
    make: Callable[[tiny.Tiny], comfy.controlnet.ControlBase]
    vae: Vae | None = None


def _unet_config(model: tiny.Tiny, **changed) -> dict:
    config = {k: v for k, v in model.patcher.model.model_config.unet_config.items() if k not in ("out_channels", "dtype")}
    return {**config, "hint_channels": 3, **UNET, **changed}


def _loaded(model: torch.nn.Module, **kwargs) -> comfy.controlnet.ControlNet:
    tiny.randomise(model, seed=3)
    return comfy.controlnet.ControlNet(model, load_device=comfy.model_management.get_torch_device(), **kwargs)


def controlnet(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    return _loaded(comfy.cldm.cldm.ControlNet(**_unet_config(model)))


def union(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    """ComfyUI's class holds the true one's width, 320."""
    net = _loaded(comfy.cldm.cldm.ControlNet(**_unet_config(model, union_controlnet_num_control_type=6)))
    net.set_extra_arg("control_type", [1])
    return net


def control_lora(model: tiny.Tiny) -> comfy.controlnet.ControlLora:
    """Rank 2 differences of two layers, and all that the model lacks."""
    net = comfy.cldm.cldm.ControlNet(**_unet_config(model))
    tiny.randomise(net, seed=3)
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    weights = {name: weight for name, weight in net.state_dict().items() if name.startswith(own)}
    generator = torch.Generator().manual_seed(5)
    for name in ("input_blocks.1.0.in_layers.2", "middle_block.0.in_layers.2"):
        out, into = net.get_submodule(name).weight.flatten(1).shape
        weights[f"{name}.up"] = 0.1 * torch.randn(out, 2, 1, 1, generator=generator)
        weights[f"{name}.down"] = torch.randn(2, into, generator=generator).view(2, -1, 3, 3)
    return comfy.controlnet.ControlLora({**weights, "lora_controlnet": torch.zeros(1)})


def four_levels() -> tiny.Tiny:
    """SD1.5's twelve blocks on either side, which T2I-Adapters count on."""
    import comfy.supported_models as supported

    config = tiny.unet_config(mult=(1, 1, 1, 1), depth=(0, 0, 1, 1, 0, 0, 0, 0))
    config.update(num_res_blocks=[2] * 4, transformer_depth_output=[0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    config = supported.SD15(config)
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    return tiny.Tiny(tiny.build(config))


def t2i_adapter(model: tiny.Tiny) -> comfy.controlnet.T2IAdapter:
    adapter = comfy.t2i_adapter.adapter.Adapter(
        channels=[32] * 4, nums_rb=2, cin=192, ksize=1, sk=True, use_conv=False, xl=False
    )  # fmt: skip
    tiny.randomise(adapter, seed=3)
    return comfy.controlnet.T2IAdapter(adapter, adapter.input_channels, 8, "nearest-exact")


def sd3(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    config = {
        k: v for k, v in model.patcher.model.model_config.unet_config.items() if k not in ("num_blocks", "image_model", "dtype")
    }
    net = comfy.cldm.mmdit.ControlNet(
        num_blocks=1, control_latent_channels=16, dtype=torch.float32, device=DEVICE, operations=OPERATIONS, **config
    )
    return _loaded(net, compression_ratio=1, latent_format=comfy.latent_formats.SD3())


def sd35(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    net = comfy.cldm.dit_embedder.ControlNetEmbedder(
        img_size=None, patch_size=2, in_chans=16, num_layers=1, main_model_double=3, double_y_emb=False, attention_head_dim=64,
        num_attention_heads=2, adm_in_channels=64, device=DEVICE, dtype=torch.float32, operations=OPERATIONS,
    )  # fmt: skip
    tiny.randomise(net, seed=3)
    load_device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNetSD35(
        net, compression_ratio=1, latent_format=comfy.latent_formats.SD3(), load_device=load_device
    )


def flux(model: tiny.Tiny, latent: bool = False) -> comfy.controlnet.ControlNet:
    """XLabs' kind on pictures, or InstantX's union on latents."""
    config = {**tiny.FLUX, "depth": 1, "depth_single_blocks": 1, "txt_ids_dims": []}
    channels = {"latent_input": True, "control_latent_channels": 16, "num_union_modes": 3} if latent else {}
    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        dtype=torch.float32, device=DEVICE, operations=OPERATIONS, **channels, **config
    )
    kind = {"compression_ratio": 1, "latent_format": comfy.latent_formats.Flux()} if latent else {}
    made = _loaded(net, extra_conds=["y", "guidance"], **kind)
    if latent:
        made.set_extra_arg("control_type", [1])
    return made


def qwen_image(model: tiny.Tiny) -> comfy.controlnet.ControlNet:
    config = {k: v for k, v in model.patcher.model.model_config.unet_config.items() if k not in ("image_model", "dtype")}
    net = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(
        dtype=torch.float32, device=DEVICE, operations=OPERATIONS, **{**config, "num_layers": 1}
    )
    return _loaded(net, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), extra_conds=[])


def qwen_fun(model: tiny.Tiny) -> comfy.controlnet.QwenFunControlNet:
    net = comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel(
        control_in_features=132, inner_dim=64, num_attention_heads=4, attention_head_dim=16, num_control_blocks=2,
        main_model_double=3, injection_layers=(0, 2), dtype=torch.float32, device=DEVICE, operations=OPERATIONS,
    )  # fmt: skip
    tiny.randomise(net, seed=3)
    load_device = comfy.model_management.get_torch_device()
    return comfy.controlnet.QwenFunControlNet(
        net, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), load_device=load_device, extra_conds=[]
    )


NETS = {
    "ControlNet": Net(tiny.sd15, controlnet),
    "ControlNet SDXL": Net(tiny.sdxl, controlnet),
    "union": Net(lambda: tiny.sd15(width=320, mult=(1, 1), depth=(0, 1)), union),
    "ControlNet-LoRA": Net(tiny.sd15, control_lora),
    "T2I-Adapter": Net(four_levels, t2i_adapter),
    "SD3": Net(tiny.sd3, sd3, Vae(16)),
    "SD3.5": Net(lambda: tiny.sd3(dual=True), sd35, Vae(16)),
    "Flux": Net(tiny.flux, flux),
    "Flux union": Net(tiny.flux, lambda model: flux(model, latent=True), Vae(16)),
    "Qwen-Image": Net(tiny.qwen_image, qwen_image, Vae(16, frames=True)),
}
if hasattr(comfy.controlnet, "QwenFunControlNet"):  # not in the oldest ComfyUI
    NETS["Qwen-Image Fun"] = Net(tiny.qwen_image, qwen_fun, Vae(16, frames=True))


def on(row: str) -> str:
    """The column of the compatibility table for a row that names one of NETS."""
    return "UNets" if NETS[row].make in (controlnet, union, control_lora, t2i_adapter) else "transformers"


def picture(size: tuple[int, int], seed: int = 0, batch: int = 1) -> torch.Tensor:
    """A hint (B, H, W, 3) for a latent of this size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, size[0] // 2, size[1] // 2, generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=16).movedim(1, -1)


def applied(
    net: comfy.controlnet.ControlBase, positive: list, negative: list, image: torch.Tensor, strength: float = 1.0,
    start: float = 0.0, end: float = 1.0, vae: Vae | None = None,
) -> tuple[list, list]:  # fmt: skip
    """Both conditionings with the net applied by ComfyUI's own node."""
    from nodes import ControlNetApplyAdvanced

    return ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, image, strength, start, end, vae)
