"""The embedded demo's data: scenes of real handwritten digits, seen through eight cameras.

A scene is a 32 x 32 picture with up to four coloured digits, one in each corner, from scikit-learn's copy of the UCI
handwritten digits. Its caption says what is where and how it looks. Every scene is a pure function of its pool, camera,
number and seed. The pools share no digit: ``tower`` is what the embedded vision tower was trained on, ``train`` what
the clients have, ``val`` what methods are tuned by, ``test`` what they are reported on.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from fedcmp.data.records import Sample
from fedcmp.errors import ConfigError, nearest
from fedcmp.seeding import numpy_rng
from fedcmp.types import Scalars

SIZE, CELL = 32, 16
PLACES = ("top left", "top right", "bottom left", "bottom right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (230, 60, 50), "green": (60, 190, 80), "blue": (80, 120, 255), "orange": (245, 160, 40)}
_PAINT = {name: np.array(colour, np.float32) for name, colour in COLOURS.items()}
CAMERAS = {
    "plain": "a plain picture",
    "paper": "a picture on white paper",
    "blurred": "a blurred picture",
    "faint": "a faint picture",
    "noisy": "a noisy picture",
    "framed": "a framed picture",
    "tilted": "a tilted picture",
    "striped": "a striped picture",
}
POOLS = {"tower": (0, 700), "train": (700, 1400), "val": (1400, 1600), "test": (1600, 1797)}
"""Which of the 1,797 digits each pool may use, after one fixed shuffle."""


class Scene(NamedTuple):
    """One scene; ``render`` draws it."""

    id: str
    camera: str
    sprites: tuple[int, ...]
    """Which digit image is in each of the four places; -1: none."""
    digits: tuple[int, ...]
    """What it shows, 0 to 9; -1: none."""
    colours: tuple[str, ...]
    """Its colour; empty: none."""
    seed: int
    """The stream of its jitter and noise."""

    @property
    def caption(self) -> str:
        """What is where and how it looks.

        >>> Scene("x", "faint", (5, -1, -1, 9), (3, -1, -1, 7), ("red", "", "", "blue"), 0).caption
        'a faint picture of a red three at the top left and a blue seven at the bottom right'
        """
        parts = [
            f"{'an' if colour == 'orange' else 'a'} {colour} {DIGITS[digit]} at the {place}"
            for place, digit, colour in zip(PLACES, self.digits, self.colours, strict=True)
            if digit >= 0
        ]
        return f"{CAMERAS[self.camera]} of {' and '.join(parts)}"


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, list[int]]:
    """All digit images ``[1797, 8, 8]`` in [0, 1] and what they show, in one fixed shuffle."""
    found = find_spec("sklearn")  # its file is read as load_digits does, without a second for importing sklearn
    assert found and found.origin  # noqa: PT018
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    table = table[np.random.default_rng(1797).permutation(len(table))]
    return (table[:, :-1].reshape(-1, 8, 8) / 16.0).astype(np.float32), table[:, -1].astype(int).tolist()


def make_scene(pool: str, camera: str, index: int, seed: int = 0) -> Scene:
    """The ``index``-th scene of a camera: one to four digits, drawn from the pool.

    Args:
        pool: a key of POOLS.
        camera: a key of CAMERAS.
        index: counts from 0.
        seed: the run's seed.
    """
    rng = numpy_rng(seed, "scene", pool, camera, index)
    first, last = POOLS[pool]
    count = int(rng.integers(1, 5))
    places = rng.permutation(4)[:count].tolist()
    # drawn one by one: NumPy takes longer to find the shape of four than to draw them
    drawn = [int(rng.integers(first, last)) for _ in PLACES]
    colour = [int(rng.integers(0, len(COLOURS))) for _ in PLACES]
    shown, names = _digits()[1], tuple(COLOURS)
    sprites, digits, colours = [-1] * 4, [-1] * 4, [""] * 4
    for place in places:
        sprites[place], digits[place], colours[place] = drawn[place], shown[drawn[place]], names[colour[place]]
    name, stream = f"{pool}-{camera}-{index}", int(rng.integers(0, 2**31))
    return Scene(name, camera, tuple(sprites), tuple(digits), tuple(colours), stream)


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 32 x 32."""
    rng, camera = np.random.default_rng(scene.seed), scene.camera
    ground: np.ndarray = np.full((SIZE, SIZE, 3), 245 if camera == "paper" else 12, np.float32)
    if camera == "striped":
        ground[:, int(rng.integers(0, 4)) :: 4] += 60
    for place, (sprite, colour) in enumerate(zip(scene.sprites, scene.colours, strict=True)):
        if sprite < 0:
            continue
        size = int(rng.integers(13, 16))
        ink = _ink(sprite, size, _angle(rng)) if camera == "tilted" else _upright(sprite, size)
        row, column = divmod(place, 2)
        top = row * CELL + int(rng.integers(0, CELL - len(ink) + 1))
        left = column * CELL + int(rng.integers(0, CELL - len(ink) + 1))
        window = ground[top : top + len(ink), left : left + len(ink)]
        window += ink * (_PAINT[colour] - window)
    if camera == "faint":
        ground = 110 + 0.3 * (ground - 110)
    if camera == "noisy":
        ground = ground + rng.normal(0, 30, ground.shape)
    if camera == "framed":
        ground[:2], ground[-2:], ground[:, :2], ground[:, -2:] = 200, 200, 200, 200
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(1.0)) if camera == "blurred" else picture


