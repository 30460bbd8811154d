"""Wan HuMo: Wan's blocks, each with a further attention, in which the tokens of a frame look at its sound."""

from dataclasses import replace

from ...engine.partial.order import Order
from . import wan
from .base import Call


def orders(network, call: Call) -> list[Order]:
    """Every frame has as many tokens of a subset, so that they find the sound of their own."""
    of_frame = Order((("other", call.grid.count // call.grid.frames),), looks_at=0)
    return [of_frame, *wan.orders(network, call)]


FAMILY = replace(wan.FAMILY, title="Wan HuMo", network=("comfy.ldm.wan.model.HumoWanModel",), orders=orders)
