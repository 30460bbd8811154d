"""The methods that are compared: each says what to attach to a MODEL, and at which strengths.

A peer that is a node, of ComfyUI or of a pack installed beside ours, is one entry: the node's id and its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..engine.config import ADAPTIVE, PACES, PRESETS, HighlightConfig
from ..engine.merging.config import PRESETS as MERGING_PRESETS
from ..engine.merging.config import SDTMConfig
from ..engine.trace import Trace
from ..engine.tuning import REGIONAL_PACE
from ..tools.comfy import Sampling, Subject, installed, node


@dataclass(frozen=True)
class Attached:
    """What to sample with: a MODEL, how, and the trace where the method keeps one."""

    model: Any
    sampling: Sampling
    trace: Trace | None = None


@dataclass(frozen=True)
class Method:
    """One method at one strength. `attach` turns a MODEL and the dense run's sampling into what to run instead.

    adapts: what is computed depends on the picture, so that its cost has to be counted for each. whole: it leaves whole guided
    predictions as they are or replaces them, so that those of the dense run at the same latents serve it too.
    """

    name: str
    setting: str
    attach: Callable[[Any, Sampling], Attached]
    adapts: bool = False
    whole: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.setting}".strip()


DENSE = Method("dense", "", lambda model, sampling: Attached(model, sampling))  # counted, and so not `whole`


def fewer_steps(shares: tuple[float, ...]) -> Iterator[Method]:
    for share in shares:
        yield Method("fewer steps", f"{share:g}", lambda model, s, share=share: Attached(
            model, replace(s, steps=max(1, round(s.steps * share)))))  # fmt: skip


def each(name: str, setting: str, values: Sequence[Any], apply: Callable[..., Any], **kind: bool) -> Iterator[Method]:
    """A peer at several strengths. setting: what they are called, with the value in braces. apply: given the MODEL, the
    sampling and a value, several where it is a tuple, returns the clone. kind: fields of `Method`."""
    for value in values:
        several = value if isinstance(value, tuple) else (value,)
        attach = lambda model, sampling, several=several: Attached(apply(model, sampling, *several), sampling)  # noqa: E731
        yield Method(name, setting.format(*several), attach, **kind)


def by_node(name: str, kind: str, knob: str, values: tuple, **fixed: Any) -> Iterator[Method]:
    """A node that takes `model` and returns a MODEL first; nothing when it is not installed."""
    if installed(kind):
        make = lambda m, s, value: node(kind, model=m, **{knob: value}, **fixed)[0]  # noqa: E731
        yield from each(name, knob + "={:g}", values, make, adapts=True)


def _anywhere(flow: bool) -> Iterator[Method]:
    """Peers of any network, at the guided prediction."""
    from .peers import fsampler, meancache, sada, spectrum

    whole, rows = {"adapts": True, "whole": True}, spectrum.SETTINGS
    yield from each("Spectrum", "{}", list(rows), lambda m, s, name: spectrum.apply(m, rows[name], hidden=False), **whole)
    yield from each("FSampler", "{}", list(fsampler.MODES), lambda m, s, mode: fsampler.apply(m, mode), **whole)
    yield from each("SADA", "", ((),), lambda m, s: sada.apply(m), **whole)
    if flow:
        yield from each("MeanCache", "{} of 50", list(meancache.PUBLISHED), lambda m, s, n: meancache.apply(m, n), **whole)


def _at_last_hidden() -> Iterator[Method]:
    """Peers of networks whose last hidden state can be had: UNets and SD3."""
    from .peers import spectrum, taylorseer

    rows = spectrum.SETTINGS
    yield from each("Spectrum, last hidden state", "{}", spectrum.PUBLISHED,
                    lambda m, s, name: spectrum.apply(m, rows[name], hidden=True))  # fmt: skip
    for kind in taylorseer.KINDS:
        yield from each(f"TaylorSeer-Lite, {kind}", "N={}", (2, 4), lambda m, s, n, kind=kind: taylorseer.apply(m, kind, n))


def _unet_peers() -> Iterator[Method]:
    from .peers import deepcache, faster_diffusion, frdiff, tgate

    yield from by_node("ToMe", "TomePatchModel", "ratio", (0.3, 0.6))
    yield from by_node("HyperTile", "HyperTile", "tile_size", (64,), swap_size=2, max_depth=0, scale_depth=False)
    yield from each("DeepCache", "N={}", (2, 3, 5), lambda m, s, n: deepcache.apply(m, n))
    yield from each("DeepCache, branch 3", "N={}", (2, 3), lambda m, s, n: deepcache.apply(m, n, 3))
    yield from each("T-GATE", "gate={:g}", (0.4, 0.6), lambda m, s, share: tgate.apply(m, round(share * s.steps)))
    yield from each("Faster Diffusion", "density={:g}", (0.7, 1.6), lambda m, s, d: faster_diffusion.apply(m, s.steps, d))
    yield from each("FRDiff", "N={}", (2, 3), lambda m, s, n: frdiff.apply(m, n, s.steps))


def _transformer_peers(subject: Subject) -> Iterator[Method]:
    from .peers import accelaes, dbcache, dicache, first_block, magcache, ras, sdtm_official, seacache, teacache, todo, tome_dit

    yield from each("DBCache with TaylorSeer", "F{}, {} in a row", ((4, 4), (1, 4), (1, 6)),
                    lambda m, s, first, n: dbcache.by_change(m, first, n), adapts=True)  # fmt: skip
    yield from each("DBCache with TaylorSeer", "F1, 6 in a row, threshold={:g}", (0.24,),
                    lambda m, s, t: dbcache.by_change(m, 1, 6, threshold=t), adapts=True)  # fmt: skip
    yield from each("Cache-DiT's step masks", "{}", list(dbcache.MASKS), lambda m, s, name: dbcache.by_mask(m, name))
    yield from each("DiCache", "threshold={:g}", (0.2, 0.4), lambda m, s, t: dicache.apply(m, t), adapts=True)
    yield from each("MagCache", "threshold={:g} K={}", ((0.06, 2), (0.24, 5)),
                    lambda m, s, t, k: magcache.apply(m, _ratios(subject, s), t, k), adapts=True)  # fmt: skip
    yield from each("SeaCache", "delta={:g}", (0.15, 0.3, 0.6), lambda m, s, t: seacache.apply(m, t), adapts=True)
    yield from each("First-Block Cache", "threshold={:g}", (0.08, 0.12, 0.2),
                    lambda m, s, t: first_block.apply(m, t), adapts=True)  # fmt: skip
    yield from each("TeaCache", "threshold={:g}", (0.05, 0.1, 0.2), lambda m, s, t: teacache.apply(m, t), adapts=True)
    yield from each("RAS", "ratio={:g}", (0.5, 0.25), lambda m, s, ratio: ras.apply(m, s.steps, ratio))
    yield from each("AccelAes", "every={}", (2, 3), lambda m, s, n: accelaes.apply(m, n), adapts=True, whole=True)
    yield from each("ToMe on DiT", "ratio={:g}", (0.5,), lambda m, s, ratio: tome_dit.apply(m, ratio))
    yield from each("ToDo", "factor={} blocks={:.0%}", ((2, 1.0),), lambda m, s, f, share: todo.apply(m, f, share))
    yield from each("SDTM as released", "r={:g} protect=3", (0.3, 0.5),
                    lambda m, s, r: sdtm_official.apply(m, s.steps, r, protect=3))  # fmt: skip


TABLE_PROMPT = "a large red circle at the left on a plain gray background"  # of MagCache's table; never judged


@cache
def _ratios(subject: Subject, sampling: Sampling) -> tuple[float, ...]:
    """MagCache's table for one model and number of steps, from one dense run."""
    from .peers import magcache

    ratios: list[float] = []
    subject.sample(magcache.recorded(subject.model, ratios), TABLE_PROMPT, 0, sampling)
    return tuple(ratios)


