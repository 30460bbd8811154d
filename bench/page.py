"""The page of the bench, docs/benchmarks.md: what Highlight Diffusion is beside each peer, at equal cost and at equal fidelity.

Everything on it is computed from the CSV files that `python run.py bench --docs` leaves in docs/benchmarks/: `python run.py
page` writes it.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np

from ..demo.vae import PIXELS
from ..engine.config import PRESETS
from ..tools.console import say
from ..tools.server import PACK
from .fidelity import DECILE, spread
from .worst import NAME as WORST

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

OURS = "Highlight Diffusion"
RANGE = (1.2, 3.5)  # times cheaper, of the strengths that are compared
RESAMPLES = 1000
FOLDER = PACK / "docs" / "benchmarks"
# The models that share a table, by the names of their files; a file that is not here has a table of its own.
GROUPS = {
    "Demo transformer (MMDiT); 4 and 8 steps are of its turbo LoRAs at CFG 1": ("mmdit-turbo-4", "mmdit-turbo-8", "mmdit"),
    "Demo UNet": ("unet",),
    "The model that nothing is tuned to (a UNet of SDXL's layout)": ("second",),
}
DEMOS = {model for models in GROUPS.values() for model in models}
# What a kind of evaluation is called, by its field in the files; of the dense ones those that merged are a part.
EVALUATIONS = {"dense": "exact", "merged": "merged", "partial": "partial", "shallow": "shallow", "skipped": "forecast"}
NO_PEERS = "No peer was measured here yet."
Row = dict[str, str]
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # ratio, mean and worst decile of strengths


@dataclass(frozen=True, order=True)
class Cell:
    """What pictures have to have in common to be compared: sampler, latent's side, number of steps, file of the model."""

    sampler: str
    size: int
    steps: int
    model: str

    def __str__(self) -> str:
        return f"{self.steps} steps, {PIXELS * self.size} px"


@dataclass(frozen=True)
class Objects:
    """What became of the objects that prompts ask for. inside: PSNR in decibels over their cells, mean over pictures. right:
    how many a detector finds as asked for. dense: how many it finds in the dense pictures."""

    inside: float
    right: int
    dense: int


@dataclass(frozen=True)
class Points:
    """A method's strengths on the same pictures.

    ratio: times cheaper (strengths,). fidelity: PSNR in decibels (strengths, pictures). prompts: of each picture, by which they
    are resampled. objects: of each strength, none where prompts ask for no objects that a detector knows. kinds: of each
    strength, what share of its evaluations was of which kind, in words; empty for peers.
    """

    name: str
    settings: tuple[str, ...]
    ratio: np.ndarray
    fidelity: np.ndarray
    prompts: np.ndarray
    objects: tuple[Objects, ...] = ()
    kinds: tuple[str, ...] = ()

    @cached_property
    def resampled(self) -> list[tuple[np.ndarray, Curve]]:
        """Pictures of prompts drawn with repetition, and the curve over them: what a bootstrap over prompts needs of ours."""
        rng, names = np.random.default_rng(0), np.unique(self.prompts)
        groups = [np.flatnonzero(self.prompts == name) for name in names]
        draws = (np.concatenate([groups[i] for i in rng.integers(0, len(names), len(names))]) for _ in range(RESAMPLES))
        return [(draw, self.curve(draw)) for draw in draws]

    def curve(self, pick: np.ndarray | slice = slice(None)) -> Curve:
        """Ratio, mean and worst decile of the strengths that nobody would pass over, by rising ratio: each is more faithful in
        the mean than every cheaper one. pick: the pictures."""
        mean = self.fidelity[:, pick].mean(1)
        keep: list[int] = []
        for i in np.lexsort((-mean, -self.ratio)):
            if not keep or mean[i] > mean[keep[-1]]:
                keep.append(int(i))
        keep.reverse()
        low = np.percentile(self.fidelity[np.ix_(keep, np.arange(self.fidelity.shape[1])[pick])], DECILE, axis=1)
        return self.ratio[keep], mean[keep], low


