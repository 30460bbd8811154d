"""The page of what was measured on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .parts import TABLES
from .records import Records
from .setup import Row

HEAD = """# On a GPU

Written by `python run.py gpu --docs`; do not edit. All weights of published architectures are random, so nothing here says how
good a picture is.
"""
TRIAL = "\n**A trial of the program on {where}: no figure here means anything.**\n"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"`{value}`" if isinstance(value, str) and value and not value.strip("DMPh.") else str(value).replace("|", "\\|")


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as markdown, with a column for every name that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(cell(row.get(name)) for name in columns)} |" for row in rows)]


def page(records: Records, parts: Sequence[str]) -> str:
    """What was measured so far, and how each of these parts ended."""
    lines = [HEAD + ("" if records.where == "cuda" else TRIAL.format(where=records.where))]
    for name, (title, about) in TABLES.items():
        if rows := records.rows(name):
            lines += [f"## {title}", "", *([about, ""] if about else []), *table(rows), ""]
    return "\n".join([*lines, "## Parts", "", *table([{"part": own, "ended": records.said(own)} for own in parts]), ""])
