"""Where samples and their pictures come from: domain folders, LLaVA's own layout, the embedded scenes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from fedcmp.data.held_out import find_overlap, halve, hold_out
from fedcmp.data.images import decode
from fedcmp.data.records import Sample, parse_pairs, read_json
from fedcmp.data.scenes import SceneSource
from fedcmp.data.settings import DataConfig, expand
from fedcmp.data.stores import ImageStore
from fedcmp.errors import ConfigError, DataError, nearest
from fedcmp.types import Scalars

SPLITS = ("train", "val", "test")
"""What is trained on, what settings are chosen by, and what is reported."""


class Source(Protocol):
    """Samples by split, and their pictures."""

    left_out: Counter[str]
    """What of the data is not among the samples: how many of which kind."""

    def samples(self, split: str) -> list[Sample]:
        """The samples of ``"train"``, ``"val"`` or ``"test"``."""
        ...

    def digest(self, sample: Sample) -> str:
        """A hash of the picture's bytes: the key of its features in a cache."""
        ...

    def image(self, sample: Sample) -> Image.Image:
        """The picture, RGB."""
        ...

    def place(self, sample: Sample) -> str:
        """Where the picture lies, on this machine: two pictures are never at one place."""
        return sample.image

    def score(self, captions: Sequence[str], samples: Sequence[Sample]) -> Scalars:
        """What the source can say about generated captions of ``samples``; empty where it cannot."""
        return {}

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The names of what the picture shows, among those by which the domain's pictures differ; empty: unknown."""
        return ()

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        """The caption with one object in the place of another; None where the source cannot word it."""
        return None


class RecordSource(Source):
    """LLaVA-style records with their pictures.

    Args:
        files: ``(split, records file, image store, default domain)``. Validation records of a domain without test
            records are halved; without any held-out records, some of each domain are drawn.
        config: what happens to bad records, further answers and training pictures that are also held out.

    Raises:
        DataError: a file cannot be read, a record is bad or an id used twice, a picture is missing.
    """

    def __init__(self, files: Sequence[tuple[str, Path, ImageStore, str]], config: DataConfig) -> None:
        self._max_pixels = config.max_pixels
        self._samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        self._pictures: dict[str, tuple[ImageStore, str]] = {}
        self._digests: dict[str, str] = {}
        self.left_out = Counter[str]()
        tested = {domain for split, *_, domain in files if split == "test"}
        halved: list[Sample] = []
        for split, path, store, domain in files:
            target = halved if split == "val" and domain not in tested else self._samples[split]
            for origin, record in read_json(path):
                try:
                    pairs = parse_pairs(record, origin, domain)
                    used = pairs if config.turns == "all" else pairs[:1]
                    found = {sample.id: self._find(sample, store) for sample in used}
                except DataError as error:
                    if config.on_bad_record == "error":
                        raise
                    self.left_out[error.kind] += 1
                    continue
                self._pictures |= found
                target += used
                if len(used) < len(pairs):
                    self.left_out["answers after the first"] += len(pairs) - len(used)
        if all(split == "train" for split, *_ in files):
            self._samples["train"], halved = hold_out(self._samples["train"], config.held_out_per_domain)
        for split, half in zip(("val", "test"), halve(halved, self.digest), strict=True):
            self._samples[split] += half
        if config.on_overlap != "ignore":
            self._leave_overlap_out(config.on_overlap)

    def _find(self, sample: Sample, store: ImageStore) -> tuple[ImageStore, str]:
        if sample.id in self._pictures:
            raise DataError(f"{sample.origin}: id {sample.id!r} is used twice; ids must be unique in a federation")
        name = store.find(sample.image) or store.find(sample.image.partition("/")[2])  # some spell a folder before it
        if name:
            return store, name
        problem = f"{sample.origin}: picture {sample.image} is not in {store.path}"
        raise DataError(problem, "records whose picture is missing")

    def _leave_overlap_out(self, on_overlap: str) -> None:
        """Training samples whose picture is also held out."""
        train, held_out = self._samples["train"], [*self._samples["val"], *self._samples["test"]]
        found = find_overlap(train, held_out, self._mark, self.digest)
        if not found:
            return
        if on_overlap == "error":
            first = next(sample for sample in train if sample.id in found)
            raise DataError(
                f"{len(found):,} training pictures are also held out, the first at {first.origin} and "
                f"{found[first.id].origin}; data.on_overlap=drop leaves them out"
            )
        self.left_out["training samples whose picture is also held out"] = len(found)
        self._samples["train"] = [sample for sample in train if sample.id not in found]

    def samples(self, split: str) -> list[Sample]:
        return self._samples[split]

    def digest(self, sample: Sample) -> str:
        if sample.id not in self._digests:
            self._digests[sample.id] = hashlib.sha256(self._read(sample)).hexdigest()
        return self._digests[sample.id]

    def place(self, sample: Sample) -> str:
        store, name = self._pictures[sample.id]
        return str(store.path / name)

    def image(self, sample: Sample) -> Image.Image:
        return decode(self._read(sample), sample, self._max_pixels)

    def objects(self, sample: Sample) -> tuple[str, ...]:
        """The label. It cannot be swapped: it need not be in the caption, which may say more."""
        return (sample.label,) if sample.label else ()

    def _read(self, sample: Sample) -> bytes:
        store, name = self._pictures[sample.id]
        return store.read(name, sample.origin)

    def _mark(self, sample: Sample) -> tuple[int, int | None]:
        store, name = self._pictures[sample.id]
        return store.mark(name, sample.origin)