def complete(rows: list[Row]) -> dict[str, Points]:
    """The methods of one cell by name, on the same pictures: those for which most is known, the number of pictures times the
    number of strengths that have them all. Strengths that lack one, as those of a run that goes on yet, are left out."""
    table: dict[tuple[str, str], dict[tuple[int, int], Row]] = defaultdict(dict)
    for row in rows:
        table[row["method"], row["setting"]][int(row["prompt"]), int(row["seed"])] = row
    sets = {frozenset(own) for own in table.values()}
    worth = lambda pictures: len(pictures) * sum(pictures <= set(own) for own in table.values())  # noqa: E731
    common = sorted(max(sets, key=worth, default=frozenset()))
    table = {key: own for key, own in table.items() if set(common) <= set(own)}
    found: dict[str, Points] = {}
    number = lambda rows, field: np.array([float(row[field]) for row in rows])  # noqa: E731
    dense = table.get(("dense", ""), {})
    asked = [p for p in common if p in dense and int(dense[p]["wanted"])]
    for name in dict.fromkeys(name for name, _ in table):
        own = {setting: [table[name, setting][p] for p in common] for method, setting in table if method == name}
        if name == "dense":
            continue
        ratio = [number(r, "dense_macs").sum() / max(number(r, "macs").sum(), 1) for r in own.values()]
        fidelity = [number(r, "psnr") for r in own.values()]
        pictures = [[table[name, setting][p] for p in asked] for setting in own]
        objects = tuple(
            Objects(
                float(np.nanmean(number(r, "psnr_inside"))),
                int(number(r, "right").sum()),
                sum(int(dense[p]["right"]) for p in asked),
            )
            for r in pictures
            if r
        )
        kinds = tuple(map(_kinds, own.values())) if name == OURS else ()
        prompts = np.array([p for p, _ in common])
        found[name] = Points(name, tuple(own), np.array(ratio), np.array(fidelity), prompts, objects, kinds)
    return found


def _kinds(rows: list[Row]) -> str:
    """The share of evaluations of each kind that there was, in words."""
    counts = {name: sum(int(row.get(field, 0)) for row in rows) for field, name in EVALUATIONS.items()}
    counts["exact"] -= counts["merged"]
    total = sum(counts.values())
    return ", ".join(f"{count / total:.0%} {name}" for name, count in counts.items() if count)


def fidelity_at(ratio: float, curve: Curve) -> tuple[float, float]:
    """Mean and worst decile of a curve at a ratio, between its points in log ratio; nan beyond its cheapest point, and its
    most faithful one before its first."""
    ratios, mean, low = curve
    if ratio > ratios[-1] * (1 + 1e-6):
        return float("nan"), float("nan")
    return tuple(float(np.interp(np.log(ratio), np.log(ratios), values)) for values in (mean, low))


def ratio_at(fidelity: float, curve: Curve) -> float:
    """The ratio at which a curve has a mean fidelity, between its points in log ratio; its cheapest where all are more
    faithful, nan where none is."""
    ratios, mean, _ = curve
    if fidelity > mean[0]:
        return float("nan")
    return float(np.exp(np.interp(-fidelity, -mean, np.log(ratios))))


@dataclass(frozen=True)
class Lead:
    """Ours against one strength of a peer. decibels, decile: above it at its cost, mean and worst decile; surely: the lower
    end of the mean's 95% interval. times: how many times cheaper at its fidelity. nan where ours does not reach the cost or the
    fidelity."""

    setting: str
    ratio: float
    decibels: float
    decile: float
    surely: float
    times: float


def leads(ours: Points, peer: Points) -> list[Lead]:
    """Against each strength of a peer within `RANGE`; the interval is by paired bootstrap over prompts."""
    curve = ours.curve()
    found = []
    for i, setting in enumerate(peer.settings):
        ratio, own = float(peer.ratio[i]), peer.fidelity[i]
        if not RANGE[0] <= ratio <= RANGE[1]:
            continue
        mean, low = fidelity_at(ratio, curve)
        differences = [fidelity_at(ratio, other)[0] - own[draw].mean() for draw, other in ours.resampled]
        found.append(Lead(
            setting, ratio, mean - float(own.mean()), low - float(np.percentile(own, DECILE)),
            float(np.nanpercentile(differences, 2.5)) if np.isfinite(mean) else float("nan"),
            ratio_at(float(own.mean()), curve) / ratio,
        ))  # fmt: skip
    return found


Compared = dict[Cell, dict[str, list[Lead]]]  # by peer


def least(found: list[Lead]) -> Lead | None:
    """The strength at which the peer does best beside ours; None where none can be compared."""
    compared = [lead for lead in found if np.isfinite(lead.decibels)]
    return min(compared, key=lambda lead: lead.decibels, default=None)


def _cell(found: list[Lead]) -> str:
    lead = least(found)
    if lead is None:
        return "-"
    times = f"{lead.times:.2f}x" if np.isfinite(lead.times) else "beyond ours"
    told = f"{lead.decibels:+.1f} [{lead.surely:+.1f}] / {lead.decile:+.1f} dB, {times} ({lead.ratio:.1f}x)"
    return f"**{told}**" if lead.decibels < 0 else told


