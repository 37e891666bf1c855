"""The study's eight domains, each from a clone of its source: pictures, and captions by rule.

Every choice is a hash, so that records do not depend on the machine: SHA-1 of a name, as an integer, modulo the number
of choices. Of how pictures were reduced only size and quality are known; filter and turning are the likeliest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES: dict[str, tuple[str, ...]] = {
    "clothing": ("a photo of {}.", "{} photographed by its owner.", "a picture of {} for sale.",
                 "a casual photo showing {}."),
    "digits": ("a handwritten digit {}.", "the number {} written by hand.", "a handwritten {} in white on black."),
    "doodles": ("a doodle of a {}.", "a quick hand drawn sketch of a {}.", "a {} drawn in a few strokes."),
    "emoji": ("an emoji icon of {}.", "{}, drawn as an emoji.", "a colorful icon showing {}."),
    "flags": ("the flag of {}.", "a national flag: {}."),
    "satellite": ("a satellite image of {}.", "a sentinel-2 satellite photo showing {}.", "{} seen from space.",
                  "an overhead view of {}."),
    "waste": ("a photo of {} on a white background.", "{} to be recycled.", "{} lying on a white board."),
    "normal": ("a normal chest x-ray.", "a pediatric chest radiograph without pneumonia.",
               "x-ray image of healthy lungs."),
    "pneumonia": ("a chest x-ray showing signs of pneumonia.", "a pediatric chest radiograph with pneumonia.",
                  "x-ray image of lungs with pneumonia."),
}  # fmt: skip
PHRASES: dict[str, tuple[str, ...]] = {
    "dress": ("a dress",), "hat": ("a hat",), "longsleeve": ("a long-sleeved top",), "shirt": ("a shirt",),
    "outwear": ("a piece of outerwear",), "pants": ("a pair of pants",), "shoes": ("a pair of shoes",),
    "shorts": ("a pair of shorts",), "skirt": ("a skirt",), "t-shirt": ("a t-shirt",),
    "AnnualCrop": ("annual crop land", "fields with annual crops"), "Forest": ("a forest", "dense forest"),
    "HerbaceousVegetation": ("herbaceous vegetation", "land with brush and herbaceous vegetation"),
    "Highway": ("a highway", "a highway or major road"), "Industrial": ("industrial buildings", "an industrial area"),
    "Pasture": ("pasture land", "pastures"), "River": ("a river", "a river and its banks"),
    "PermanentCrop": ("permanent crop land", "permanent crops such as orchards or vineyards"),
    "Residential": ("residential buildings", "a residential area"), "SeaLake": ("a sea or lake", "open water"),
    "cardboard": ("a piece of cardboard", "cardboard"), "glass": ("a piece of glass", "a glass bottle or jar"),
    "metal": ("a metal can", "a piece of metal"), "paper": ("a sheet of paper", "paper"),
    "plastic": ("a plastic container", "a piece of plastic"), "trash": ("a piece of trash", "household trash"),
}  # fmt: skip
"""Class of a photo -> what captions call it."""
TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
"""Code points of emoji modifiers, and the skin tones that they mean."""


class Item(NamedTuple):
    """A picture of a domain and what is said of it."""

    file: str
    """Its name in ``images.zip``; without its ending, that of the record."""
    caption: str
    picture: Image.Image | bytes
    """Bytes are kept as they are."""
    label: Any = None
    kind: str = "class-template"
    group: str | None = None
    """What stays on one side of the split; None: the picture alone."""


def pick(key: str, choices: Sequence[str]) -> str:
    """One of the choices, by the SHA-1 of the key."""
    return choices[int(hashlib.sha1(key.encode()).hexdigest(), 16) % len(choices)]


def caption_of(domain: str, stem: str, label: Any) -> str:
    """The caption of a picture of a class; ``stem`` is its name."""
    number = str(int(re.search(r"\d*$", stem)[0] or 0))  # type: ignore[index]
    if domain == "digits":
        return pick(number, TEMPLATES[domain]).format(NUMBERS[label])
    if domain == "doodles":
        return pick(f"{label}{number}", TEMPLATES[domain]).format(label)
    if domain == "xray":
        return pick(stem, TEMPLATES[label])
    return pick(stem, TEMPLATES[domain]).format(pick(f"{stem}n", PHRASES[label]))


def emoji_label(points: Sequence[str]) -> str | None:
    """The Unicode names of hexadecimal code points; skin tones come last. None: one has no name."""
    names = [unicodedata.name(chr(int(p, 16)), "") for p in points if p not in (*TONES, "200d", "fe0f")]
    tone = next((f"with {TONES[p]} skin tone" for p in points if p in TONES), "")
    words = " and ".join(dict.fromkeys(names)).lower().replace("regional indicator symbol ", "")
    return f"{words} {tone}".strip().removeprefix("with ") if all(names) else None


def smaller(path: Path, side: int) -> Image.Image:
    """A photo with its longest side reduced."""
    with Image.open(path) as image:
        photo = ImageOps.exif_transpose(image).convert("RGB")
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    return photo


def clothing(clone: Path) -> Iterator[Item]:
    for path in sorted(clone.glob("t*/*/*.jpg")) + sorted(clone.glob("validation/*/*.jpg")):
        label = path.parent.name
        yield Item(path.name, caption_of("clothing", path.stem, label), smaller(path, 144), label)


def digits(clone: Path) -> Iterator[Item]:
    def read(kind: str, skip: int) -> Any:
        path = next((clone / "docs/examples/MNIST/MNIST/raw").glob(f"t10k-{kind}-ubyte*"))
        data = path.read_bytes()
        return np.frombuffer(gzip.decompress(data) if path.suffix == ".gz" else data, np.uint8, offset=skip)

    images, labels = read("images-idx3", 16).reshape(-1, 28, 28), read("labels-idx1", 8).tolist()
    for number, label in enumerate(labels[:4000]):
        stem = f"{number:05}"
        yield Item(f"{stem}.png", caption_of("digits", stem, label), Image.fromarray(images[number]), label)


def doodles(clone: Path) -> Iterator[Item]:
    for label in ("cat", "rainbow", "train"):
        data = (clone / f"examples/doodle_classification/data/{label}s1000.bin").read_bytes()
        for number, bitmap in enumerate(255 - np.frombuffer(data, np.uint8).reshape(-1, 28, 28)):
            stem = f"{label}{number:04}"
            yield Item(f"{stem}.png", caption_of("doodles", stem, label), Image.fromarray(bitmap), label)


def icons(emoji: Path, countries: Path) -> Iterator[Item]:
    def on_white(path: Path, side: int) -> Image.Image:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        height = round(picture.height * side / picture.width)
        return picture.resize((side, height), Image.Resampling.LANCZOS)

    for path in sorted((emoji / "png/128").glob("emoji_u*.png")):
        stem = path.stem.removeprefix("emoji_u")
        points = stem.split("_")
        if label := emoji_label(points):
            caption, group = pick(stem, TEMPLATES["emoji"]).format(label), "_".join(p for p in points if p not in TONES)
            yield Item(f"{stem}.jpg", caption, on_white(path, 96), label, "unicode-name", group)
    names = json.loads((countries / "countries.json").read_text(encoding="utf-8"))
    for path in sorted((emoji / "third_party/region-flags/png").glob("*.png")):
        if name := names.get(path.stem):
            caption = pick(path.stem, TEMPLATES["flags"]).format(name)
            yield Item(f"flag_{path.stem}.jpg", caption, on_white(path, 128), "flag", "country-name")


def satellite(clone: Path) -> Iterator[Item]:
    for folder in sorted(path for path in (clone / "data/EuroSAT_RGB").iterdir() if path.is_dir()):
        by_hash = sorted(folder.glob("*.jpg"), key=lambda path: hashlib.sha1(path.name.encode()).hexdigest())
        for path in by_hash[:300]:
            yield Item(path.name, caption_of("satellite", path.stem, folder.name), path.read_bytes(), folder.name)


def shapes(clone: Path) -> Iterator[Item]:
    for split, file in (("dev", "dev.json"), ("test", "test.json"), ("hidden", "hidden_final.json")):
        folder = clone / "nlvr" / split
        paths = {path.name: path for path in folder.glob("images/**/*.png")}
        for record in map(json.loads, (folder / file).read_text(encoding="utf-8").splitlines()):
            if record["label"] == "true":
                text = " ".join(record["sentence"].split()).rstrip(" .") + "."
                for order in (0, 3):
                    name = f"{split}-{record['identifier']}-{order}.png"
                    with Image.open(paths[name]) as image:
                        picture = image.convert("RGB").resize((256, 64), Image.Resampling.LANCZOS).quantize(32)
                    sentence = text[0].lower() + text[1:]
                    yield Item(name, sentence, picture, kind="human", group=sentence)


def waste(clone: Path) -> Iterator[Item]:
    for path in sorted((clone / "dataset-resized").glob("*/*.jpg")):
        label = path.parent.name
        yield Item(path.name, caption_of("waste", path.stem, label), smaller(path, 144), label)


def xray(clone: Path) -> Iterator[Item]:
    arrays = np.load(clone / "data/pneumoniamnist.npz")
    for split in ("train", "val", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel().tolist()
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            stem, name = f"{split}{number:04}", ("normal", "pneumonia")[label]
            yield Item(f"{stem}.png", caption_of("xray", stem, name), Image.fromarray(image), name)


DOMAINS: dict[str, Callable[..., Iterator[Item]]] = {
    one.__name__: one for one in (clothing, digits, doodles, icons, satellite, shapes, waste, xray)
}
"""What reads the clones of each domain's sources."""