def _pairs(config: DataConfig, seed: int) -> RecordSource:
    """A folder per domain, each with its records by split, and ``images.zip`` or ``images/``."""
    root = expand(config.root or "")
    present = sorted(path.parent.name for path in root.glob("[!.]*/train.jsonl"))  # .NAME: one that was not finished
    if not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; expected one that has a folder per domain")
    if not present:
        raise DataError(f"data.root: no folder in {root} has a train.jsonl; expected one folder per domain")
    files = []
    for domain in config.domains or present:
        if domain not in present:
            raise ConfigError(f"data.domains: no domain {domain!r} in {root}; {nearest(domain, present)}")
        folder = root / domain
        packed = folder / "images.zip"
        store = ImageStore(packed if packed.exists() else folder / "images")
        own = SPLITS if (folder / "test.jsonl").exists() else SPLITS[:2]
        files += [(split, folder / f"{split}.jsonl", store, domain) for split in own]
    return RecordSource(files, config)


def _file(config: DataConfig, seed: int) -> RecordSource:
    """LLaVA's own layout."""
    store = ImageStore(expand(config.images or ""))
    paths = {split: getattr(config, split) for split in SPLITS}
    return RecordSource([(split, expand(path), store, "default") for split, path in paths.items() if path], config)


def _scenes(config: DataConfig, seed: int) -> SceneSource:
    num = (config.scenes_per_camera, config.val_scenes_per_camera, config.test_scenes_per_camera)
    return SceneSource(dict(zip(SPLITS, num, strict=True)), config.domains, seed)


SOURCES: dict[str, Callable[[DataConfig, int], Source]] = {
    "scenes": _scenes,
    "pairs": _pairs,
    "file": _file,
}
"""Values of ``data.kind``."""
UNREAD = {
    "scenes": ("root", "train", "val", "test", "images"),
    "pairs": ("train", "val", "test", "images"),
    "file": ("root",),
}
"""Kind -> places of other kinds: a run that was given one would train on other data than was meant."""


def build_source(config: DataConfig, seed: int = 0) -> Source:
    """The source that ``data`` describes.

    Raises:
        ConfigError: a domain is unknown, or a place is given that this kind does not read.
        DataError: no folder of ``data.root`` is a domain, or records cannot be used.
    """
    for key in UNREAD.get(config.kind, ()):
        if getattr(config, key):
            kind = "pairs" if key == "root" else "file"
            raise ConfigError(f"data.{key} is for data.kind={kind}, and data.kind is {config.kind}")
    return SOURCES[config.kind](config, seed)


def name_pictures(samples: Sequence[Sample], source: Source) -> tuple[str, ...]:
    """The name of each sample's picture: the same where samples of a domain share one, and only there.

    It is the one that the record says, since names order what is drawn and no place on a disk may do so. Folders that
    make one domain may each have such a picture: those are read, and named by the hash of their content as well.
    """
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        places[sample.domain, sample.image].add(source.place(sample))
    return tuple(
        f"{sample.image} {source.digest(sample)}" if len(places[sample.domain, sample.image]) > 1 else sample.image
        for sample in samples
    )
