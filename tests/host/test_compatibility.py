"""The compatibility table is what the tests of this session saw."""

import comfyui_version
import compatibility
import pytest


def test_the_compatibility_table_says_what_happened(request):
    """Of a whole session; of a part of it only the rows that were run are looked at."""
    table = request.config.stash[compatibility.KEY]
    if not table.rows:
        pytest.skip("no row of the compatibility table was run in this session")
    not_run = {row: why for row, why in table.missing.items() if not why.startswith("skipped")}
    assert not not_run, f"rows that were not run: {not_run}"
    written, text = compatibility.TABLE.read_text(), table.text()
    if f"on ComfyUI {comfyui_version.__version__};" not in written:
        return  # another version has other samplers and may say something else
    stale = [line for line in text.splitlines() if line.startswith("| ") and line not in written.splitlines()]
    assert not stale, f"out of date (python run.py compatibility): {stale}"
    if table.whole and not table.missing:
        assert written == text, "it has rows that no test runs (python run.py compatibility)"
