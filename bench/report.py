"""Turn the bench's CSV files into a report in Markdown and its plots; `python run.py bench` ends with it."""

from __future__ import annotations

import csv
import platform
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch

from ..engine.trace import KINDS
from .curves import Advantage, Points, advantages

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

OURS = "Highlight Diffusion"
ABLATION, ALWAYS = "forecast alone", "always corrected"
OWN = (OURS, ABLATION, ALWAYS, "always shallow", "forecasts not revised", "interval")
SMALL = 0.2  # of the frame: the regime where the highlight is to earn its keep, named before tuning
FIGURES = (
    ("PSNR mean, dB", "psnr", False),
    ("PSNR worst, dB", "psnr", True),
    ("PSNR inside objects, mean, dB", "psnr_inside", False),
)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _complete(rows: list[Row]) -> list[Row]:
    """The rows of the prompts that most strengths were run on, and of the strengths that have them all: a run that was
    interrupted leaves others, which cannot be compared."""
    prompts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        prompts[row["method"], row["setting"]].add(row["prompt"])
    counted = Counter(frozenset(own) for own in prompts.values())
    common = max(counted, key=lambda own: (counted[own], len(own)), default=frozenset())
    return [row for row in rows if row["prompt"] in common and common <= prompts[row["method"], row["setting"]]]


class Data:
    """The records of one sampler and length."""

    def __init__(self, rows: list[Row], timings: list[Row]):
        rows = _complete(rows)
        self.rows = [row for row in rows if row["method"] != "dense"]
        self.dense = [row for row in rows if row["method"] == "dense"]
        self.kinds = list(dict.fromkeys(row["kind"] for row in rows))
        self.methods = list(dict.fromkeys(row["method"] for row in self.rows))
        pairs = defaultdict(list)
        for row in timings:
            pairs[row["method"], row["setting"]].append(float(row["dense_seconds"]) / float(row["seconds"]))
        self.seconds = {key: float(np.median(ratios)) for key, ratios in pairs.items()}

    def points(
        self, method: str, figure: str = "psnr", kinds: list[str] | None = None, wall: bool = False, small: bool = False
    ) -> Points | None:
        """A method's strengths by MACs, or those that were timed by wall clock; None where it has no complete strength.

        small: only pictures whose objects take at most `SMALL` of the frame.
        """
        cells: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        for row in self.rows:
            if row["method"] != method or (kinds and row["kind"] not in kinds):
                continue
            if small and not 0 < float(row["share"]) <= SMALL:
                continue
            value = float(row[figure])
            if np.isfinite(value) and (not wall or (method, row["setting"]) in self.seconds):
                cost = float(row["dense_macs"]) / max(float(row["macs"]), 1.0)
                ratio = self.seconds[method, row["setting"]] if wall else cost
                cells[row["setting"]][int(row["prompt"])] = (ratio, value)
        if not cells:
            return None
        prompts = sorted(set.intersection(*(set(cell) for cell in cells.values())))
        table = np.array([[cell[p] for p in prompts] for cell in cells.values()])
        if not table.size or not np.isfinite(table).all():
            return None
        return Points(method, tuple(cells), table[..., 0], table[..., 1])


