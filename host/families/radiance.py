"""Chroma Radiance: Chroma's blocks on patches of pixels, which a small network of its own makes of their tokens."""

from dataclasses import replace

from . import flux

FAMILY = replace(
    flux.FAMILY,
    title="Chroma Radiance",
    network=("comfy.ldm.chroma_radiance.model.ChromaRadiance",),
    final_layer=lambda network: network.nerf_image_embedder,
    full_sequence_after=lambda network: network.single_blocks[-1:],
)
