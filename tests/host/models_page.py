"""The tables of docs/models.md that the tests write: what is saved on each class, and how much of what is used that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import comfyui_version
from highlight_diffusion.engine.trace import RunRecord

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
CLASSES, USE = "classes", "use"  # the tables, each between two comments
COMMAND = "`python run.py test tests/host/test_any_model.py --update-models`"

# Families by the use of ComfyUI's own templates on local machines, in percent (package comfyui-workflow-templates 0.11.19,
# newest template 2026-07-28), and the classes that they are of. The rest, 5.6 percent, is of families that are not named there.
USED: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("Z-Image", 31.8, ("ZImage",)), ("Krea 2", 12.0, ("Krea2",)), ("Wan 2.2", 11.8, ("WAN21_T2V", "WAN21_I2V", "WAN22_T2V")),
    ("LTX-2.3, LTX-2.5", 8.9, ("LTXAV",)), ("Flux.2", 5.3, ("Flux2",)), ("Qwen-Image", 5.2, ("QwenImage",)),
    ("Wan 2.1", 4.8, ("WAN21_T2V", "WAN21_I2V", "WAN21_Vace", "WAN21_SCAIL2")), ("Anima", 3.8, ("Anima",)),
    ("Flux.1", 2.2, ("Flux",)), ("Boogu", 1.4, ("Boogu",)), ("LTX-2", 1.2, ("LTXAV",)), ("FireRed-Edit", 1.2, ("QwenImage",)),
    ("Ideogram 4", 1.2, ("Ideogram4",)), ("SD1.5", 0.8, ("SD15",)), ("SDXL", 0.7, ("SDXL",)),
    ("HiDream-O1", 0.6, ("HiDreamO1",)), ("HunyuanVideo 1.5", 0.6, ("HunyuanVideo15",)), ("Lumina 2", 0.5, ("Lumina2",)),
    ("ERNIE-Image", 0.4, ("ErnieImage",)),
)  # fmt: skip


def merges(run: RunRecord) -> bool:
    """Whether tokens were merged in a run."""
    return any(e.merged is not None for e in run.evaluations)


def saved_on(name: str, family: str, run: RunRecord, merging: RunRecord, why: Mapping[str, str]) -> str:
    """The row of a class, by what happened in its run, and in one with merging. why: what a class lacks more for."""
    saved = [
        *(["time"] if run.count("skipped") else []), *(["part"] if run.count("partial") else []),
        *(["merged"] if merges(merging) else []),
    ]  # fmt: skip
    return f"| {name} | {family or '-'} | {', '.join(saved)} | {why.get(name, '')} |"


def rows(table: str) -> list[str]:
    """The rows of a table as they stand in the page."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {table} -->\n")
    return [line for line in rest.partition(f"<!-- end of {table} -->")[0].splitlines() if line.startswith("|")][2:]


def write(table: str, lines: Sequence[str]) -> None:
    """Put other rows into a table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"<!-- {table} -->\n")
    head, _, after = rest.partition(f"<!-- end of {table} -->")
    kept = [line for line in head.splitlines() if line.startswith("|")][:2]
    PAGE.write_text(f"{before}<!-- {table} -->\n" + "\n".join([*kept, *lines]) + f"\n<!-- end of {table} -->{after}")


def check_row(row: str, update: bool) -> None:
    """The row of a class has to stand in the page; with `update` it is written there."""
    if f"in ComfyUI {comfyui_version.__version__}," not in PAGE.read_text(encoding="utf-8"):
        return  # another version may say something else
    name = row.split("|")[1]
    others = [line for line in rows(CLASSES) if line.split("|")[1] != name]
    if update:
        write(CLASSES, sorted([*others, row], key=str.lower))
    assert row in rows(CLASSES), f"docs/models.md says something else of this class; {COMMAND} writes it"


def use_rows() -> tuple[list[str], float]:
    """The rows of what is used, by those of the classes, and the share on which parts are computed or tokens merged."""
    saved = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in rows(CLASSES)}
    lines, more = [], 0.0
    for family, share, classes in USED:
        of_all = [own for own in ("time", "part", "merged") if all(own in saved[name].split(", ") for name in classes)]
        more += share if len(of_all) > 1 else 0.0
        lines.append(f"| {family} | {share:.1f}% | {', '.join(of_all)} |")
    lines.append(f"| all of these | {sum(share for _, share, _ in USED):.1f}% | part or merged on {more:.1f}% |")
    return lines, more
