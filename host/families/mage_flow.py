"""MageFlow: Qwen-Image's blocks, with patches of one cell."""

from dataclasses import replace

from . import qwen_image

FAMILY = replace(qwen_image.FAMILY, title="MageFlow", network=("comfy.ldm.mage_flow.model.MageFlowTransformer2DModel",))
