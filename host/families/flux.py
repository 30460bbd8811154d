"""Flux: blocks with text and image apart, then blocks on [text, image]; rotary positions run beside them."""

from .base import Family, Pick


def _enter(block, args, kwargs, pick: Pick):
    if "img" in kwargs:
        before = kwargs["txt"].shape[1]
        kwargs["img"] = pick.image(kwargs["img"])
    else:
        before = kwargs["pe"].shape[2] - pick.count
        args = [pick.joint(args[0], 1, before), *args[1:]]
    kwargs["pe"] = pick.joint(kwargs["pe"], 2, before)
    return args, kwargs


FAMILY = Family(
    title="Flux", network=("Flux",), blocks=lambda network: (*network.double_blocks, *network.single_blocks),
    enter=_enter, leave=lambda network: network.final_layer,
)  # fmt: skip