def compared(cells: dict[Cell, dict[str, Points]]) -> Compared:
    """Ours against every peer of every cell."""
    return {
        cell: {name: leads(methods[OURS], peer) for name, peer in methods.items() if name != OURS}
        for cell, methods in cells.items()
    }


def table(found: Compared) -> list[str]:
    """One row a peer, one column a cell."""
    lines = [_head("beside", found), "|---" * (len(found) + 1) + "|"]
    for name in dict.fromkeys(name for peers in found.values() for name in peers):
        row = [_cell(peers.get(name, [])) for peers in found.values()]
        if set(row) != {"-"}:
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return lines


def _head(first: str, cells: Iterable[Cell]) -> str:
    return f"| {first} | " + " | ".join(map(str, cells)) + " |"


def presets(cells: dict[Cell, dict[str, Points]]) -> list[str]:
    """What ours gives by itself: times cheaper, PSNR mean / worst decile / worst."""
    lines = [_head("preset", cells), "|---" * (len(cells) + 1) + "|"]
    for setting in PRESETS:
        lines.append(f"| {setting} | " + " | ".join(_preset(methods[OURS], setting) for methods in cells.values()) + " |")
    return lines


def _preset(ours: Points, setting: str) -> str:
    if setting not in ours.settings:
        return "-"
    index = ours.settings.index(setting)
    told = f"{ours.ratio[index]:.2f}x: {spread(ours.fidelity[index])}"
    if ours.objects:
        own = ours.objects[index]
        told += f"; objects {own.inside:.1f}, {own.right} right of {own.dense}"
    return told + (f"; {ours.kinds[index]}" if ours.kinds and ours.kinds[index] else "")


def behind(found: Compared) -> tuple[list[str], int]:
    """The strengths of peers that ours does not lie above in the mean or in the worst decile, and how many there are in all."""
    every = [(cell, name, lead) for cell, peers in found.items() for name, own in peers.items() for lead in own]
    lost = [
        f"{cell}: {f'{name} {lead.setting}'.strip()} ({lead.ratio:.1f}x) {lead.decibels:+.1f} / {lead.decile:+.1f}"
        for cell, name, lead in every
        if min(lead.decibels, lead.decile) < 0
    ]
    return lost, len(every)


def read(path: Path) -> dict[Cell, dict[str, Points]]:
    """The cells of a CSV file in which ours was measured, by rising number of steps."""
    groups: dict[Cell, list[Row]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            groups[Cell(row["sampler"], int(row["cells"]), int(row["steps"]), path.stem)].append(row)
    cells = {cell: complete(rows) for cell, rows in sorted(groups.items())}
    return {cell: methods for cell, methods in cells.items() if OURS in methods}


def plot(cells: dict[Cell, dict[str, Points]], path: Path) -> None:
    """Mean PSNR by times cheaper, one panel a cell; ours is the thick line."""
    figure, axes = plt.subplots(1, len(cells), figsize=(5 * len(cells), 5), layout="constrained", squeeze=False)
    for axis, (cell, methods) in zip(axes[0], cells.items(), strict=True):
        for name, points in methods.items():
            ratio, mean, _ = points.curve()
            own = name == OURS
            axis.plot(ratio, mean, "o-" if own else ".--", linewidth=2.5 if own else 0.9, markersize=4, label=name)
        axis.set(xlabel="times cheaper than dense (MACs)", xlim=(0.97, 3.7), ylim=(18, 70), title=f"{cell}, {cell.sampler}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR to the dense picture, mean, dB")
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, ncols=7, loc="outside lower center")
    figure.savefig(path, dpi=70)
    plt.close(figure)


