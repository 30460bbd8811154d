"""What a run cost and saved, in numbers, in words and as JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TypedDict

from ..trace import KINDS, RunRecord, in_words

MB = 2**20


class Fallback(TypedDict):
    planned: str
    kind: str
    reason: str
    count: int


class Report(TypedDict):
    """`ratio`: how many times longer the run would have taken dense; None, as `dense_seconds`, where nothing tells.
    `planned` counts what the plan wanted, `evaluations` what was done. `not_finite` names the first evaluation that was
    not, and is empty where all were. `expected_error` is the plan's, in decibels, None where that is not known, and
    `asked_error` what it had to be at least, None where nothing was asked for. `idle` says why nothing was saved; None where
    something was. `limits`: what cannot be saved on this model, and why. `learnt`: what became of the run in the model's
    profile, empty where none was asked for."""

    sampler: str
    shape: list[int]
    completed: bool
    seconds: float
    dense_seconds: float | None
    ratio: float | None
    estimate: str
    evaluations: dict[str, int]
    mean_active: float
    mean_merged: float | None
    cache_mb: float
    preview_ms: float
    highlight: str
    not_finite: str
    expected_error: float | None
    asked_error: float | None
    fallbacks: list[Fallback]
    idle: str | None
    limits: list[str]
    learnt: str


def estimate_dense(run: RunRecord) -> tuple[float | None, str]:
    """Seconds the run would have taken dense, and how they were estimated.

    Every evaluation is counted at the median of the dense ones that merged no tokens, captured no heatmap and recorded
    nothing; without such, of all that merged none. The first, which also warms the device up, is left out where there are
    others. What passed outside the evaluations is taken as it was.
    """
    dense = [e for e in run.evaluations if e.kind == "dense" and e.merged is None]
    plain = [e for e in dense if e.heatmap is None and not e.recording]
    used, which = (plain, "plain dense evaluations") if len(plain) > 1 else (dense, "dense evaluations")
    if len(used) > 1 and used[0].index == 0:
        used, which = used[1:], f"{which} after the first"
    if not used or not run.seconds:
        return None, "no dense evaluation with all its tokens to go by"
    each = statistics.median(e.seconds for e in used)
    rest = max(0.0, run.seconds - sum(e.seconds for e in run.evaluations))
    count = len(run.evaluations)
    how = f"{count} evaluations at {each:.3f} s, the median of {len(used)} {which}, and {rest:.2f} s outside evaluations"
    return count * each + rest, how


def fallbacks(run: RunRecord) -> list[Fallback]:
    """Evaluations that did not do what the plan wanted, by reason, the most frequent first."""
    fallen = Counter((e.planned, e.kind, e.reason) for e in run.evaluations if e.planned not in (None, e.kind))
    return [Fallback(planned=p, kind=k, reason=r, count=n) for (p, k, r), n in fallen.most_common()]


def report(run: RunRecord) -> Report:
    seconds, how = estimate_dense(run)
    return Report(
        sampler=run.sampler, shape=list(run.shape), completed=run.completed, seconds=round(run.seconds, 3),
        dense_seconds=None if seconds is None else round(seconds, 3),
        ratio=None if seconds is None else round(seconds / run.seconds, 3), estimate=how,
        evaluations={kind: run.count(kind) for kind in KINDS},
        mean_active=round(run.mean_active, 4), mean_merged=_mean_merged(run), cache_mb=round(run.cache_bytes / MB, 2),
        preview_ms=round(run.preview_seconds / max(len(run.evaluations), 1) * 1000, 3),
        highlight=run.highlight_reason, not_finite=run.not_finite_in_words,
        expected_error=None if run.expected_error is None else round(run.expected_error, 2), asked_error=run.asked_error,
        fallbacks=fallbacks(run),
        idle=_idle(run), limits=list(run.limits), learnt=run.learnt,
    )  # fmt: skip


def _idle(run: RunRecord) -> str | None:
    """Why nothing was saved in a run: the reasons of its evaluations, the most frequent first. None where something was."""
    if not run.evaluations or any(e.kind != "dense" or e.merged is not None for e in run.evaluations):
        return None
    counted = Counter(e.reason for e in run.evaluations)
    return ", ".join(f"{reason} ({n})" for reason, n in counted.most_common())


def _mean_merged(run: RunRecord) -> float | None:
    """Mean share of the tokens merged in the evaluations that merged some; None where none did."""
    shares = [float(e.merged.mean()) for e in run.evaluations if e.merged is not None]
    return round(sum(shares) / len(shares), 4) if shares else None


def as_text(told: Report) -> str:
    """A report in a few lines."""
    state = "" if told["completed"] else ", interrupted"
    lines = [f"{told['seconds']:.2f} s, {told['sampler']}, latent {'x'.join(map(str, told['shape']))}{state}"]
    if told["ratio"] is not None:
        lines.append(f"{told['ratio']:.2f} times faster than dense, estimated at {told['dense_seconds']:.2f} s")
    lines.append(f"  from {told['estimate']}")
    counts = told["evaluations"]
    lines.append(f"{sum(counts.values())} evaluations: {in_words(counts)}; mean active area {told['mean_active']:.0%}")
    lines += told["limits"]
    if told["idle"] is not None:
        lines.append(f"nothing was saved: {told['idle']}")
    if told["mean_merged"] is not None:
        lines.append(f"tokens merged where any were: {told['mean_merged']:.0%}")
    lines.append(f"cache at most {told['cache_mb']:.1f} MB; live preview {told['preview_ms']:.2f} ms an evaluation")
    lines.append(f"region: {told['highlight']}")
    if told["expected_error"] is not None:
        asked = "" if told["asked_error"] is None else f", of {told['asked_error']:g} dB asked for"
        lines.append(f"expected signal-to-noise ratio to the dense run: {told['expected_error']:.1f} dB{asked}")
    if told["learnt"]:
        lines.append(told["learnt"])
    if told["not_finite"]:
        lines.append(f"{told['not_finite']}: nothing was saved after it")
    lines += [f"fall-back, {f['count']} times {f['kind']} instead of {f['planned']}: {f['reason']}" for f in told["fallbacks"]]
    return "\n".join(lines if told["fallbacks"] else [*lines, "no fall-backs"])


def as_line(run: RunRecord) -> str:
    """A run in one line, for the console."""
    dense, _ = estimate_dense(run)
    ratio = f", about {dense / run.seconds:.2f} times faster than dense" if dense else ""
    expected = "" if run.expected_error is None else f", {run.expected_error:.1f} dB expected"
    fallen = sum(f["count"] for f in fallbacks(run))
    told = "".join(f"; {limit}" for limit in (*run.limits, run.learnt) if limit)
    return f"{run.summary()}{ratio}{expected}{f'; {fallen} fall-backs' if fallen else ''}{told}"
