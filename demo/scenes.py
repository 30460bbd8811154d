"""Captioned scenes with exact answers: coloured shapes on textured backgrounds.

A scene is a small record; `caption` says it in words and `render` draws it, so the picture, the prompt and the
true object masks always agree. Everything is independent of resolution and aspect: places are fractions of the frame, lengths
are fractions of its shorter side.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace

import numpy as np

COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "yellow": (0.96, 0.82, 0.16),
    "green": (0.14, 0.66, 0.27),
    "blue": (0.16, 0.34, 0.88),
    "purple": (0.60, 0.20, 0.76),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": 0.12, "large": 0.17}
FRAME_FILLING = 0.45
# Radii that training draws, so that objects have 1.5% to 30% of a square frame. Alone in the middle there is room for more.
RADII = {"small": (0.075, 0.125), "large": (0.15, 0.18)}
ALONE = (0.15, 0.30)
POSITIONS = {
    "top left": (0.20, 0.20),
    "top": (0.20, 0.50),
    "top right": (0.20, 0.80),
    "left": (0.50, 0.20),
    "center": (0.50, 0.50),
    "right": (0.50, 0.80),
    "bottom left": (0.80, 0.20),
    "bottom": (0.80, 0.50),
    "bottom right": (0.80, 0.80),
}
BACKGROUNDS = {
    "gray": (0.50, 0.52, 0.54),
    "beige": (0.80, 0.73, 0.59),
    "navy": (0.13, 0.16, 0.29),
    "brown": (0.38, 0.29, 0.23),
    "teal": (0.27, 0.43, 0.44),
}
TEXTURES = ("plain", "striped", "dotted", "checked", "cloudy")
GAP = 0.01


@dataclass(frozen=True)
class Thing:
    """One object: the centre (y, x) in fractions of the frame, the radius of its shorter side."""

    size: str
    colour: str
    shape: str
    position: str
    radius: float
    centre: tuple[float, float]

    @property
    def phrase(self) -> str:
        if self.size == "giant":
            return f"a giant {self.colour} {self.shape} filling the frame"
        return f"a {self.size} {self.colour} {self.shape} at the {self.position}"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str
    texture: str
    seed: int

    @property
    def caption(self) -> str:
        ground = f"{self.texture} {self.background} background"
        if not self.things:
            return f"an empty {ground}"
        phrases = [thing.phrase for thing in self.things]
        listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        return f"{listed} on a {ground}"


def held_out(caption: str) -> bool:
    """True for the eighth of all captions that training never sees."""
    return zlib.crc32(caption.encode()) % 8 == 0


def sample_scene(rng: np.random.Generator, count: int | None = None, giant: bool = False) -> Scene:
    """Draw a scene with `count` objects (0 to 5); `giant` draws one object that fills the frame."""
    if count is None:
        kind = int(rng.choice(7, p=(0.05, 0.28, 0.30, 0.24, 0.06, 0.03, 0.04)))
        count, giant = (1, True) if kind == 6 else (kind, False)
    if not 0 <= count <= 5:
        raise ValueError(f"a scene has 0 to 5 objects, not {count}")
    things: list[Thing] = []
    while len(things) < count:
        thing = _sample_thing(rng, giant)
        if all(apart(thing, other) for other in things):
            things.append(thing)
    background, texture = rng.choice(list(BACKGROUNDS)), rng.choice(TEXTURES)
    return Scene(tuple(things), str(background), str(texture), int(rng.integers(2**31)))


def _sample_thing(rng: np.random.Generator, giant: bool) -> Thing:
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    if giant:
        return Thing("giant", colour, shape, "center", FRAME_FILLING, (0.5, 0.5))
    size, position = str(rng.choice(list(SIZES))), str(rng.choice(list(POSITIONS)))
    y, x = np.array(POSITIONS[position]) + rng.uniform(-0.02, 0.02, 2)
    return Thing(size, colour, shape, position, SIZES[size] * rng.uniform(0.94, 1.06), (float(y), float(x)))


def apart(a: Thing, b: Thing) -> bool:
    """Whether there is room between two objects."""
    reach = a.radius + b.radius + GAP
    return max(abs(a.centre[0] - b.centre[0]), abs(a.centre[1] - b.centre[1])) > reach


def resized(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene with the same caption whose objects have other radii, of those that `RADII` gives their sizes."""
    things: list[Thing] = []
    for number, thing in enumerate(scene.things):
        if thing.size not in RADII:
            return scene
        alone = len(scene.things) == 1 and (thing.size, thing.position) == ("large", "center")
        others = [*things, *scene.things[number + 1 :]]
        drawn = [replace(thing, radius=float(r)) for r in rng.uniform(*(ALONE if alone else RADII[thing.size]), 8)]
        things.append(next((t for t in drawn if all(apart(t, other) for other in others)), thing))
    return replace(scene, things=tuple(things))


