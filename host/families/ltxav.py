"""LTX-2: LTX-Video's blocks, with sound beside the video: each looks at the other in every block."""

from dataclasses import replace

from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from . import ltxv
from .base import Call


def gather_inputs(block, args, kwargs, gather: Gather):
    kwargs["v_pe"] = ltxv.gathered(kwargs["v_pe"], gather)
    return args, kwargs


def orders(network, call: Call) -> list[Order]:
    """The sound's tokens look at themselves, at the text and at the video."""
    video = ltxv.orders(network, call)
    shapes, reference = call.given.get("latent_shapes") or (), call.given.get("ref_audio")
    sound = (shapes[1][2] if len(shapes) > 1 else 0) + (reference["tokens"].shape[1] if reference else 0)
    return [Order((("other", sound),), looks_at=0), *video] if sound and video else video


FAMILY = replace(
    ltxv.FAMILY,
    title="LTX-2",
    network=("comfy.ldm.lightricks.av_model.LTXAVModel",),
    gather_inputs=gather_inputs,
    orders=orders,
    no_regions="the sound looks at the whole video in every block",
)