def _angle(rng: np.random.Generator) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(20, 35))


def _ink(sprite: int, size: int, angle: float = 0.0) -> np.ndarray:
    """How much of each pixel a digit covers, ``[size, size, 1]`` in [0, 1], turned by an angle in degrees."""
    image = Image.fromarray((_digits()[0][sprite] * 255).astype(np.uint8))
    if angle:
        image = image.resize((16, 16), Image.Resampling.BILINEAR).rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)[..., None] / 255


_upright = lru_cache(maxsize=None)(_ink)  # most scenes are of digits that others have, too


_NAMED = re.compile(rf"({'|'.join(DIGITS)}) at the ({'|'.join(PLACES)})")


def named_digits(caption: str) -> dict[str, int]:
    """What a caption says is where.

    >>> named_digits("a faint picture of a red three at the top left and a blue seven at the bottom right")
    {'top left': 3, 'bottom right': 7}
    """
    return {place: DIGITS.index(digit) for digit, place in _NAMED.findall(caption)}


def digit_accuracy(captions: Sequence[str], references: Sequence[str]) -> float:
    """The share of the references' digits that the captions name at the right place, in [0, 1].

    >>> digit_accuracy(["a red three at the top left"], ["a red three at the top left and a red one at the top right"])
    0.5
    """
    wanted = [named_digits(reference).items() for reference in references]
    hits = sum(len(named_digits(caption).items() & own) for caption, own in zip(captions, wanted, strict=True))
    return hits / max(1, sum(map(len, wanted)))


class SceneSource:
    """Scenes as a ``Source``, one domain per camera.

    A scene's label lists all its digits; its topic is the first of them, as its caption reads, with any camera.

    Args:
        num: scenes of each camera, by split.
        cameras: the cameras to use; empty: all.
        seed: the stream of the scenes.
    """

    def __init__(self, num: dict[str, int], cameras: Sequence[str] = (), seed: int = 0) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise ConfigError(f"data.domains: no camera {camera!r}; {nearest(camera, CAMERAS)}")
        self.left_out = Counter[str]()
        self._scenes: dict[str, Scene] = {}
        self._samples: dict[str, list[Sample]] = {split: [] for split in num}
        for split, camera in itertools.product(num, cameras or CAMERAS):
            for scene in (make_scene(split, camera, index, seed) for index in range(num[split])):
                self._scenes[scene.id] = scene
                label = " ".join(str(digit) for digit in scene.digits if digit >= 0)
                place, origin, topic = f"{scene.id}.png", f"scene {scene.id}", f"digit {label[0]}"
                self._samples[split].append(Sample(scene.id, place, scene.caption, camera, label, origin, topic))

    def samples(self, split: str) -> list[Sample]:
        return self._samples[split]

    def digest(self, sample: Sample) -> str:
        """Of what the picture is drawn from, without drawing it."""
        return hashlib.sha256(repr(self._scenes[sample.id]).encode()).hexdigest()

    def place(self, sample: Sample) -> str:
        return sample.image

    def image(self, sample: Sample) -> Image.Image:
        return render(self._scenes[sample.id])

    def score(self, captions: Sequence[str], samples: Sequence[Sample]) -> Scalars:
        """``digits_named``: digits named at the right place; ``digits_by_chance``: the same with others' captions."""
        references = [sample.caption for sample in samples]
        others = [*captions[len(captions) // 2 :], *captions[: len(captions) // 2]]
        named, chance = digit_accuracy(captions, references), digit_accuracy(others, references)
        return {"digits_named": named, "digits_by_chance": chance}

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The digits, as the caption names them."""
        return tuple(dict.fromkeys(DIGITS[digit] for digit in named_digits(sample.caption).values()))

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        return sample.caption.replace(f" {present} at ", f" {absent} at ", 1)