Size = int | tuple[int, int]  # of a picture: the side of a square one, or height and width, in pixels


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (y, x) as fractions of the shorter side, each (height, width)."""
    height, width = _sides(size)
    y, x = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) / min(height, width) for n in (height, width)), indexing="ij")
    return y, x


def _placed(thing: Thing, size: Size) -> Thing:
    """An object with its centre in fractions of the shorter side."""
    sides = _sides(size)
    y, x = (c * n / min(sides) for c, n in zip(thing.centre, sides, strict=True))
    return replace(thing, centre=(y, x))


def _polygon(shape: str) -> np.ndarray:
    if shape == "triangle":
        return np.array([(-1.0, 0.0), (0.80, 1.0), (0.80, -1.0)])
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.08, 0.47)
        return np.stack([-reach * np.cos(angles), reach * np.sin(angles)], 1)
    arm = 0.34
    return np.array([(-1, -arm), (-1, arm), (-arm, arm), (-arm, 1), (arm, 1), (arm, arm), (1, arm), (1, -arm),
                     (arm, -arm), (arm, -1), (-arm, -1), (-arm, -arm)], dtype=float)  # fmt: skip


def signed_distance(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Distance to the outline of a unit shape centred on the origin, negative inside."""
    if shape == "circle":
        return np.hypot(y, x) - 1.0
    if shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) - 0.9
    points = _polygon(shape)
    nearest = np.full(y.shape, np.inf, dtype=np.float32)
    inside = np.zeros(y.shape, dtype=bool)
    for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        dy, dx = y1 - y0, x1 - x0
        along = np.clip(((y - y0) * dy + (x - x0) * dx) / (dy * dy + dx * dx), 0, 1)
        nearest = np.minimum(nearest, np.hypot(y - y0 - along * dy, x - x0 - along * dx))
        if dy:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * dx / dy)
    return np.where(inside, -nearest, nearest)


def coverage(thing: Thing, size: Size) -> np.ndarray:
    """How much of each pixel the object covers, float (height, width) in 0..1, edges antialiased."""
    return _coverage_at(_placed(thing, size), *grid(size), min(_sides(size)))


