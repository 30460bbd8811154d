"""Published accelerators that ComfyUI does not ship, each from its paper's description, for comparison only.

Every file has one function that takes a MODEL and returns a clone with the method attached.
"""
