"""Everything that only a GPU can say, in under 20 minutes: `python run.py gpu`. It writes `out/gpu.md`.

The tests on the GPU, correctness in every precision, seconds and memory of published architectures with random weights, what
each kind of evaluation costs, transfers and synchronisations, and torch.compile. The parts run in order of value, each in a
process of its own; what was measured is kept in `out/gpu.jsonl`, so that the next call goes on with what is left.
`--device cpu --tiny` tries the program without a GPU, at small shapes, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ...tools.comfy import find_core
from ...tools.console import say
from ...tools.server import PACK
from .page import page
from .parts import PARTS, TRIAL
from .records import Records
from .setup import Setup

LEAST = 20  # seconds that are left when a part still starts
NO_GPU = "there is no CUDA device here; --device cpu --tiny tries the program on the CPU"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes and few steps: tries the program")
    parser.add_argument("--budget", type=float, default=1200, help="seconds; what does not fit is left to the next call")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="those to run, in this order; all of them")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--out", type=Path, default=PACK / "out", help="folder of gpu.jsonl and gpu.md")
    parser.add_argument("--docs", action="store_true", help="write docs/gpu.md too")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # which this process is to run, in a budget of its own
    return parser


def run_part(name: str, setup: Setup) -> int:
    """Run a part in this process; every row is a line of JSON on the standard output."""
    find_core()
    from comfy import cli_args

    cli_args.args.use_pytorch_cross_attention |= setup.device.type == "cpu"  # as ComfyUI chooses it on a GPU
    with torch.no_grad():
        for table, row in PARTS[name].run(setup):
            say(json.dumps({"part": name, "table": table, "row": row}))
    return 0


def start_part(name: str, args: argparse.Namespace, records: Records, seconds: float) -> None:
    """Run a part in a process of its own and take up its rows; after so many seconds it and all that it started is stopped."""
    program = [sys.executable, str(PACK / "tools" / "start.py"), "bench.gpu", "--part", name, "--device", args.device]
    program += ["--budget", str(seconds), *(["--tiny"] if args.tiny else [])]
    started, log = time.monotonic(), args.out / "gpu.log"
    with log.open("w") as errors, (args.out / "gpu.rows").open("w+") as printed:
        process = subprocess.Popen(program, stdout=printed, stderr=errors, start_new_session=True)
        try:
            failed = "failed" if process.wait(seconds) else ""
        except subprocess.TimeoutExpired:
            failed = f"stopped after {seconds:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        rows = [line for line in printed if line.startswith('{"part"')]
    said = log.read_text().strip().splitlines()
    if failed == "failed" and said:
        failed = f"failed: {said[-1]}"
    records.add(name, rows, time.monotonic() - started, failed)


def run_parts(args: argparse.Namespace, parts: Sequence[str], records: Records) -> None:
    """Run the parts that are not done yet, while there is time, and write the page after each."""
    end = time.monotonic() + args.budget
    for name in parts:
        left = end - time.monotonic()
        if records.done(name):
            continue
        if left < LEAST:
            say(f"{name}: left to the next call")
            continue
        start_part(name, args, records, min(left, PARTS[name].limit))
        say(f"{name}: {records.said(name)}")
        text = page(records, parts)
        for path in [args.out / "gpu.md", *([PACK / "docs" / "gpu.md"] if args.docs else [])]:
            path.write_text(text)


def main() -> int:
    args = _parser().parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        say(NO_GPU)
        return 2
    if args.part:
        return run_part(args.part, Setup(torch.device(args.device), args.tiny, args.budget))
    parts = args.parts or (TRIAL if args.tiny else tuple(PARTS))
    args.out.mkdir(parents=True, exist_ok=True)
    records = Records(args.out / "gpu.jsonl", f"{args.device}{' tiny' if args.tiny else ''}", anew=args.again)
    run_parts(args, parts, records)
    say(page(records, parts))
    return 0 if all(map(records.done, parts)) else 1
