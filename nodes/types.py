"""Socket types and constants the nodes share."""

from comfy_api.latest import io

HighlightTrace = io.Custom("HIGHLIGHT_TRACE")
CATEGORY = "highlight diffusion"
ADVANCED = {"advanced": True}  # as extra_dict: the keyword `advanced` came after ComfyUI 0.8
