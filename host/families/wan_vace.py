"""Wan VACE: Wan's blocks, and beside them blocks on the tokens of what controls the video, whose results are added."""

from dataclasses import replace

from ...engine.partial.order import Order
from ...engine.partial.token_gather import Gather
from . import wan
from .base import Call


def gather_inputs(block, args, kwargs, gather: Gather):
    """The control's tokens come whole into their first block, and the video's into each of theirs."""
    if "x" not in kwargs:
        return wan.gather_inputs(block, args, kwargs, gather)
    args[0], kwargs["x"] = gather.image(args[0]), gather.image(kwargs["x"])
    kwargs["freqs"] = gather.positions(kwargs["freqs"], 1)
    return args, kwargs


def orders(network, call: Call) -> list[Order]:
    """Several controls at once run through the same blocks one after the other, of which only one could be recorded."""
    return wan.orders(network, call) if call.given["vace_context"].shape[1] == 1 else []


FAMILY = replace(
    wan.FAMILY,
    title="Wan VACE",
    network=("comfy.ldm.wan.model.VaceWanModel",),
    blocks=lambda network: (*network.blocks, *network.vace_blocks),
    gather_inputs=gather_inputs,
    orders=orders,
)