def _highlight(name: str, setting: str, **settings: Any) -> Method:
    from ..host.attach import attach

    def attached(model: Any, sampling: Sampling) -> Attached:
        trace = Trace()
        return Attached(attach(model, HighlightConfig(**settings), trace), sampling, trace)

    return Method(name, setting, attached, adapts=True)


def _merging(name: str, setting: str, pace: float = 0.0, **settings: Any) -> Method:
    """Token merging, beside Highlight Diffusion where a pace is given."""
    from ..host.attach import attach, attach_merging

    def attached(model: Any, sampling: Sampling) -> Attached:
        trace = Trace()
        if pace:
            model = attach(model, HighlightConfig(pace=pace), Trace())
        return Attached(attach_merging(model, SDTMConfig(**settings), trace), sampling, trace)

    return Method(name, setting, attached, adapts=bool(pace))


MERGED = ((0.1, 2), (0.2, 3), (0.3, 3), (0.4, 4), (0.5, 4), (0.6, 5), (0.6, 6), (0.7, 12))  # r, protect_steps
TOGETHER = ((2.5, 2, 0.4), (3.5, 2, 0.3), (5.0, 2, 0.2), (5.0, 2, 0.3), (5.0, 2, 0.5), (8.0, 2, 0.3))  # pace, protect_steps, r
PIECES: dict[str, dict[str, Any]] = {
    "structure stage alone": {"switch": 1.0},
    "detail stage alone": {"switch": 0.0},
    "detail in the MLP alone": {"detail_attention": False},
    "no fairness": {"a_s": 0.0, "a_d": 0.0},
    "fairness ten times as heavy": {"a_s": 0.5, "a_d": 0.5},
    "fairness reversed, as released": {"a_s": -0.05, "a_d": -0.05},
    "fairness reversed, ten times as heavy": {"a_s": -0.5, "a_d": -0.5},
    "no rotation": {"rotate": False},
    "nothing remembered": {"mcw": 1.0},
    "half remembered": {"mcw": 0.5},
    "the prompt heavier, then lighter": {"a_p": 0.3},
    "the prompt lighter, then heavier": {"a_p": -0.3},
    "merged tokens weigh one": {"proportional": False},
}


