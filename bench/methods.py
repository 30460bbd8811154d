"""The methods that are compared: each says what to attach to a MODEL, and at which strengths.

A peer that is a node, of ComfyUI or of a pack installed beside ours, is one entry: the node's id and its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..engine.config import ADAPTIVE, PACES, HighlightConfig
from ..engine.merging.config import PRESETS, SDTMConfig
from ..engine.trace import Trace
from ..engine.tuning import REGIONAL_PACE
from ..tools.comfy import Sampling, installed, node


@dataclass(frozen=True)
class Attached:
    """What to sample with: a MODEL, how, and the trace where the method keeps one."""

    model: Any
    sampling: Sampling
    trace: Trace | None = None


@dataclass(frozen=True)
class Method:
    """One method at one strength. `attach` turns a MODEL and the dense run's sampling into what to run instead.

    adapts: what is computed depends on the picture, so that its cost has to be counted for each.
    """

    name: str
    setting: str
    attach: Callable[[Any, Sampling], Attached]
    adapts: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.setting}".strip()


DENSE = Method("dense", "", lambda model, sampling: Attached(model, sampling))


def fewer_steps(shares: tuple[float, ...]) -> Iterator[Method]:
    for share in shares:
        yield Method("fewer steps", f"{share:g}", lambda model, s, share=share: Attached(
            model, replace(s, steps=max(1, round(s.steps * share)))))  # fmt: skip


def by_node(name: str, kind: str, knob: str, values: tuple, **fixed: Any) -> Iterator[Method]:
    """A node that takes `model` and returns a MODEL first; nothing when it is not installed."""
    if not installed(kind):
        return
    for value in values:
        yield Method(name, f"{knob}={value:g}", lambda model, s, value=value: Attached(
            node(kind, model=model, **{knob: value}, **fixed)[0], s), adapts=True)  # fmt: skip


def _unet_peers() -> Iterator[Method]:
    from .peers import deepcache, faster_diffusion, frdiff, tgate

    yield from by_node("ToMe", "TomePatchModel", "ratio", (0.3, 0.6))
    yield from by_node("HyperTile", "HyperTile", "tile_size", (128, 64), swap_size=2, max_depth=0, scale_depth=False)

    for interval in (2, 3, 5):
        yield Method("DeepCache", f"N={interval}", lambda m, s, n=interval: Attached(deepcache.apply(m, n), s))
    for interval in (2, 3, 5):
        yield Method("DeepCache, branch 3", f"N={interval}", lambda m, s, n=interval: Attached(deepcache.apply(m, n, 3), s))
    for share in (0.4, 0.6, 0.8):
        yield Method("T-GATE", f"gate={share:g}", lambda m, s, share=share: Attached(tgate.apply(m, round(share * s.steps)), s))
    for density in (0.7, 1.0, 1.6, 2.4):
        yield Method("Faster Diffusion", f"density={density:g}", lambda m, s, d=density: Attached(
            faster_diffusion.apply(m, s.steps, d), s))  # fmt: skip
    for interval in (2, 3, 5):
        yield Method("FRDiff", f"N={interval}", lambda m, s, n=interval: Attached(frdiff.apply(m, n, s.steps), s))


def _transformer_peers() -> Iterator[Method]:
    from .peers import accelaes, first_block, ras, sdtm_official, teacache, todo, tome_dit

    for threshold in (0.05, 0.08, 0.12, 0.2):
        yield Method("First-Block Cache", f"threshold={threshold:g}", lambda m, s, t=threshold: Attached(
            first_block.apply(m, t), s), adapts=True)  # fmt: skip
    for threshold in (0.03, 0.05, 0.07, 0.1, 0.15, 0.3):
        yield Method("TeaCache", f"threshold={threshold:g}", lambda m, s, t=threshold: Attached(
            teacache.apply(m, t), s), adapts=True)  # fmt: skip
    for ratio in (0.75, 0.5, 0.25):
        yield Method("RAS", f"ratio={ratio:g}", lambda m, s, ratio=ratio: Attached(ras.apply(m, s.steps, ratio), s))
    for every in (2, 3):
        yield Method("AccelAes", f"every={every}", lambda m, s, n=every: Attached(accelaes.apply(m, n), s))
    for ratio in (0.25, 0.5, 0.7):
        yield Method("ToMe on DiT", f"ratio={ratio:g}", lambda m, s, ratio=ratio: Attached(tome_dit.apply(m, ratio), s))
    for factor, share in ((2, 0.5), (2, 1.0), (4, 1.0)):
        yield Method("ToDo", f"factor={factor} blocks={share:.0%}", lambda m, s, f=factor, b=share: Attached(
            todo.apply(m, f, b), s))  # fmt: skip
    for r, protect in ((0.3, 3), (0.5, 3), (0.3, 0), (0.5, 0)):
        yield Method("SDTM as released", f"r={r:g} protect={protect}", lambda m, s, r=r, n=protect: Attached(
            sdtm_official.apply(m, s.steps, r, protect=n), s))  # fmt: skip


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
    presets = {(own["r"], own["protect_steps"]): f" ({name})" for name, own in PRESETS.items()}
    for r, protect in MERGED:
        setting = f"r={r:g} protect={protect}{presets.get((r, protect), '')}"
        yield _merging("SDTM", setting, r=r, protect_steps=protect)
    for r in (0.1, 0.2, 0.3, 0.4, 0.6):
        yield _merging("SDTM, merging alone", f"r={r:g}", r=r, mcw=1.0, protect_steps=0)
    yield _merging("SDTM, merging alone", "r=0.2 matched anew each time", r=0.2, mcw=1.0, protect_steps=0, reuse=1)
    for setting, changed in PIECES.items():
        yield _merging("SDTM ablated", setting, **{**PRESETS["balanced"], **changed})
    for pace, protect, r in TOGETHER:
        setting = f"pace={pace:g} r={r:g} protect={protect}"
        yield _merging("Highlight and SDTM", setting, pace, r=r, protect_steps=protect)


SWEEP = (2.0, 2.5, 3.5, 5.0, 8.0, 11.0)  # paces
INTERVALS = ((2,), (3,), (4,), (1, 3, 5, 7, 9), (9, 7, 5, 3, 1))


def ours(transformer: bool = False) -> Iterator[Method]:
    """Highlight Diffusion at several paces, the presets' among them, its ablations, and the study of the interval N."""
    presets = {pace: name for name, pace in PACES.items()}
    for pace in SWEEP:
        setting = f"pace={pace:g}" + (f" ({presets[pace]})" if pace in presets else "")
        yield _highlight("Highlight Diffusion", setting, pace=pace)
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


def methods(transformer: bool = False) -> list[Method]:
    """Every method at every strength for one kind of model; those whose node is missing are left out."""
    window = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    caches = ("LazyCache",) if transformer else ("EasyCache", "LazyCache")  # in SD3 EasyCache's hook is never reached
    return [
        DENSE,
        *fewer_steps((0.8, 0.67, 0.5, 0.4, 0.33)),
        *(m for cache in caches for m in by_node(cache, cache, "reuse_threshold", (0.02, 0.05, 0.1, 0.2), **window)),
        *(_transformer_peers() if transformer else _unet_peers()),
        *ours(transformer),
        *(sdtm() if transformer else ()),
    ]
