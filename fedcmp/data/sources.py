"""Where samples and their pictures come from: domain folders, LLaVA's own layout, the embedded scenes."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from fedcmp.data import scenes
from fedcmp.data.config import DataConfig, expand
from fedcmp.data.held_out import find_overlap, halve, hold_out
from fedcmp.data.images import ImageStore, decode
from fedcmp.data.records import Sample, read_records
from fedcmp.errors import ConfigError, DataError, nearest
from fedcmp.types import Scalars

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
"""What is trained on, what settings are chosen by, and what is reported."""


class Source(Protocol):
    """Samples by split, and their pictures."""

    def samples(self, split: str) -> list[Sample]:
        """The samples of ``"train"``, ``"val"`` or ``"test"``."""
        ...

    def digest(self, sample: Sample) -> str:
        """A hash of the picture's bytes: the key of its features in a cache."""
        ...

    def place(self, sample: Sample) -> str:
        """Where the picture lies, on this machine: two pictures are never at one place."""
        ...

    def image(self, sample: Sample) -> Image.Image:
        """The picture, RGB."""
        ...

    def score(self, captions: Sequence[str], samples: Sequence[Sample]) -> Scalars:
        """What the source can tell about generated captions of ``samples``; empty where it cannot."""
        ...

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The names of what the picture shows, among those by which the domain's pictures differ; empty: unknown."""
        ...

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        """The caption with one object in the place of another; None where the source cannot word it."""
        ...


class RecordSource:
    """LLaVA-style records with their pictures.

    Args:
        files: ``(split, records file, image store, default domain)``.
        on_bad: ``"error"`` or ``"skip"``, for bad records and missing pictures.
        on_overlap: ``"drop"``, ``"error"`` or ``"ignore"``, for training samples whose picture is also held out.
        held_out: without a file of held-out records, so many samples of each domain come from the training records.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Path, ImageStore, str]],
        on_bad: str = "error",
        on_overlap: str = "drop",
        held_out: int = 0,
    ) -> None:
        self._samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        self._stores: dict[str, tuple[ImageStore, str]] = {}
        self._digests: dict[str, str] = {}
        self.num_skipped = self.num_overlapping = 0
        places: dict[str, str] = {}
        tested = {domain for split, *_, domain in files if split == "test"}
        whole: list[Sample] = []
        for split, path, store, domain in files:
            records = read_records(path, on_bad, domain)
            self.num_skipped += records.num_skipped
            resolved = _resolve(store, records.samples)
            for sample in records.samples:
                problem = None
                if sample.id not in resolved:
                    problem = f"{sample.origin}: picture {sample.image} {store.why_not(_places(sample))}"
                elif sample.id in places:
                    problem = f"{sample.origin}: id {sample.id!r} stands already at {places[sample.id]}"
                if problem and on_bad == "error":
                    raise DataError(problem)
                if problem:
                    self.num_skipped += 1
                    continue
                places[sample.id] = sample.origin
                self._stores[sample.id] = store, resolved[sample.id]
                (whole if split == "val" and domain not in tested else self._samples[split]).append(sample)
        if held_out and all(split == "train" for split, *_ in files):
            self._samples["train"], whole = hold_out(self._samples["train"], held_out)
        for split, half in zip(("val", "test"), halve(whole, self.digest), strict=True):
            self._samples[split] += half
        if self.num_skipped:
            log.warning("left out %d bad records (data.on_bad_record=skip)", self.num_skipped)
        if on_overlap != "ignore":
            self._part(on_overlap)

    def _part(self, on_overlap: str) -> None:
        """No picture stands on both sides."""
        train, held_out = self._samples["train"], [*self._samples["val"], *self._samples["test"]]
        found = find_overlap(train, held_out, self._mark, self.digest)
        if not found:
            return
        self.num_overlapping = len(found)
        first = next(sample for sample in train if sample.id in found)
        twin = found[first.id]
        told = f"{len(found):,} training pictures are also held out, the first at {first.origin} and {twin.origin}"
        if on_overlap == "error":
            raise DataError(f"{told}; take them from one side, or leave them out by data.on_overlap=drop")
        log.warning("left out of training: %s (data.on_overlap=drop)", told)
        self._samples["train"] = [sample for sample in train if sample.id not in found]

    def samples(self, split: str) -> list[Sample]:
        return self._samples[split]

    def digest(self, sample: Sample) -> str:
        if sample.id not in self._digests:
            self._digests[sample.id] = hashlib.sha256(self._read(sample)).hexdigest()
        return self._digests[sample.id]

    def place(self, sample: Sample) -> str:
        store, name = self._stores[sample.id]
        return str(store.path / name)

    def image(self, sample: Sample) -> Image.Image:
        return decode(self._read(sample), sample)

    def score(self, captions: Sequence[str], samples: Sequence[Sample]) -> Scalars:
        return {}

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The label."""
        return (sample.label,) if sample.label else ()

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        """A label need not stand in the caption, and a caption may say more than the label."""
        return None

    def _read(self, sample: Sample) -> bytes:
        store, name = self._stores[sample.id]
        return store.read(name, sample)

    def _mark(self, sample: Sample) -> tuple[int, int | None]:
        store, name = self._stores[sample.id]
        return store.mark(name, sample)