HEAD = """# Benchmarks: how much faster, at equal fidelity

Written by `python run.py page` from the CSV files in `docs/benchmarks/`, which `python run.py bench --docs` leaves: do not
edit. Every picture of every method is in them. Models that fit into this repository were trained for it: they tell how methods
compare, not what your checkpoint will do on your GPU; [bench-your-model.md](bench-your-model.md) says how to measure that.
Prompts are scenes whose captions training never saw and nothing was tuned on (`bench.prompts.judged`): background alone, one,
two and three objects in turn. Float32, CFG 3 unless said, schedulers normal (UNets) and simple. What an
evaluation in part costs at true shape is in [true-shape.md](true-shape.md), other samplers in [samplers.md](samplers.md) and
[stochastic.md](stochastic.md), masks in [few-steps.md](few-steps.md), what each ingredient is worth in
[ingredients.md](ingredients.md).
"""
OWN = """# Benchmark of your model

Made by `python run.py bench`.
"""
GUIDE = f"""
- **Fidelity** is the PSNR in dB of the decoded picture to the *dense* one: of the same seed, sampler and number of steps, with
  every evaluation computed. **Cost** is multiply-accumulates executed, which a machine's load cannot disturb.
- The first table of a model has what the presets give: how many times cheaper, PSNR mean / worst decile / worst picture,
  then its mean inside the objects that the prompts ask for, how many of them a detector finds as asked for, of as many as
  in the dense pictures, and the share of evaluations of every kind.
- A cell of the second says how many dB Highlight Diffusion is above the peer **at the peer's cost, mean / worst decile**, in
  brackets the lower end of the mean's 95% interval (paired bootstrap over prompts), and how many times cheaper it is **at the
  peer's mean fidelity**; in parentheses how many times cheaper than dense the peer is there. Of the peer's strengths between
  {RANGE[0]} and {RANGE[1]} times cheaper it is the one that does best beside ours. Bold: the peer is ahead. A dash: no strength
  of the peer, or of ours, is there. Ours is the curve through the presets and `speed`.
- Below a plot stand the worst pictures of two presets, each after the dense one.
- LPIPS is not given: no package ships its weights, and none can be fetched where this is made. SSIM is in the CSV files.
- Peers are small entries by their papers' descriptions, in `bench/peers/`, each with its source; EasyCache, LazyCache, ToMe
  and HyperTile are ComfyUI's own nodes.
"""


def section(title: str, cells: dict[Cell, dict[str, Points]], name: str, folder: Path, path: Path) -> list[str]:
    """A group's tables, what is behind, its plot and its worst pictures, on the page at `path`."""
    pictures = ", ".join(f"{len(methods[OURS].prompts)} at {cell}" for cell, methods in cells.items())
    found = compared(cells)
    lost, count = behind(found)
    models = sorted({cell.model for cell in cells})
    one = [
        f'`python run.py bench --model "{model.replace("-", " ")}" --size {PIXELS * size} --steps N --limit 4 --only NAME`'
        for model, size in sorted({(cell.model, cell.size) for cell in cells}) if model in DEMOS
    ]  # fmt: skip
    reproduced = f" One row, in minutes: {' or '.join(one)}." if one else ""
    told = f"Ours is above {count - len(lost)} of {count} strengths" + (f"; not above {'; '.join(lost)}." if lost else ".")
    beside = [*table(found), "", told] if count else [NO_PEERS]
    drawn = [folder / f"{name}.png", *(folder / WORST.format(model) for model in models)]
    return [
        f"## {title}", "", f"Pictures: {pictures}.{reproduced}", "", *presets(cells), "",
        *beside, "", *(line for file in drawn if file.exists() for line in (_shown(file, path), "")),
    ]  # fmt: skip


def _shown(file: Path, path: Path) -> str:
    """A picture on the page at `path`."""
    return f"![{file.stem}]({file.relative_to(path.parent).as_posix()})"


def _groups(folder: Path) -> dict[str, tuple[str, dict[Cell, dict[str, Points]]]]:
    """What shares a table, by title: the name of its plot, and its cells."""
    tables = (path for path in sorted(folder.glob("*.csv")) if path.read_text().startswith("sampler,steps,cells,"))
    files = {path.stem: path for path in tables}
    found = {}
    for title, models in {**GROUPS, **{stem: (stem,) for stem in files if stem not in DEMOS}}.items():
        cells = {cell: methods for model in models if model in files for cell, methods in read(files[model]).items()}
        if cells:
            found[title] = models[-1], dict(sorted(cells.items(), key=lambda item: (item[0].steps, item[0].sampler)))
    return found


def text(folder: Path, path: Path) -> str:
    """The page at `path` of all CSV files in a folder."""
    lines = [(HEAD if folder == FOLDER else OWN) + GUIDE]
    for title, (name, cells) in _groups(folder).items():
        lines += section(title, cells, name, folder, path)
    return "\n".join(lines)


def write(folder: Path) -> Path:
    """Write the page and its plots, beside the folder of the repository's own results and in that of others. Returns its
    path."""
    path = folder.with_suffix(".md") if folder == FOLDER else folder / "benchmarks.md"
    for name, cells in _groups(folder).values():
        plot(cells, folder / f"{name}.png")
    path.write_text(text(folder, path))
    return path


def main() -> int:
    argparse.ArgumentParser(prog="run.py page", description="Writes docs/benchmarks.md from its CSV files.").parse_args()
    say(str(write(FOLDER)))
    return 0
