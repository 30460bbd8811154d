"""Socket types and constants the nodes share."""

from comfy_api.latest import io

HighlightTrace = io.Custom("HIGHLIGHT_TRACE")
CATEGORY = "highlight diffusion"
EMPTY_TRACE = (
    "No sampling run in this trace yet: the sampler did not run, since ComfyUI kept its result, or it uses another model. "
    "Change the seed, or connect the sampler to the MODEL of the node this trace is from."
)
ADVANCED = {"advanced": True}  # as extra_dict: the keyword `advanced` came after ComfyUI 0.8


def aliases(*words: str) -> dict[str, list[str]]:
    """Other words to find a node by, where this ComfyUI's schema has them (0.8 has not)."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}
