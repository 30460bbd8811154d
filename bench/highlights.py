"""How well the highlight fits what the prompt names, evaluation by evaluation, beside other ways to draw it.

`python run.py highlights` samples scenes that nothing was tuned on, in plain torch, every evaluation dense, and compares each
evaluation's highlight with the objects of the finished picture.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..demo.detector import MIN_AREA, colour_map
from ..demo.load import DENOISERS, encode_prompt, load_plain
from ..demo.mmdit import JointBlock
from ..demo.plain_flow import CAPTURED_BLOCKS, plain_class
from ..demo.scenes import COLOURS, POSITIONS, SHAPES, Scene, sample_scene, unseen_scenes
from ..demo.text import END, LENGTH, START, TOKENS, tokenize
from ..demo.unet import CrossAttention
from ..demo.vae import picture_of
from ..engine.config import HighlightConfig
from ..engine.job import Job
from ..engine.region.heatmap import HeatmapAccumulator, TokenWeights, combine, grid_of, normalised
from ..engine.region.refinement import otsu, word_highlighted
from ..engine.region.regions import UserMasks
from ..engine.region.tracking import RegionTracker
from ..engine.trace import Evaluation
from ..tools.console import say
from ..tools.server import PACK

STEPS, CFG, CELL = 20, 3.0, 8  # pixels of a latent's cell
JUDGED, TUNED = 9001, 7001  # seeds of the scenes: those that are judged, and those that constants were found on
SHOWN = (3, 6, 10, 20)  # evaluations in the table, counted from 1
FIRST_COUNTED = 3  # evaluations from here on make the means
COMPARED = 10  # of the backgrounds, on which the other ways are tried too
NO_HIGHLIGHT = 0.05  # share of the frame under which a highlight of a mere background is none
HALF = 0.5


@dataclass
class Heard:
    """What one evaluation's attentions said of the positive stream. cross: (tokens, h, w) of every layer, softmax over the
    text, fine and coarse. affinities: (cells, cells) of self-attentions on half the latent's grid."""

    cross: list[Tensor] = field(default_factory=list)
    affinities: list[Tensor] = field(default_factory=list)