def _summary(data: Data, kinds: list[str]) -> list[str]:
    lines = ["| method | setting | x cheaper | x faster | PSNR mean / worst | inside | border | SSIM mean / worst | "
             "objects right | skipped / partial / shallow, % |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in data.rows:
        if row["kind"] in kinds:
            groups[row["method"], row["setting"]].append(row)
    for (method, setting), rows in groups.items():
        column = lambda name, rows=rows: np.array([float(row[name]) for row in rows])  # noqa: E731
        mean = lambda name, column=column: _mean(column(name))  # noqa: E731
        total = sum(column(kind).sum() for kind in KINDS)
        share = lambda name, total=total, column=column: f"{100 * column(name).sum() / total:.0f}" if total else "-"  # noqa: E731
        wall = data.seconds.get((method, setting))
        lines.append(
            f"| {method} | {setting} | {column('dense_macs').sum() / column('macs').sum():.2f} | "
            f"{'-' if wall is None else f'{wall:.2f}'} | {mean('psnr')} / {column('psnr').min():.1f} | "
            f"{mean('psnr_inside')} | {mean('psnr_border')} | {column('ssim').mean():.4f} / {column('ssim').min():.4f} | "
            f"{column('right').sum():.0f} of {column('wanted').sum():.0f} | "
            f"{share('skipped')} / {share('partial')} / {share('shallow')} |"
        )
    return lines


def _mean(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{values.mean():.1f}" if len(values) else "-"


def _times(advantage: Advantage) -> str:
    """As told in tables; more faithful than any strength of ours is no number."""
    if not np.isfinite(advantage.times):
        return "more faithful than any"
    return f"{advantage.times:.2f} ({advantage.low:.2f} to {advantage.high:.2f})"


def _against(data: Data, ours: str, wall: bool, kinds: list[str]) -> list[str]:
    mine = data.points(ours, kinds=kinds, wall=wall)
    if mine is None:
        return []
    what = "wall clock" if wall else "cost"
    lines = [f"| peer | setting | x by {what} | PSNR | {ours} at that PSNR, times faster (95%) |", "|---|---|---|---|---|"]
    for method in data.methods:
        if method in OWN:
            continue
        peer = data.points(method, kinds=kinds, wall=wall)
        for a in advantages(mine, peer) if peer else []:
            lines.append(f"| {a.peer} | {a.setting} | {a.peer_ratio:.2f} | {a.fidelity:.1f} | {_times(a)} |")
    return lines


def _worth(data: Data) -> list[str]:
    """Partial evaluations against more dense ones, inside small objects: how many times cheaper at equal fidelity."""
    mine, other = (data.points(method, "psnr_inside", small=True) for method in (ALWAYS, ABLATION))
    if mine is None or other is None:
        return []
    lines = [
        f"### objects of at most {SMALL:.0%} of the frame, inside them ({mine.ratio.shape[1]} pictures)", "",
        f"| {ABLATION} | x cheaper | PSNR inside, mean / worst | {ALWAYS} at that mean, times cheaper (95%) |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for a in advantages(mine, other, (1.3, 4.0)):
        worst = other.fidelity[other.settings.index(a.setting)].min()
        lines.append(f"| {a.setting} | {a.peer_ratio:.2f} | {a.fidelity:.1f} / {worst:.1f} | {_times(a)} |")
    lines += ["", f"| {ALWAYS} | x cheaper | PSNR inside, mean / worst |", "|---|---|---|"]
    for i, setting in enumerate(mine.settings):
        ratio, fidelity = 1 / (1 / mine.ratio[i]).mean(), mine.fidelity[i]
        lines.append(f"| {setting} | {ratio:.2f} | {fidelity.mean():.1f} / {fidelity.min():.1f} |")
    return [*lines, ""]


def _plot(data: Data, title: str, kinds: list[str], path: Path) -> None:
    figure, axes = plt.subplots(1, len(FIGURES), figsize=(16, 5), layout="constrained")
    for axis, (label, name, worst) in zip(axes, FIGURES, strict=True):
        for method in data.methods:
            points = data.points(method, name, kinds)
            if points is None:
                continue
            ratio, fidelity = points.curve(worst=worst)
            own = method in (OURS, ALWAYS)
            axis.plot(ratio, fidelity, "o-" if own else "s--", label=method, linewidth=2.5 if own else 1, markersize=4)
        axis.set(xlabel="times cheaper than dense (MACs)", ylabel=label, xlim=(0.95, 4.0), ylim=(20, 70))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    plt.close(figure)


PUBLISHED = """
| method | published figure | model | why it is not run here |
|---|---|---|---|
| Diff-Pruning (Fang et al., NeurIPS 2023) | about half the FLOPs | DDPM, LDM | prunes and retrains the UNet |
| SnapFusion (Li et al., NeurIPS 2023) | a 512x512 picture in under 2 s on a phone | SD1.5 | another architecture, distilled |
| Spectral Diffusion (Yang et al., CVPR 2023) | 8 to 18 times less computation | LDM | another architecture, trained |
| SpeedUpNet (Chai et al., ECCV 2024) | over 10 times faster than 25 steps of DPM-Solver++ | SD1.5 | trains an adapter |
""".strip()  # as their abstracts give it, not measured here


def _gallery(data: Data, out: Path, name: str, path: Path, shown: int = 6) -> list[str]:
    """The worst pictures of our strengths, each beside the dense one; the lines that show them, none where we are not."""
    worst = {}
    for row in data.rows:
        if row["method"] == OURS and (row["setting"] not in worst or float(row["psnr"]) < float(worst[row["setting"]]["psnr"])):
            worst[row["setting"]] = row
    if not worst:
        return []
    cases = list(worst.items())[:shown]
    figure, axes = plt.subplots(2, len(cases), figsize=(2.4 * shown, 5), layout="constrained", squeeze=False)
    for (setting, row), (top, bottom) in zip(cases, axes.T, strict=True):
        for axis, label in ((top, "dense"), (bottom, f"{OURS} {setting}")):
            picture = out / "pictures" / name / label.replace(" ", "_") / f"{row['prompt']}.jpg"
            axis.imshow(plt.imread(picture))
            axis.set(xticks=[], yticks=[])
        top.set_title("dense", fontsize=8)
        bottom.set_title(f"{setting}: {float(row['psnr']):.1f} dB", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return ["### our worst pictures", "", f"![worst cases]({path.name})", ""]


def write(out: Path, into: Path, name: str, command: str) -> Path:
    """Report `name`.md and its pictures in `into`, from the CSV files in `out`."""
    rows, timings = read(out / "results.csv"), read(out / "timings.csv")
    into.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        "# Benchmarks", "", f"Made by `{command}` on {machine}. Fidelity is to the dense picture of the same seed, on decoded "
        "RGB; cost is multiply-accumulates executed; seconds are medians of alternating runs.", "",
    ]  # fmt: skip
    for sampler, steps in dict.fromkeys((row["sampler"], row["steps"]) for row in rows):
        own = lambda table, s=sampler, n=steps: [r for r in table if r["sampler"] == s and r["steps"] == n]  # noqa: E731
        data = Data(own(rows), own(timings))
        objects = [kind for kind in data.kinds if "object" in kind and "frame" not in kind] or data.kinds
        pictures = len({row["prompt"] for row in data.rows})
        lines += [f"## {sampler}, {steps} steps ({pictures} prompts)", ""]
        plot = into / f"{name}-{sampler}-{steps}.png"
        _plot(data, f"{sampler}, {steps} steps: {', '.join(objects)}", objects, plot)
        lines += [f"![curves]({plot.name})", ""]
        others = [kind for kind in data.kinds if kind not in objects]
        for heading, kinds in (("objects", objects), ("no object to look at", others)):
            tables = [_against(data, OURS, wall, kinds) for wall in (False, True)] if kinds else []
            found = [line for table in tables if len(table) > 2 for line in (*table, "")]
            lines += [f"### {heading}: {', '.join(kinds)}", "", *found] if found else []
        lines += _worth(data)
        for kind in data.kinds:
            lines += [f"### {kind}", "", *_summary(data, [kind]), ""]
        worst = into / f"{name}-{sampler}-{steps}-worst.png"
        lines += _gallery(data, out, f"{sampler}-{steps}", worst)
    lines += ["## Methods that need training, as published", "", PUBLISHED, ""]
    for heading, pattern in (("True shape", "shapes-*.md"), ("What each ingredient is worth", "ablation.md")):
        extras = [extra.read_text() for extra in sorted(out.glob(pattern))]
        lines += [f"## {heading}", "", *extras, ""] if extras else []
    if (redundancy := into / f"{name}-redundancy.png").exists():
        lines += ["## Redundancy of features", "", f"![redundancy]({redundancy.name})", ""]
    path = into / f"{name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path
