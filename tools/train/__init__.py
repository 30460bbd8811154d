"""The trainers of the bundled demo models: `python run.py train denoiser --model mmdit`, with `--help` for what each takes."""

from __future__ import annotations

import importlib
import sys

TRAINERS = ("denoiser", "turbo", "vae", "control", "image_prompt", "export")


def main() -> int:
    """Run the trainer that the first argument names."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TRAINERS:
        raise SystemExit(f'no trainer is called "{name}"; choose one of {", ".join(TRAINERS)}')
    importlib.import_module(f"{__name__}.{name}").main()
    return 0
