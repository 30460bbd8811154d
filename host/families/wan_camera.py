"""Wan Camera: Wan's blocks; the camera's path is added to the tokens at the input."""

from dataclasses import replace

from . import wan

FAMILY = replace(wan.FAMILY, title="Wan Camera", network=("comfy.ldm.wan.model.CameraWanModel",))