@contextmanager
def hearing(kind: str, frame: tuple[int, int]) -> Iterator[Heard]:
    """While this holds, every attention of the demo model of a kind is written down."""
    heard, owner = Heard(), JointBlock if kind == "mmdit" else CrossAttention
    own, half = owner.attend, (frame[0] // 2, frame[1] // 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        queries, keys = q[0].float(), k[0].float()
        if kind == "mmdit":
            queries, texts, pictures = queries[:, LENGTH:], keys[:, :LENGTH], keys[:, LENGTH:]
        else:
            texts = pictures = keys
        scale = q.shape[-1] ** -0.5
        grid = grid_of(queries.shape[1], *frame)
        assert grid is not None, f"{queries.shape[1]} tokens are no level of a frame {frame}"
        if kind == "mmdit" or keys.shape[1] == LENGTH:
            heard.cross.append((queries @ texts.transpose(-1, -2) * scale).softmax(-1).mean(0).T.unflatten(-1, grid))
        if grid == half and (kind == "mmdit" or keys.shape[1] != LENGTH):
            heard.affinities.append((queries @ pictures.transpose(-1, -2) * scale).softmax(-1).mean(0))
        return own(q, k, v, *mask)

    owner.attend = staticmethod(attend)
    try:
        yield heard
    finally:
        owner.attend = staticmethod(own)


class Ways:
    """Ways to draw a highlight, each a small entry by its description, fed evaluation by evaluation; bool (H, W) each."""

    def __init__(self, kind: str, frame: tuple[int, int], caption: str):
        self.kind, self.frame, self.half = kind, frame, (frame[0] // 2, frame[1] // 2)
        self.tracker = RegionTracker(HighlightConfig(max_area=1.0), frame, 1, lambda boxes: (), UserMasks())
        tokens = tokenize(caption).tolist()
        self.content = torch.tensor([token not in (START, END) for token in tokens])
        things = {TOKENS[word] for word in (*COLOURS, *SHAPES)}
        self.named = torch.tensor([token in things for token in tokens])
        phrases = {
            f"{tokens[i]} {tokens[i + 1]}": (i, i + 1) for i in range(len(tokens) - 1)
            if tokens[i] in {TOKENS[c] for c in COLOURS} and tokens[i + 1] not in (START, END)
        }  # fmt: skip
        self.words = TokenWeights((1.0,) * len(tokens), words=tuple(phrases.items()))
        self.phrases: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def draw(self, heard: Heard, accumulator: Any, guide: Tensor) -> dict[str, Tensor]:
        """The highlights of one evaluation. accumulator: what the pack captured. guide: the denoised latent. Where nothing else
        was heard, there is the pack's alone."""
        accumulator.weights = dict.fromkeys(accumulator.weights, self.words)
        reading = self.tracker.read(accumulator, guide)
        self.tracker.take(reading)
        highlight, _ = self.tracker.aim(reading)
        self.phrases = {name: word_highlighted(heat[0], HighlightConfig.threshold) for name, heat in reading.words.items()}
        if not heard.cross:
            return {"this pack": highlight[0]}
        unrefined = reading.unfiltered[0, 0]
        fine = self._mean(heard.cross, self.half)
        spread = (torch.stack(heard.affinities).mean(0) @ self._first_map(heard).flatten()).view(self.half)
        return {
            "this pack": highlight[0],
            "this pack, not refined by the latent": unrefined >= otsu(unrefined.numpy()),
            "first edition: a 3x3 mean above .6": self._first_edition(heard),
            "DAAM: all layers and evaluations, above .4": self._daam(heard),
            "AccelAes: the hotter half, blurred": self._accelaes(fine),
            "spread by self-attention (DiffSegmenter, OVAM), Otsu": self._above(spread, otsu(spread.numpy())),
        }

    def _above(self, heat: Tensor, level: float) -> Tensor:
        """Cells of half the latent's grid above a level, on the latent's grid."""
        return F.interpolate((heat >= level)[None, None].float(), self.frame)[0, 0] > HALF

    def _mean(self, layers: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The content words' mean over layers (h, w), stretched to 0..1."""
        maps = [F.interpolate(m[None, self.content], size, mode="bicubic")[0].mean(0) for m in layers]
        return normalised(torch.stack(maps).mean(0))

    def _first_map(self, heard: Heard) -> Tensor:
        """The heatmap of the first edition: middle resolutions of a UNet, middle blocks of a transformer."""
        layers = heard.cross
        if self.kind == "mmdit":
            layers = [layers[block] for block in CAPTURED_BLOCKS]
        else:
            layers = [m for m in layers if self.frame[0] // m.shape[-2] in (2, 4)]
        sized = [F.interpolate(m[None], self.half, mode="bilinear", antialias=True) for m in layers]
        return combine(torch.stack(sized).sum(0))[0, 0]

    def _first_edition(self, heard: Heard) -> Tensor:
        newest = self._first_map(heard)
        count = float(self.sums.get("captures", torch.zeros(()))) + 1
        mean = self.sums["first"] = newest if count == 1 else self.sums["first"].lerp(newest, max(0.2, 1 / count))
        self.sums["captures"] = torch.tensor(count)
        return self._above(F.avg_pool2d(F.pad(mean[None, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0, 0], 0.6)

    def _daam(self, heard: Heard) -> Tensor:
        """Tang et al., "What the DAAM", 2023: maps of all layers, heads and evaluations so far, bicubically enlarged and
        summed, of every word by itself, above .4 of its maximum; here the union over the words that name objects."""
        if not self.named.any():
            return torch.zeros(self.frame, dtype=torch.bool)
        maps = [F.interpolate(m[None, self.named], self.frame, mode="bicubic")[0] for m in heard.cross]
        total = self.sums["daam"] = torch.stack(maps).sum(0) + self.sums.get("daam", torch.zeros(()))
        return (total >= 0.4 * total.amax((-2, -1), keepdim=True)).any(0)

    def _accelaes(self, heat: Tensor) -> Tensor:
        """AccelAes, 2026: content words' attention stretched to 0..1 and blurred, its hotter half; none where it is flat."""
        if float(heat.std()) < 0.12:
            return torch.zeros(self.frame, dtype=torch.bool)
        blurred = torch.from_numpy(ndimage.gaussian_filter(heat.numpy(), 1.0))
        return self._above(blurred, float(blurred.quantile(HALF)))


def objects_of(picture: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The colours and the cells of a picture's objects, as the detector finds them: those that are at least half covered."""
    colours, found = colour_map(picture), []
    for index, colour in enumerate(COLOURS):
        labels, count = ndimage.label(ndimage.binary_opening(colours == index, iterations=2))
        for number in range(1, count + 1):
            mask = labels == number
            if mask.mean() >= MIN_AREA:
                rows, columns = (n // CELL for n in mask.shape)
                found.append((colour, mask.reshape(rows, CELL, columns, CELL).mean((1, 3)) >= HALF))
    return found


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((found & truth).sum() / max((found | truth).sum(), 1))


class Score:
    """How one way did, over scenes and evaluations."""

    def __init__(self) -> None:
        self.ious: dict[int, list[float]] = defaultdict(list)
        self.precisions: list[float] = []
        self.recalls: list[float] = []
        self.held: list[float] = []
        self.backgrounds: list[bool] = []
        self.missed: dict[int, int] = defaultdict(int)  # objects by evaluation
        self.objects = 0

    def add(self, drawn: Sequence[np.ndarray], objects: list[np.ndarray]) -> None:
        """Take up the highlights of one run, of each evaluation from the second on."""
        counted = list(enumerate(drawn, 2))
        if not objects:
            self.backgrounds.append(all(mask.mean() < NO_HIGHLIGHT for n, mask in counted if n >= FIRST_COUNTED))
            return
        truth = np.logical_or.reduce(objects)
        self.objects += len(objects)
        for number, mask in counted:
            self.ious[number].append(iou(mask, truth))
            recalls = [float((mask & own).sum() / own.sum()) for own in objects]
            self.missed[number] += sum(recall < HALF for recall in recalls)
            if number >= FIRST_COUNTED:
                self.recalls += recalls
                self.precisions.append(float((mask & truth).sum() / max(mask.sum(), 1)))
        self.held += [iou(a, b) for a, b in zip(drawn[1:], drawn[2:], strict=False)]

    def row(self) -> str:
        """The cells of the table."""
        later = [value for number, values in self.ious.items() if number >= FIRST_COUNTED for value in values]
        missed = [count for number, count in self.missed.items() if number >= FIRST_COUNTED]
        cells = [f"{statistics.fmean(self.ious[n]):.2f}" for n in SHOWN]
        means = (statistics.fmean(values) for values in (self.precisions, self.recalls, missed, self.held))
        precision, recall, lost, held = means
        cells += [f"**{statistics.fmean(later):.2f}**", f"{np.quantile(later, 0.1):.2f}", f"{precision:.2f}"]
        cells += [f"{recall:.2f}", f"{lost:.1f} of {self.objects}", f"{held:.2f}"]
        return " | ".join([*cells, f"{sum(self.backgrounds)} of {len(self.backgrounds)}"])


def scenes_of(count: int, backgrounds: int, seed: int) -> list[Scene]:
    """Scenes that training never saw, and such without objects."""
    rng = np.random.default_rng(seed)
    return [*unseen_scenes(count, seed, (1, 2, 3)), *(sample_scene(rng, 0) for _ in range(backgrounds))]


def run(
    kind: str, frame: tuple[int, int], scenes: Sequence[Scene], seed: int, alone: bool
) -> tuple[dict[str, Score], list[float]]:  # fmt: skip
    """The scores of every way, or of the pack's alone, and how well the masks of phrases such as "red circle" fit."""
    network, text, vae = load_plain(kind)
    negative, scores, words = encode_prompt(text, ""), defaultdict(Score), []
    backgrounds = [number for number, scene in enumerate(scenes) if not scene.things]
    things = {number for number, scene in enumerate(scenes) if scene.things}
    compared = set() if alone else things | set(backgrounds[:COMPARED])
    for number, scene in enumerate(scenes):
        model, ways = plain_class(kind)(network, encode_prompt(text, scene.caption), negative), Ways(kind, frame, scene.caption)
        sigmas, drawn, phrases = model.sigmas(STEPS), defaultdict(list), []
        x = model.noised(torch.randn(1, 4, *frame, generator=torch.Generator().manual_seed(seed * 1000 + number)), sigmas[0])
        with torch.inference_mode():
            for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
                accumulator = HeatmapAccumulator() if step else None
                with hearing(kind, frame) if number in compared else nullcontext(Heard()) as heard:
                    outputs = model.do(Job(Evaluation(step, step, sigma, "dense", "", 1.0), capture=accumulator), x)
                if step:
                    for name, mask in ways.draw(heard, accumulator, outputs[0]).items():
                        drawn[name].append(mask.numpy())
                    phrases.append(ways.phrases)
                denoised = outputs[1] + CFG * (outputs[0] - outputs[1])
                x = x + (x - denoised) / sigma * (following - sigma)
            picture = picture_of(vae, x).numpy()
        objects = objects_of(picture)
        for name, masks in drawn.items():
            scores[name].add(masks, [mask for _, mask in objects])
        words += [iou(found.numpy(), own) for at in phrases[FIRST_COUNTED - 2 :] for found, own in _pairs(scene, at, objects)]
        sys.stdout.write(f"\r  {number + 1}/{len(scenes)} ")
        sys.stdout.flush()
    sys.stdout.write("\n")
    return scores, words


def _pairs(
    scene: Scene, phrases: dict[str, Tensor], objects: list[tuple[str, np.ndarray]]
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The mask of each phrase that names one object alone, and that object's cells, where it was drawn."""
    for thing in scene.things:
        same = [other for other in scene.things if (other.colour, other.shape) == (thing.colour, thing.shape)]
        wanted = np.array(POSITIONS[thing.position])
        for colour, mask in objects:
            centre = (np.argwhere(mask).mean(0) + HALF) / mask.shape
            if len(same) == 1 and colour == thing.colour and np.abs(centre - wanted).max() < 0.14:
                yield phrases[f"{TOKENS[thing.colour]} {TOKENS[thing.shape]}"], mask


HEAD = [
    *(f"evaluation {n}" for n in SHOWN), f"mean from the {FIRST_COUNTED}rd on", "worst decile", "precision",
    "recall of an object", "objects half missed", "the next one's", "backgrounds without",
]  # fmt: skip


def table(kind: str, frame: tuple[int, int], scenes: int, backgrounds: int, seed: int, alone: bool) -> str:
    """The measure of one model and size, as markdown."""
    scores, words = run(kind, frame, scenes_of(scenes, backgrounds, seed), seed, alone)
    lines = [f"### {kind}, {frame[0]}x{frame[1]} cells, {scenes} scenes of seed {seed}", "",
             f"| | {' | '.join(HEAD)} |", "|---|" + "---|" * len(HEAD)]  # fmt: skip
    lines += [f"| {name} | {score.row()} |" for name, score in scores.items()]
    told = f"{statistics.fmean(words):.2f} over {len(words)} masks" if words else "none to be measured"
    return "\n".join(
        [*lines, "", f'Masks of phrases such as "red circle" and their own object, intersection over union: {told}.', ""]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py highlights", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*DENOISERS, "second"), default="unet")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--backgrounds", type=int, default=100, help="prompts without objects")
    parser.add_argument("--size", type=int, nargs=2, default=(32, 32), metavar=("H", "W"), help="latent cells; multiples of 8")
    parser.add_argument("--seed", type=int, default=JUDGED, help=f"of the scenes; constants were found on {TUNED}")
    parser.add_argument("--alone", action="store_true", help="leave out the other ways to draw it, which takes half the time")
    parser.add_argument("--out", type=str, default=str(PACK / "out" / "highlights"))
    args = parser.parse_args()
    if any(side % 8 for side in args.size):
        raise SystemExit(f"--size is {args.size[0]} {args.size[1]}; both must be multiples of 8")
    report = table(args.model, tuple(args.size), args.scenes, args.backgrounds, args.seed, args.alone)
    say(report)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{args.model}_{args.size[0]}x{args.size[1]}_{args.seed}.md").write_text(report)
    return 0
