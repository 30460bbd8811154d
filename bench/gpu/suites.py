"""The tests on a GPU, beside the same tests on the CPU: what fails on the GPU alone is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...tools.server import PACK
from .setup import Rows, Setup

OUTCOME = re.compile(r"^(tests/\S+?\.py)::(.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py)::(.+?) - (.*)$", re.MULTILINE)
MARGIN = 15.0  # seconds in which a part starts and its rows are made
SHOWN = 6  # tests of a file that are named


@dataclass
class Session:
    """A session of pytest that runs on one device in one precision, and what it prints."""

    process: subprocess.Popen
    printed: IO[str]

    @classmethod
    def start(cls, arguments: Sequence[str], device: str, precision: str) -> Session:
        environment = os.environ | {"HIGHLIGHT_DEVICE": device, "HIGHLIGHT_PRECISION": precision, "OMP_NUM_THREADS": "1"}
        printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the session has ended
        command = [sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=no", "-p", "no:cacheprovider", *arguments]
        return cls(subprocess.Popen(command, cwd=PACK, env=environment, stdout=printed, stderr=subprocess.STDOUT), printed)

    def outcomes(self, seconds: float) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
        """(file, test) -> outcome, of those that ended within so many seconds; and -> why, of those that failed."""
        try:
            self.process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.printed.seek(0)
        text = self.printed.read()
        return ({(file, name): own for file, name, own in OUTCOME.findall(text)},
                {(file, name): why for file, name, why in REASON.findall(text)})  # fmt: skip


def suite(setup: Setup, arguments: Sequence[str], precisions: Iterable[str]) -> Rows:
    """A row for every file and precision. All sessions run at once; one that does not end in time is stopped, and what it did
    until then counts."""
    end = time.monotonic() + setup.seconds - MARGIN
    devices = dict.fromkeys((setup.device.type, "cpu"))
    started = {own: [Session.start(arguments, device, own) for device in devices] for own in precisions}
    for precision, sessions in started.items():
        (found, reasons), *others = (session.outcomes(end - time.monotonic()) for session in sessions)
        known = others[0][0] if others else {}
        for file in sorted({file for file, _ in found}):
            own = {name: outcome for (of, name), outcome in found.items() if of == file}
            failed = [name for name, outcome in own.items() if outcome in ("FAILED", "ERROR")]
            alone = [name for name in failed if known.get((file, name)) == "PASSED"]
            yield {
                "file": Path(file).relative_to("tests").as_posix(), "precision": precision,
                "passed": sum(outcome == "PASSED" for outcome in own.values()), "failed": len(failed),
                "of those not on the CPU": len(alone) if others else None,
                "which": "; ".join(f"{name}: {reasons.get((file, name), '')[:90]}" for name in alone[:SHOWN]) or None,
            }  # fmt: skip
        if not found:
            sessions[0].printed.seek(0)
            yield {"file": " ".join(arguments), "precision": precision, "which": sessions[0].printed.read()[-300:]}