def _coverage_at(thing: Thing, y: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """The same of a placed object for some pixels, by their centres; `size` of them make the shorter side."""
    r = thing.radius
    distance = signed_distance(thing.shape, (y - thing.centre[0]) / r, (x - thing.centre[1]) / r) * r
    return np.clip(0.5 - distance * size, 0, 1)


def object_masks(scene: Scene, size: Size) -> np.ndarray:
    """True masks of the objects, bool (count, height, width)."""
    return np.stack([coverage(t, size) > 0.5 for t in scene.things]) if scene.things else np.zeros((0, *_sides(size)), bool)


def _texture(kind: str, rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A pattern in about -1..1 with features wide enough to survive an 8x smaller latent."""
    phase_y, phase_x = rng.uniform(0, 1, 2)
    if kind == "striped":
        return np.clip(3 * np.sin(2 * np.pi * (5 * (x + y) + phase_x)), -1, 1)
    if kind == "dotted":
        dy, dx = (y * 6 + phase_y) % 1 - 0.5, (x * 6 + phase_x) % 1 - 0.5
        return np.clip((0.28 - np.hypot(dy, dx)) * 20, -1, 1)
    if kind == "checked":
        return np.clip(4 * np.sin(2 * np.pi * (3 * y + phase_y)) * np.sin(2 * np.pi * (3 * x + phase_x)), -1, 1)
    if kind == "cloudy":
        waves = rng.normal(size=(6, 2)) * 2.2
        shifts = rng.uniform(0, 2 * np.pi, 6)
        return sum(np.sin(2 * np.pi * (wy * y + wx * x) + s) for (wy, wx), s in zip(waves, shifts, strict=True)) / 2.5
    return np.zeros_like(y)


def render(scene: Scene, size: Size = 256) -> np.ndarray:
    """Draw a scene: float32 RGB (height, width, 3) in 0..1."""
    rng = np.random.default_rng(scene.seed)
    y, x = grid(size)
    light = 1 + 0.14 * _texture(scene.texture, rng, y, x) + 0.10 * (0.5 - y)
    image = np.array(BACKGROUNDS[scene.background], dtype=np.float32) * light[..., None]
    for thing in scene.things:
        _draw(_placed(thing, size), image, y, x)
    return np.clip(image, 0, 1).astype(np.float32)


def _draw(thing: Thing, image: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
    """Paint a placed object and its shadow into `image`, touching only the window around it."""
    size, r, (cy, cx) = min(image.shape[:2]), thing.radius, thing.centre
    near = tuple(slice(max(0, int((c - 1.1 * r - 0.06) * size)), int((c + 1.1 * r + 0.08) * size) + 1) for c in (cy, cx))
    y, x, window = y[near], x[near], image[near]
    shadow = signed_distance(thing.shape, (y - cy - 0.02) / r, (x - cx - 0.012) / r) * r
    window *= (1 - 0.45 * np.clip(0.5 - shadow * 22, 0, 1))[..., None]
    shade = 1 + 0.10 * np.clip((cy - y) / r, -1, 1)
    cover = _coverage_at(thing, y, x, size)[..., None]
    window[...] = window * (1 - cover) + np.array(COLOURS[thing.colour], dtype=np.float32) * shade[..., None] * cover


def parse_caption(caption: str) -> Scene:
    """The scene a caption asks for, with nominal radii and centres. Raises ValueError for other prompts."""
    match = re.fullmatch(rf"(?:an empty|(.*) on a) ({'|'.join(TEXTURES)}) ({'|'.join(BACKGROUNDS)}) background", caption)
    if not match:
        raise ValueError(f'"{caption}" is no caption of a demo scene')
    phrases = re.split(r", | and ", match[1]) if match[1] else []
    return Scene(tuple(_parse_thing(phrase) for phrase in phrases), match[3], match[2], 0)


def _parse_thing(phrase: str) -> Thing:
    what = rf"a (\w+) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    match = re.fullmatch(rf"{what} (?:at the ({'|'.join(POSITIONS)})|filling the frame)", phrase)
    if not match or (match[1] not in SIZES and match[1] != "giant"):
        raise ValueError(f'"{phrase}" describes no object of a demo scene')
    position = match[4] or "center"
    radius = SIZES.get(match[1], FRAME_FILLING)
    return Thing(match[1], match[2], match[3], position, radius, POSITIONS[position])


def training_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """`count` scenes with captions that training may see, and objects of all radii."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = resized(sample_scene(rng), rng)
        if not held_out(scene.caption):
            scenes.append(scene)
    return scenes


def unseen_scenes(count: int, seed: int, objects: tuple[int, ...] = (1, 2, 3)) -> list[Scene]:
    """`count` scenes whose captions training never saw, their numbers of objects in turn."""
    rng, scenes = np.random.default_rng(seed), []
    while len(scenes) < count:
        scene = sample_scene(rng, objects[len(scenes) % len(objects)])
        if held_out(scene.caption):
            scenes.append(scene)
    return scenes
