"""What was measured, kept as lines of JSON, so that a call goes on where the one before it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .setup import Row


class Records:
    """Rows of the tables and how each part ended. where: device and size; what was measured elsewhere is dropped."""

    def __init__(self, path: Path, where: str, anew: bool = False):
        self.path, self.where = path, where
        lines = path.read_text().splitlines() if path.exists() and not anew else []
        found = [json.loads(line) for line in lines]
        self._lines: list[dict[str, Any]] = [line for line in found if line["where"] == where]
        self._write()

    def _write(self) -> None:
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self._lines))

    def add(self, part: str, rows: list[str], seconds: float, failed: str) -> None:
        """Take up a part's rows, lines of JSON, and how it ended, in place of what was known of it."""
        own = [*(json.loads(line) for line in rows), {"part": part, "seconds": seconds, "failed": failed}]
        self._lines = [line for line in self._lines if line["part"] != part] + [{"where": self.where, **line} for line in own]
        self._write()

    def _end(self, part: str) -> dict[str, Any] | None:
        return next((line for line in self._lines if line["part"] == part and "failed" in line), None)

    def done(self, part: str) -> bool:
        """Whether a part ended as it should."""
        end = self._end(part)
        return end is not None and not end["failed"]

    def said(self, part: str) -> str:
        """How a part ended, in words."""
        end = self._end(part)
        return "not run" if end is None else f"{end['failed'] or 'done'}, {end['seconds']:.0f} s"

    def rows(self, table: str) -> list[Row]:
        return [line["row"] for line in self._lines if line.get("table") == table]
