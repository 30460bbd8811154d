"""Correctness, seconds, memory and compilation: each a generator of a table's rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...engine.trace import RunRecord
from ..timing import timed
from .models import TINY, Subject, demo, methods, published, run_of
from .setup import Row, Rows, Setup

SAMPLED = ("vanilla", "quality", "balanced", "fast")
KINDS_FROM = ("off", "forecast", "partial", "shallow", "merged")
ORDER = ("dense", "dense, recording", "merged", "partial", "shallow", "skipped")


def machine(setup: Setup) -> Rows:
    """What it was measured on."""
    import comfyui_version
    from comfy.ldm.modules import attention

    yield {"what": "torch", "is": torch.__version__}
    yield {"what": "ComfyUI", "is": comfyui_version.__version__}
    yield {"what": "ComfyUI's choice of attention", "is": attention.optimized_attention.__name__}
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        yield {"what": "GPU", "is": properties.name}
        yield {"what": "memory, GB", "is": properties.total_memory / 2**30}
        yield {"what": "CUDA", "is": torch.version.cuda}


def _distance(latent: Tensor, reference: Tensor) -> float:
    """How far a latent is off, as a share of the reference."""
    return float((latent - reference).norm() / reference.norm())


def _made(name: str, precision: str, device: torch.device) -> Subject:
    """A subject that is small enough for the CPU: a demo model, or an architecture of TINY."""
    return published(TINY[name], precision, device) if name in TINY else demo(name, precision, device)


def correct(setup: Setup, names: tuple[str, ...]) -> Rows:
    """Off is off bit for bit, a run is the same again, and every method is as far off its run on the CPU in single precision as
    the MODEL itself is."""
    precisions = setup.halves if setup.tiny else ("fp32", *setup.halves, "fp8")
    for name in names:
        exact = _made(name, "fp32", torch.device("cpu"))
        references = {
            method: run_of(exact, method, setup.steps)[0] for method in methods(exact) if method not in ("off", "fast")
        }
        for precision in precisions:
            subject = _made(name, precision, setup.device)
            vanilla = run_of(subject, "vanilla", setup.steps)[0]
            row: Row = {"model": name, "precision": precision}
            row["off is off"] = torch.equal(run_of(subject, "off", setup.steps)[0], vanilla)
            row["again the same"] = torch.equal(*(run_of(subject, "partial", setup.steps)[0] for _ in range(2)))
            for method, reference in references.items():
                latent, run = run_of(subject, method, setup.steps)
                finite = run is None or run.not_finite is None
                row[f"{method}, %"] = 100 * _distance(latent, reference) if finite else "not finite"
                row[f"{method} was"] = run.letters if run else None
            yield {key: value for key, value in row.items() if key != "vanilla was"}


def sampled(setup: Setup, family: str, precisions: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Rows of "seconds" and of "kinds" for one family in several precisions."""
    import comfy.model_management

    for precision in precisions:
        if why := setup.missing(family, precision):
            yield "seconds", {"model": family, "precision": precision, "method": why}
            continue
        subject = setup.subject(family, precision)
        for table, rows in (("seconds", seconds), ("kinds", kinds)):
            yield from ((table, {"model": family, "precision": precision, **row}) for row in rows(setup, subject))
        del subject
        comfy.model_management.unload_all_models()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()


def _peaks(setup: Setup, subject: Subject) -> tuple[dict[str, RunRecord | None], dict[str, float | None]]:
    """One run by each method, and the gigabytes that PyTorch held at most on the GPU in it, None on a CPU."""
    runs, peaks = {}, {}
    for method in SAMPLED:
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(setup.device)
        runs[method] = run_of(subject, method, setup.steps)[1]
        peaks[method] = torch.cuda.max_memory_allocated(setup.device) / 2**30 if setup.device.type == "cuda" else None
    return runs, peaks


def seconds(setup: Setup, subject: Subject) -> Rows:
    """Seconds of sampling and peak memory, dense and with every preset, in turn."""
    runs, peaks = _peaks(setup, subject)  # which warms up, too
    calls = {method: lambda method=method: run_of(subject, method, setup.steps) for method in SAMPLED}
    took = timed(calls, setup.repeats_of(subject), setup.device, warm=False)
    for method, run in runs.items():
        yield {
            "method": method, "seconds": took[method], "times faster": took["vanilla"] / took[method],
            "peak, GB": peaks[method], "recorded, MB": run.cache_bytes / 2**20 if run else None,
            "evaluations": run.letters if run else "D" * setup.steps,
        }  # fmt: skip


def _by_kind(run: RunRecord) -> dict[str, list[float]]:
    """Seconds of a run's evaluations by what they were; the first few, which warm up, are left out."""
    found: dict[str, list[float]] = {}
    for own in run.evaluations[2:]:
        kind = "merged" if own.merged is not None else "dense, recording" if own.recording else own.kind
        found.setdefault(kind, []).append(own.seconds)
    return found


def kinds(setup: Setup, subject: Subject) -> Rows:
    """Seconds of each kind of evaluation, from the traces of runs."""
    found: dict[str, list[float]] = {}
    for method in [own for own in KINDS_FROM if own in methods(subject)]:
        for kind, values in _by_kind(run_of(subject, method, setup.steps)[1]).items():
            found.setdefault(kind, []).extend(values)
    dense = statistics.median(found["dense"])
    for kind in sorted(found, key=ORDER.index):
        median = statistics.median(found[kind])
        yield {
            "evaluation": kind,
            "milliseconds": 1000 * median,
            "of a dense one": median / dense,
            "measured": len(found[kind]),
        }


def compiled(setup: Setup, family: str, precision: str) -> Rows:
    """Seconds beside core's TorchCompileModel: the first run, which compiles, and later ones in turn. A trial of the program
    traces and does not compile."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    if why := setup.missing(family, precision):
        yield {"model": family, "precision": precision, "method": why}
        return
    subject = setup.subject(family, precision)
    repeats, tried = setup.repeats_of(subject), SAMPLED[:1] if setup.tiny else SAMPLED
    plain = timed({"plain": lambda: run_of(subject, "vanilla", setup.steps)}, repeats, setup.device)["plain"]
    yield {"model": family, "precision": precision, "method": "vanilla, not compiled", "first": None, "seconds": plain}
    node = TorchCompileModel.execute(subject.model, "eager" if setup.tiny else "inductor")
    subject = replace(subject, model=node.args[0])
    first, runs = {}, {}
    for method in tried:
        started = time.perf_counter()
        runs[method] = run_of(subject, method, setup.steps)[1]
        first[method] = time.perf_counter() - started
    calls = {method: lambda method=method: run_of(subject, method, setup.steps) for method in tried}
    took = timed(calls, repeats, setup.device, warm=False)
    for method in tried:
        yield {
            "model": family, "precision": precision, "method": method, "first": first[method], "seconds": took[method],
            "times faster": plain / took[method], "evaluations": own.letters if (own := runs[method]) else "D" * setup.steps,
        }  # fmt: skip
