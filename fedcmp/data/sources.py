"""Where samples and their pictures come from: domain folders, LLaVA's own layout, the embedded scenes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from fedcmp.data.held_out import find_overlap, halve, hold_out
from fedcmp.data.images import MAX_PIXELS, decode
from fedcmp.data.records import Sample, read_records
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
        files: ``(split, records file, image store, default domain)``.
        on_bad: ``"error"`` or ``"skip"``, for bad records and missing pictures.
        on_overlap: ``"drop"``, ``"error"`` or ``"ignore"``, for training samples whose picture is also held out.
        held_out: without a file of held-out records, so many samples of each domain come from the training records.
        turns: ``"first"`` or ``"all"``, of the answers of a conversation.
        max_pixels: larger pictures are refused.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Path, ImageStore, str]],
        on_bad: str = "error",
        on_overlap: str = "drop",
        held_out: int = 0,
        turns: str = "first",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        self._pictures: dict[str, tuple[ImageStore, str]] = {}
        self._digests: dict[str, str] = {}
        self._max_pixels = max_pixels
        self.left_out = Counter[str]()
        places: dict[str, str] = {}
        tested = {domain for split, *_, domain in files if split == "test"}
        whole: list[Sample] = []
        for split, path, store, domain in files:
            records = read_records(path, on_bad, domain, turns)
            self.left_out += records.left_out
            for sample in records.samples:
                spellings = (sample.image, sample.image.split("/", 1)[-1])  # with and without its first folder
                name = next((name for name in spellings if store.has(name)), None)
                kind, problem = "records whose picture is missing", f"picture {sample.image} is not in {store.path}"
                if name is not None and sample.id in places:
                    kind, problem = "bad records", f"id {sample.id!r} is used already at {places[sample.id]}"
                elif name is not None:
                    places[sample.id] = sample.origin
                    self._pictures[sample.id] = store, name
                    (whole if split == "val" and domain not in tested else self._samples[split]).append(sample)
                    continue
                if on_bad == "error":
                    raise DataError(f"{sample.origin}: {problem}")
                self.left_out[kind] += 1
        if held_out and all(split == "train" for split, *_ in files):
            self._samples["train"], whole = hold_out(self._samples["train"], held_out)
        for split, half in zip(("val", "test"), halve(whole, self.digest), strict=True):
            self._samples[split] += half
        if on_overlap != "ignore":
            self._part(on_overlap)

    def _part(self, on_overlap: str) -> None:
        """Leaves training samples out whose picture is also held out."""
        train, held_out = self._samples["train"], [*self._samples["val"], *self._samples["test"]]
        found = find_overlap(train, held_out, self._mark, self.digest)
        if found and on_overlap == "error":
            first = next(sample for sample in train if sample.id in found)
            raise DataError(
                f"{len(found):,} training pictures are also held out, the first at {first.origin} and "
                f"{found[first.id].origin}; data.on_overlap=drop leaves them out"
            )
        if found:
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


def pairs_source(root: Path, domains: Sequence[str] = (), **options: Any) -> RecordSource:
    """A folder per domain, each with ``train.jsonl``, ``val.jsonl``, maybe ``test.jsonl``, and ``images.zip`` or
    ``images/``; options are RecordSource's.

    Raises:
        DataError: no folder in ``root`` is a domain.
        ConfigError: a domain is unknown.
    """
    present = sorted(path.parent.name for path in root.glob("*/train.jsonl"))
    if not present:
        raise DataError(f"data.root: no folder in {root} has a train.jsonl; expected one folder per domain")
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
    return RecordSource(files, **options)


def _record_options(config: DataConfig) -> dict[str, Any]:
    return {
        "on_bad": config.on_bad_record,
        "on_overlap": config.on_overlap,
        "turns": config.turns,
        "max_pixels": config.max_pixels,
    }


def _pairs(config: DataConfig, seed: int) -> RecordSource:
    return pairs_source(expand(config.root or ""), config.domains, **_record_options(config))


def _file(config: DataConfig, seed: int) -> RecordSource:
    store = ImageStore(expand(config.images or ""))
    paths = {split: getattr(config, split) for split in SPLITS}
    files = [(split, expand(path), store, "default") for split, path in paths.items() if path]
    return RecordSource(files, held_out=config.held_out_per_domain, **_record_options(config))


def _scenes(config: DataConfig, seed: int) -> SceneSource:
    num = (config.scenes_per_camera, config.val_scenes_per_camera, config.test_scenes_per_camera)
    return SceneSource(dict(zip(SPLITS, num, strict=True)), config.domains, seed)


SOURCES: dict[str, Callable[[DataConfig, int], Source]] = {
    "scenes": _scenes,
    "pairs": _pairs,
    "file": _file,
}
"""Values of ``data.kind``."""


def build_source(config: DataConfig, seed: int = 0) -> Source:
    """The source that ``data`` describes."""
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
