"""What single gaps cost, expected and measured: `python run.py gaps`.

In an otherwise dense run of Euler's method one gap is forecast. Measured is the mean square by which the latent that comes out
is off, of each scene; expected what `engine.placement.errors` makes of the bundled profile.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ..demo.load import DENOISERS, encode_prompt, load_plain
from ..demo.plain import euler, sample
from ..demo.plain_flow import plain_class
from ..demo.scenes import unseen_scenes
from ..engine.config import HighlightConfig
from ..engine.placement import plan
from ..engine.placement.context import FORECAST, Context, PlannedStep
from ..engine.placement.errors import ErrorModel
from ..engine.prediction.forecast import prediction_type
from ..engine.prediction.response import impulse_response
from ..engine.profile import bundled
from ..tools.console import say
from ..tools.server import PACK
from .demo import steps_and_cfg
from .fidelity import DECILE
from .prompts import OBJECTS

SEED = 6161  # of scenes and noise; `tuning.WIDEST` was chosen on 16 scenes of it, among others
DENSE = PlannedStep("dense", "outside the gap")


@contextmanager
def forecasting(forecast: Collection[int]) -> Iterator[None]:
    """While this holds, plans forecast these steps, and all others are dense."""

    def make_plan(context: Context) -> list[PlannedStep]:
        return [FORECAST if i in forecast else DENSE for i in range(context.steps)]

    with mock.patch.object(plan, "make_plan", make_plan):
        yield


class Bench:
    """Scenes in one batch on a demo model, and their dense run."""

    def __init__(self, kind: str, side: int, steps: int, count: int, seed: int):
        network, text, self.vae = load_plain(kind)
        self.scenes = unseen_scenes(count, seed, OBJECTS)
        contexts = torch.cat([encode_prompt(text, scene.caption) for scene in self.scenes])
        self.model = plain_class(kind)(network, contexts, encode_prompt(text, ""))
        self.noise = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))
        self.steps, self.cfg = steps, steps_and_cfg(kind)[1]
        sigmas = list(self.model.sigmas(steps))
        prediction = prediction_type(False, axis=self.model.axis)
        response = impulse_response(lambda answer, x: euler(answer, x, sigmas), prediction)
        self.errors = ErrorModel(tuple(sigmas[:-1]), bundled(self.model.axis), prediction, response)
        self.dense = self._run(HighlightConfig(enabled=False))

    def _run(self, config: HighlightConfig) -> Tensor:
        return sample(self.model, self.noise, self.steps, self.cfg, config)[0]

    def latents(self, forecast: Collection[int]) -> Tensor:
        """What comes out where these steps are forecast and all others dense."""
        with forecasting(forecast):
            return self._run(HighlightConfig(correct="never", shallow="never"))

    def off(self, latents: Tensor) -> np.ndarray:
        """The mean square (scenes,) by which latents are off the dense ones."""
        return (latents - self.dense).square().mean((1, 2, 3)).double().numpy()

    def rows(self, length: int, every: int) -> Iterator[str]:
        """A row of the table for gaps of a length, from every so many steps on."""
        for start in range(1, self.steps - length + 1, every):
            own = self.off(self.latents(range(start + 1, start + length)))
            expected = float(self.errors.costs[start, 0, length - 1])
            figures = [expected, np.exp(np.log(own).mean()), own.mean(), np.percentile(own, 100 - DECILE), own.max()]
            told = " | ".join(f"{value:.1e}" for value in figures)
            yield f"| {start} to {start + length} | {self.errors.sigmas[start]:.2f} | {told} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py gaps", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(DENOISERS), default="mmdit")
    parser.add_argument("--side", type=int, default=32, help="of the square latents")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2], help="of the gaps, in steps")
    parser.add_argument("--every", type=int, default=2, help="gaps begin at every so many steps")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "gaps")
    args = parser.parse_args()
    bench = Bench(args.model, args.side, args.steps, args.scenes, args.seed)
    lines = ["| gap | sigma | expected | geometric mean | mean | 90th percentile | worst |", "|---|" + "---|" * 6]
    for length in args.lengths:
        for row in bench.rows(length, args.every):
            lines.append(row)
            say(row)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.model}_{args.side}_{args.steps}.md").write_text("\n".join(lines) + "\n")
    return 0
