"""The prompts of the bench: the demo's, by class, or a user's own file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..demo.scenes import Scene, parse_caption, unseen_scenes

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt and its class; `scene` is what the demo's detector is to look for, None for a user's prompt."""

    text: str
    kind: str
    scene: Scene | None = None


def read(path: Path, limit: int | None = None) -> list[Prompt]:
    """Prompts of a file, one a line; a line "# name" starts a class, of which at most `limit` are taken.

    Raises ValueError for a file without any.
    """
    prompts, kind, taken = [], "prompts", 0
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            kind, taken = line.lstrip("# "), 0
        elif line.strip() and (limit is None or taken < limit):
            prompts.append(Prompt(line.strip(), kind))
            taken += 1
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line, and a line such as # animals before a class of them")
    return prompts


JUDGED = 9100  # seed of scenes that nothing was tuned on
OBJECTS = (1, 2, 3, 0)  # of those scenes, in turn; one of four shows nothing but its background


def judged(count: int) -> list[Prompt]:
    """Scenes whose captions training never saw, that nothing was tuned on."""
    kinds = ("background", "one object", "two objects", "three objects")
    return [Prompt(scene.caption, kinds[len(scene.things)], scene) for scene in unseen_scenes(count, JUDGED, OBJECTS)]


PROFILED = ("a bowl of fruit on a table", "a narrow street after rain", "a sleeping dog", "mountains at dawn")
PROFILED_SCENES, PROFILED_SEED = 8, 1920


def profiled(demo: bool) -> list[str]:
    """What a model's profile is made with, and never judged: prompts, or captions of scenes for a demo model, which knows
    nothing else."""
    return [scene.caption for scene in unseen_scenes(PROFILED_SCENES, PROFILED_SEED, OBJECTS)] if demo else list(PROFILED)


def demo(limit: int | None = None) -> list[Prompt]:
    """The demo's own, with their scenes."""
    return [Prompt(p.text, p.kind, parse_caption(p.text)) for p in read(FOLDER / "demo.txt", limit)]
