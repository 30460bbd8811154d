"""What is measured, in order of value: each part runs in a process of its own and gives rows to the tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .measure import compiled, correct, machine, sampled
from .setup import Row, Setup
from .suites import suite
from .waits import waits

TABLES = {
    "machine": ("Machine", ""),
    "tests": (
        "Tests",
        "Each file on this device and on the CPU, with the tests' own tensors in that precision. Many tests compare to the "
        "precision of float32, so a failure on both says nothing; those on this device alone are named.",
    ),
    "correct": (
        "Correctness",
        "Small models. *Off is off*: with the node in place and disabled, the latent is that without it, bit for bit. Then how "
        "far each latent is off the same method's on the CPU in float32, in percent of its norm; vanilla's is what the "
        "precision itself costs. Letters: D dense, M merged tokens, P partial, h shallow, a dot skipped.",
    ),
    "seconds": (
        "Seconds of sampling",
        "True architectures, Euler, 20 steps, a mask of 10% of the frame as the highlight. Medians of runs in turn. Peak is "
        "what PyTorch held at most on the GPU, weights included.",
    ),
    "kinds": ("Seconds of each kind of evaluation", "On the device's own clock, from the traces."),
    "waits": (
        "Transfers and synchronisations",
        "In one run. Waits are CUDA's own warnings of synchronising operations (on a CPU: operations that would be such on a "
        "GPU), copies and blocking calls what the profiler saw. The law is at most one copy an evaluation.",
    ),
    "compiled": (
        "Beside torch.compile",
        "Core's TorchCompileModel on the whole network. *first* has the compilation in it; times faster is than vanilla, not "
        "compiled.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the measurement. run: its rows, each with the table that it belongs to. limit: seconds it may take."""

    run: Callable[[Setup], Iterator[tuple[str, Row]]]
    limit: float


def _of(table: str, limit: float, rows: Callable[[Setup], Iterator[Row]]) -> Part:
    return Part(lambda setup: ((table, row) for row in rows(setup)), limit)


def _tests(limit: float, trial: str, *chosen: str) -> Part:
    """Tests in every precision. trial: what of them a trial of the program runs."""
    return _of("tests", limit, lambda setup: suite(setup, (trial,) if setup.tiny else chosen, ("fp32", *setup.halves)))


def _speed(family: str, limit: float, *precisions: str) -> Part:
    return Part(lambda setup: sampled(setup, family, ("fp32",) if setup.tiny else precisions), limit)


def _compiled(family: str, limit: float, precision: str) -> Part:
    return _of("compiled", limit, lambda setup: compiled(setup, family, "fp32" if setup.tiny else precision))


def _correct(setup: Setup) -> Iterator[Row]:
    return correct(setup, ("SD3",) if setup.tiny else (*setup.shapes, "unet", "mmdit"))


def _waits(setup: Setup) -> Iterator[Row]:
    return waits(setup, ("SD15",) if setup.tiny else ("SD15", "SD3"), "fp32" if setup.tiny else "bf16")


HOST = [f"tests/host/test_{name}.py" for name in ("precision", "laws", "families", "sdtm")]
LAWS = "off_is_off or all_is_all or partial or shallow or merged or errors or second_run"
PARTS = {
    "machine": _of("machine", 60, machine),
    "unit": _tests(150, "tests/unit/test_forecast.py", "tests/unit"),
    "demo": _tests(180, "tests/demo/test_plain_flow.py", "tests/demo"),
    "correct": _of("correct", 180, _correct),
    "host": _tests(240, "tests/host/test_laws.py::test_off_is_off", *HOST, "-k", LAWS),
    "SD15": _speed("SD15", 120, "fp16", "bf16"),
    "SDXL": _speed("SDXL", 150, "fp16", "fp8"),
    "waits": _of("waits", 120, _waits),
    "SD3": _speed("SD3", 150, "bf16", "fp16"),
    "Flux": _speed("Flux", 240, "bf16", "fp8", "fp8 matmul"),
    "compiledSD15": _compiled("SD15", 120, "fp16"),
    "compiledSDXL": _compiled("SDXL", 180, "fp16"),
    "compiledFlux": _compiled("Flux", 240, "bf16"),
}
TRIAL = ("machine", "unit", "correct", "SD15", "waits", "Flux", "compiledFlux")  # what a trial of the program runs
