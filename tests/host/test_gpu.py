"""`run.py gpu` on the CPU at small shapes: its processes run, and the page has their rows."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.beside


def test_parts_run_in_processes_of_their_own(pack, comfyui, tmp_path):
    command = [sys.executable, pack / "tools" / "start.py", "bench.gpu", "--device", "cpu", "--tiny", "--out", tmp_path]
    command += ["--parts", "Flux"]
    environment = os.environ | {"COMFYUI_PATH": str(comfyui), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "gpu.md").read_text()
    for method in ("vanilla", "quality", "balanced", "fast"):
        assert f"| Flux | fp32 | {method} |" in page, page
    for kind in ("dense", "dense, recording", "merged", "partial", "skipped"):
        assert f"| Flux | fp32 | {kind} |" in page, page