def sdtm() -> Iterator[Method]:
    """Our token merging at several strengths, with Highlight Diffusion, alone without memory, and its ablations."""
    presets = {(own["r"], own["protect_steps"]): f" ({name})" for name, own in MERGING_PRESETS.items()}
    for r, protect in MERGED:
        setting = f"r={r:g} protect={protect}{presets.get((r, protect), '')}"
        yield _merging("SDTM", setting, r=r, protect_steps=protect)
    for r in (0.1, 0.2, 0.3, 0.4, 0.6):
        yield _merging("SDTM, merging alone", f"r={r:g}", r=r, mcw=1.0, protect_steps=0)
    yield _merging("SDTM, merging alone", "r=0.2 matched anew each time", r=0.2, mcw=1.0, protect_steps=0, reuse=1)
    for setting, changed in PIECES.items():
        yield _merging("SDTM ablated", setting, **{**MERGING_PRESETS["balanced"], **changed})
    for pace, protect, r in TOGETHER:
        setting = f"pace={pace:g} r={r:g} protect={protect}"
        yield _merging("Highlight and SDTM", setting, pace, r=r, protect_steps=protect)


SWEEP = (2.0, 2.5, 3.5, 5.0, 8.0, 11.0)  # paces
SPEEDS = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5)
INTERVALS = ((2,), (3,), (4,), (1, 3, 5, 7, 9), (9, 7, 5, 3, 1))


def ours() -> Iterator[Method]:
    """Highlight Diffusion by its presets, and by how many times cheaper a run is asked to be."""
    for name, settings in PRESETS.items():
        yield _highlight("Highlight Diffusion", name, **settings)
    for speed in SPEEDS:
        yield _highlight("Highlight Diffusion", f"speed={speed:g}", speed=speed)


def studies(transformer: bool) -> Iterator[Method]:
    """What each ingredient of ours is worth: paces, intervals, ablations, token merging."""
    presets = {pace: name for name, pace in PACES.items()}
    for pace in SWEEP:
        setting = f"pace={pace:g}" + (f" ({presets[pace]})" if pace in presets else "")
        yield _highlight("by pace", setting, pace=pace)
        if pace > REGIONAL_PACE:
            yield _highlight("always corrected", setting, pace=pace, correct="always", shallow="never")
            if not transformer:
                yield _highlight("always shallow", setting, pace=pace, correct="never", shallow="always")
        yield _highlight("forecast alone", setting, pace=pace, correct="never", shallow="never")
        if pace in presets:
            yield _highlight("forecasts not revised", setting, pace=pace, revise=False)
    for interval in INTERVALS:
        yield _highlight("interval", "N=" + ",".join(map(str, interval)), interval=interval)
    for pace in (2.0, 5.0, 8.0):
        yield _highlight("interval", f"N=adaptive pace={pace:g}", interval=ADAPTIVE, pace=pace)
    yield from sdtm() if transformer else ()


def methods(subject: Subject, study: bool = False) -> list[Method]:
    """Every method at every strength for one model; those whose node is missing are left out. study: our ablations too."""
    window = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    caches = ("LazyCache",) if subject.transformer else ("EasyCache", "LazyCache")  # in SD3 EasyCache's hook is never reached
    found = [
        DENSE,
        *ours(),
        *fewer_steps((0.8, 0.67, 0.5, 0.4, 0.33)),
        *_anywhere(subject.flow),
        *(m for name in caches for m in by_node(name, name, "reuse_threshold", (0.05, 0.1, 0.2), **window)),
    ]
    if subject.unet or subject.transformer:
        found += _at_last_hidden()
    if subject.unet:
        found += _unet_peers()
    if subject.transformer:
        found += _transformer_peers(subject)
    return [*found, *(studies(subject.transformer) if study else ())]
