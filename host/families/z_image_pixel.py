"""Z-Image in pixel space: its blocks on patches of pixels, which a small network of its own makes of their tokens."""

from dataclasses import replace

from . import lumina

FAMILY = replace(
    lumina.FAMILY,
    title="Z-Image in pixel space",
    network=("comfy.ldm.lumina.model.NextDiTPixelSpace",),
    final_layer=lambda network: network.dec_net,
    full_sequence_after=lambda network: (*network.noise_refiner[-1:], *network.layers[-1:]),
)
