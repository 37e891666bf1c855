"""Features of the frozen tower, computed once per picture and kept on disk as float16.

A cache folder has ``<key>/shard-*.safetensors``; the key is a hash of the tower and its preprocessing. Beside each
shard is a ``.json`` with its checksum and the hashes of its pictures' bytes. A corrupted shard is named and computed
again. Fresh features go through float16 too, so that a first run and a cached one agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.errors import ConfigError, DataError
from fedcmp.hashing import sha256_of
from fedcmp.staging import save_tensors

log = logging.getLogger(__name__)
SHARD_BYTES = 256 * 2**20

Encode = Callable[[Sequence[Image.Image]], Tensor]
"""RGB pictures to features ``[n, T, d]``."""


class FeatureTable:
    """Features by sample position.

    Args:
        values: ``[num_pictures, T, d]`` float16.
        rows: the row of each sample's picture.
    """

    def __init__(self, values: Tensor, rows: Sequence[int]) -> None:
        self.values = values
        self.rows = torch.tensor(rows, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        """``[n, T, d]`` float32."""
        return self.values[self.rows[torch.as_tensor(positions, dtype=torch.long)]].float()


def compute_features(
    source: Source,
    samples: Sequence[Sample],
    encode: Encode,
    *,
    cache: Path | None = None,
    key: str = "",
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> FeatureTable:
    """The features of all samples, from the cache where it has them.

    Args:
        source: gives pictures and their hashes.
        samples: whose features are wanted.
        encode: the frozen tower.
        cache: folder of all caches; None: nothing is read or written.
        key: hash of the tower's weights and preprocessing.
        batch_size: pictures per call of ``encode``.
        progress: gets the number of samples that are done since the last call.

    Raises:
        DataError: a picture cannot be read, or the cache folder cannot be written.
        ConfigError: what the tower sees is not finite in float16.
    """
    store = _Store(cache / key, key) if cache is not None else None
    digests = [source.digest(sample) if store is not None else sample.id for sample in samples]
    pictures: dict[str, Sample] = {}
    for digest, sample in zip(digests, samples, strict=True):
        pictures.setdefault(digest, sample)
    rows = {digest: row for row, digest in enumerate(pictures)}
    filled: set[str] = set()
    values = torch.zeros(0, 0, 0, dtype=torch.float16)

    def put(names: Sequence[str], features: Tensor) -> None:
        """Fills rows of the one tensor that holds all features: nothing is kept twice."""
        nonlocal values
        sound = features.isfinite().flatten(1).all(1)
        if not sound.all():
            worst = pictures[names[int(sound.int().argmin())]]
            raise ConfigError(
                f"model.tower: what it sees in picture {worst.image} ({worst.origin}) is beyond 65,504, or no number, "
                "and features are float16; choose another tower or model.feature_layer"
            )
        if not filled:
            values = torch.empty(len(rows), *features.shape[1:], dtype=torch.float16)
        values[[rows[name] for name in names]] = features
        filled.update(names)

    if store is not None:
        for names, features in store.load(rows.keys()):
            put(names, features)
    missing, pending = [name for name in pictures if name not in filled], list[str]()
    progress(len(samples) - len(missing))
    for begin in range(0, len(missing), batch_size):
        chunk = missing[begin : begin + batch_size]
        with torch.inference_mode():
            features = encode([source.image(pictures[name]) for name in chunk]).to("cpu", torch.float16)
        put(chunk, features)
        progress(len(chunk))
        pending += chunk
        done = begin + batch_size >= len(missing)
        if store is not None and (done or len(pending) * features[0].nbytes >= SHARD_BYTES):
            store.append(pending, values[[rows[name] for name in pending]])
            pending = []
    return FeatureTable(values, [rows[digest] for digest in digests])


class _Store:
    """The shards of one tower, each with a note beside it; runs that share a cache cannot lose each other's work."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.notes: dict[Path, dict[str, Any]] = {}
        for path in sorted(folder.glob("shard-*.json")):
            try:
                note = json.loads(path.read_text())
                if note["key"] != key:
                    raise ValueError("it belongs to another tower")
                self.notes[path] = {"sha256": str(note["sha256"]), "pictures": list(note["pictures"])}
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("feature cache note %s is not usable (%s); its shard is computed again", path, error)

    def load(self, wanted: Collection[str]) -> Iterator[tuple[list[str], Tensor]]:
        """The wanted features of sound shards, shard by shard: their pictures and ``[n, T, d]``."""
        for path, note in self.notes.items():
            rows = [row for row, digest in enumerate(note["pictures"]) if digest in wanted]
            if not rows:
                continue
            shard = path.with_suffix(".safetensors")
            try:
                if sha256_of(shard) != note["sha256"]:
                    raise ValueError("its checksum is wrong")
                with safe_open(shard, framework="pt") as file:
                    values = file.get_tensor("features")
                if len(values) != len(note["pictures"]):
                    raise ValueError("it has another number of rows than its note says")
            except Exception as error:  # safetensors has classes of its own
                log.warning("feature cache shard %s is corrupted (%s); it is computed again", shard, error)
                continue
            yield [note["pictures"][row] for row in rows], values[rows] if len(rows) < len(values) else values

    def append(self, pictures: Sequence[str], values: Tensor) -> None:
        """Writes one more shard, then its note; a kill in between costs the shard, never the cache."""
        name = f"shard-{hashlib.sha256(''.join(pictures).encode()).hexdigest()[:16]}"
        shard, note = self.folder / f"{name}.safetensors", self.folder / f"{name}.json"
        partial = self.folder / f"{name}.{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors({"features": values.contiguous()}, partial)
            digest = sha256_of(partial)
            os.replace(partial, shard)
            partial.write_text(json.dumps({"key": self.key, "sha256": digest, "pictures": list(pictures)}))
            os.replace(partial, note)
        except Exception as error:  # safetensors raises its own class for a full disk
            raise DataError(f"cannot write the feature cache {self.folder} (data.cache_dir): {error}") from error
