"""What the commands print."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to the standard output at once, also where that is a file."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
