"""Profiles of the user's own models: where they are kept, and how a model finds its own."""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher

from ..engine.profile import Profile, ProfileError, bundled, read_profile
from ..engine.time_axis import TimeAxis

log = logging.getLogger("highlight_diffusion")
HASHED, VALUES = 16, 1024  # how many vectors of a model its fingerprint is made of, and how many numbers of each


def fingerprint(model: ModelPatcher) -> str:
    """What tells a model from others, whatever its file is called: its class, and a hash over some of its norms and biases,
    which LoRAs leave as they are and finetunes do not."""
    network = model.get_model_object("diffusion_model")
    vectors = [p for _, p in sorted(network.named_parameters()) if p.ndim == 1 and p.is_floating_point() and not p.is_meta]
    chosen = vectors[:: max(1, len(vectors) // HASHED)][:HASHED]
    digest = hashlib.sha256(type(model.model).__name__.encode())
    for vector in chosen:
        digest.update(vector.detach()[:VALUES].float().cpu().numpy().tobytes())
    return f"{type(model.model).__name__.lower()}-{digest.hexdigest()[:16]}"


def folder() -> Path:
    """Where profiles are kept, in ComfyUI's user directory."""
    return Path(folder_paths.get_user_directory()) / "highlight_diffusion" / "profiles"


def path_of(model: ModelPatcher) -> Path:
    """The file of a model's profile, whether it has one or not."""
    return folder() / f"{fingerprint(model)}.safetensors"


def own_profile(model: ModelPatcher) -> Profile | None:
    """The profile that was made of this model, None where there is none. Raises ProfileError for a file that cannot be read."""
    return kept_profile(path_of(model)) if folder().exists() else None


def kept_profile(path: Path) -> Profile | None:
    """The profile of a file, None where there is none. Raises ProfileError for one that cannot be read."""
    return _read(path, path.stat().st_mtime_ns) if path.exists() else None


def begun(model: ModelPatcher, path: Path, axis: TimeAxis) -> Profile:
    """The model's profile that is kept at `path`, or one without runs. Raises ProfileError for a file that cannot be read."""
    return kept_profile(path) or Profile((), axis, type(model.model).__name__)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Profile:
    return read_profile(path)


def profile_of(model: ModelPatcher, axis: TimeAxis) -> Profile | None:
    """The model's own profile, or else the bundled one of its kind; one that cannot be read is named in the console, and so is
    a model whose weights cannot be looked at, as those of other packs' loaders."""
    try:
        own = own_profile(model)
    except (ProfileError, OSError, RuntimeError, TypeError, AttributeError) as error:
        log.warning("no profile of this model: %s; the bundled one is used", error)
        own = None
    return own if own is not None and own.axis == axis else bundled(axis)
