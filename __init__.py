"""Highlight Diffusion for ComfyUI: compute where the prompt looks, forecast the rest."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """ComfyUI's entry point; imported late so that tools may import this file without ComfyUI."""
    from .nodes import HighlightExtension

    return HighlightExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