def _resolve(store: ImageStore, samples: Sequence[Sample]) -> dict[str, str]:
    """The name of each sample's picture in the store: as the record says, or without its first folder."""
    present = store.names([name for sample in samples for name in _places(sample)])
    found = {}
    for sample in samples:
        name = next((name for name in _places(sample) if name in present), None)
        if name is not None:
            found[sample.id] = name
    return found


def _places(sample: Sample) -> tuple[str, str]:
    return sample.image, sample.image.split("/", 1)[-1]


def pairs_source(
    root: Path, domains: Sequence[str] = (), on_bad: str = "error", on_overlap: str = "drop"
) -> RecordSource:
    """A folder per domain, each with ``train.jsonl``, ``val.jsonl``, maybe ``test.jsonl``, and ``images.zip`` or
    ``images/``.

    Raises:
        DataError: the folder is missing or holds no domain.
        ConfigError: a domain is unknown.
    """
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}")
    present = sorted(path.parent.name for path in root.glob("*/train.jsonl"))
    if not present:
        raise DataError(f"data.root: no folder in {root} holds a train.jsonl; expected one folder per domain")
    for domain in domains:
        if domain not in present:
            raise ConfigError(f"data.domains: no domain {domain!r} in {root}; {nearest(domain, present)}")
    files = []
    for domain in domains or present:
        folder = root / domain
        packed = folder / "images.zip"
        store = ImageStore(packed if packed.exists() else folder / "images")
        files += [
            (split, folder / f"{split}.jsonl", store, domain)
            for split in SPLITS
            if split != "test" or (folder / "test.jsonl").exists()
        ]
    return RecordSource(files, on_bad, on_overlap)


class SceneSource:
    """The embedded demo: scenes of real handwritten digits, one domain per camera.

    A scene's label lists all its digits; its topic is the first of them, as its caption reads, in whatever camera.
    No picture is in two splits: their digits are other images.

    Args:
        num: scenes of each camera, by split.
        cameras: the cameras to use; empty: all.
        seed: the stream of the scenes.
    """

    def __init__(self, num: dict[str, int], cameras: Sequence[str] = (), seed: int = 0) -> None:
        for camera in cameras:
            if camera not in scenes.CAMERAS:
                raise ConfigError(f"data.domains: no camera {camera!r}; {nearest(camera, scenes.CAMERAS)}")
        self._scenes: dict[str, scenes.Scene] = {}
        self._samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            for camera in cameras or list(scenes.CAMERAS):
                for index in range(num[split]):
                    scene = scenes.make_scene(split, camera, index, seed)
                    self._scenes[scene.id] = scene
                    label = " ".join(str(digit) for digit in scene.digits if digit >= 0)
                    origin, topic = f"scene {scene.id}", f"digit {label[0]}"
                    sample = Sample(scene.id, f"{scene.id}.png", scene.caption, camera, label, origin, topic)
                    self._samples[split].append(sample)

    def samples(self, split: str) -> list[Sample]:
        return self._samples[split]

    def digest(self, sample: Sample) -> str:
        """Of what the picture is drawn from, without drawing it."""
        return hashlib.sha256(repr(self._scenes[sample.id]).encode()).hexdigest()

    def place(self, sample: Sample) -> str:
        return sample.image

    def image(self, sample: Sample) -> Image.Image:
        return scenes.render(self._scenes[sample.id])

    def score(self, captions: Sequence[str], samples: Sequence[Sample]) -> Scalars:
        """``digits_named``: digits named at the right place; ``digits_by_chance``: the same with others' captions."""
        references = [sample.caption for sample in samples]
        others = [*captions[len(captions) // 2 :], *captions[: len(captions) // 2]]
        return {
            "digits_named": scenes.digit_accuracy(captions, references),
            "digits_by_chance": scenes.digit_accuracy(others, references),
        }

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The digits, as the caption names them."""
        return tuple(dict.fromkeys(scenes.DIGITS[digit] for digit in scenes.named_digits(sample.caption).values()))

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        return sample.caption.replace(f" {present} at ", f" {absent} at ", 1)


def build_source(config: DataConfig, seed: int = 0) -> Source:
    """The source that ``data`` describes."""
    if config.kind == "scenes":
        num = {
            "train": config.scenes_per_camera,
            "val": config.val_scenes_per_camera,
            "test": config.test_scenes_per_camera,
        }
        return SceneSource(num, config.domains, seed)
    if config.kind == "pairs":
        return pairs_source(expand(config.root or ""), config.domains, config.on_bad_record, config.on_overlap)
    store = ImageStore(expand(config.images or ""))
    files = [
        ("train", expand(config.train or ""), store, "default"),
        *([("val", expand(config.val), store, "default")] if config.val else []),
        *([("test", expand(config.test), store, "default")] if config.test else []),
    ]
    return RecordSource(files, config.on_bad_record, config.on_overlap, config.held_out_per_domain)


def count_domains(samples: Sequence[Sample]) -> dict[str, int]:
    """Samples of each domain, sorted by name."""
    return dict(sorted(Counter(sample.domain for sample in samples).items()))
