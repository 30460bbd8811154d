"""The algorithms in plain torch. Imports neither ComfyUI nor the node files, so it runs and is tested anywhere."""
