"""The compatibility table: what happened in the tests, row by row. A pytest plugin, loaded by tests/conftest.py.

A test marked `@pytest.mark.compatibility(group, row)`, with another of KINDS as `on=` or a function that tells it from the
row's name, hands the traces of its runs to the fixture `observe`; `{name}` in a row is filled in from the test's parameters.
At the end of a session the rows are compared with docs/compatibility.md, or written there with `--write-compatibility`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
TABLE = TESTS.parent / "docs" / "compatibility.md"
GROUPS = (
    "Models", "Samplers", "Schedules", "Conditioning", "Guidance", "Latents", "Control nets", "Image prompts",
    "Nodes that change the model", "Other packs", "Precision", "The host",
)  # fmt: skip
WITH_PARTS, FORECAST, MERGED, DENSE = "forecast, highlight computed", "forecast", "merged", "dense"
HEAD = """# Compatibility

Written by the tests from the traces of their runs on ComfyUI {version}; do not edit ({command} writes it).
A test fails when a row was not run or says something else. UNets and transformers are those with Highlight Diffusion; SDTM
is a transformer with SDTM Token Merging. A dash is a row that has no test, since it has no such thing or shares its code.

- **forecast, highlight computed**: some evaluations are skipped and forecast, and the highlight is computed in some, where
  `correct` asks for it.
- **forecast**: some evaluations are skipped and forecast, none is computed in part; the trace gives the reason.
- **merged**: image tokens are computed together; with "forecast" before it, beside Highlight Diffusion.
- **dense**: nothing is saved, the picture is that without the node; the trace gives the reason.

In each of these the second run equals the first, and a run on a MODEL that was not used before.
"""
COMMAND = "`python run.py compatibility`"
KINDS = ("UNets", "transformers", "SDTM")
Row = tuple[str, str, str]  # group, name, kind of model


class Table:
    """Outcomes of a session: row -> outcome -> how often."""

    def __init__(self) -> None:
        self.rows: dict[Row, Counter] = {}
        self.missing: dict[Row, str] = {}  # rows whose tests did not pass, with what became of them
        self.left_out = 0  # rows whose tests were not chosen
        self.whole = False

    def add(self, row: Row, outcome: str) -> None:
        self.rows.setdefault(row, Counter())[outcome] += 1

    def text(self) -> str:
        import comfyui_version  # whose folder is on the path by now, if there is one

        parts = [HEAD.format(command=COMMAND, version=comfyui_version.__version__)]
        for group in GROUPS:
            names = sorted({name for of, name, _ in self.rows if of == group}, key=str.lower)
            if names:
                parts += [f"\n## {group}\n", f"| with | {' | '.join(KINDS)} |", "|---" * (1 + len(KINDS)) + "|"]
                cells = {name: [_said(self.rows.get((group, name, kind))) for kind in KINDS] for name in names}
                parts += [f"| {name} | {' | '.join(said)} |" for name, said in cells.items()]
        return "\n".join(parts) + "\n"


def _said(outcomes: Counter | None) -> str:
    if outcomes is None:
        return "-"
    if len(outcomes) == 1:
        return next(iter(outcomes))
    total = outcomes.total()
    return "; ".join(f"{outcome} ({times} of {total})" for outcome, times in sorted(outcomes.items()))


def outcome_of(evaluations: list[tuple[str, str]], merged: bool = False) -> str:
    """What a run came to, from the kind and the reason of its evaluations."""
    kinds = Counter(kind for kind, _ in evaluations)
    if merged:
        return f"{FORECAST}, {MERGED}" if kinds["skipped"] else MERGED
    if kinds["partial"]:
        return WITH_PARTS
    why = [reason.removeprefix("forecast only: ") for kind, reason in evaluations if reason.startswith("forecast only: ")]
    if kinds["skipped"] or kinds["shallow"]:
        return f"{FORECAST}: {Counter(why).most_common(1)[0][0]}" if why else FORECAST
    return f"{DENSE}: {Counter(reason for _, reason in evaluations).most_common(1)[0][0]}"


def rows_of(item: pytest.Item) -> list[Row]:
    """The rows a test stands for, its parameters filled in."""
    values = getattr(getattr(item, "callspec", None), "params", {})
    found = []
    for mark in item.iter_markers("compatibility"):
        group, row = mark.args
        if group not in GROUPS:
            raise pytest.UsageError(f"{item.nodeid}: the table has no group {group}; it has {', '.join(GROUPS)}")
        if item.get_closest_marker("beside"):
            raise pytest.UsageError(
                f"{item.nodeid} has a row of the table and is marked beside, where the table is not compared"
            )
        row, on = row.format(**values), mark.kwargs.get("on", KINDS[0])
        found.append((group, row, on(row) if callable(on) else on))
    return found


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Hand over what happened: a Run, or a run's dictionary from the preview's `highlight_runs`."""

    def taken(what: Any) -> None:
        if isinstance(what, dict):
            outcome = outcome_of([(e["kind"], e["reason"]) for e in what["evaluations"]])
        else:
            merged = any(e.merged is not None for e in what.evaluations)
            outcome = outcome_of([(e.kind, e.reason) for e in what.evaluations], merged)
        request.node.stash.setdefault(OUTCOMES, []).append(outcome)

    return taken


OUTCOMES = pytest.StashKey[list[str]]()
KEY = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md from this session")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEY] = Table()
    config.addinivalue_line("markers", "compatibility(group, row, on): a row of docs/compatibility.md that this test runs")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put other people's packs at the end, since some patch ComfyUI when they are imported, and the comparison behind them.

    Notes whether this session has all rows."""
    last = ("test_packs", "test_compatibility")
    items.sort(key=lambda item: last.index(item.path.stem) if item.path.stem in last else -1)
    table = config.stash[KEY]
    folders = [Path(arg).resolve() for arg in config.args if Path(arg).is_dir()]
    table.whole = not table.left_out and any((TESTS / "host").is_relative_to(folder) for folder in folders)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the rows that -k, -m and the like leave out."""
    for item in items:
        item.config.stash[KEY].left_out += len(rows_of(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, if every row was run."""
    table = session.config.stash[KEY]
    if session.config.getoption("--write-compatibility"):
        if not table.whole or table.missing:
            raise pytest.UsageError(f"not written: {table.missing or 'not all rows were asked for'}")
        TABLE.write_text(table.text())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    table, outcomes = item.config.stash[KEY], item.stash.get(OUTCOMES, [])
    for row in rows_of(item):
        if report.outcome != "passed":
            table.missing[row] = f"{report.outcome}: {item.nodeid}"
        elif report.when == "call" and not outcomes:
            table.missing[row] = f"nothing was observed by {item.nodeid}"
        elif report.when == "call":
            for outcome in outcomes:
                table.add(row, outcome)
    return report
