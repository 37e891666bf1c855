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
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

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
AT_ONCE = 64
"""Pictures that the tower is given together."""

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
    batch_size: int = AT_ONCE,
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
    folder = cache / key if cache is not None else None
    digests = [sample.id if folder is None else source.digest(sample) for sample in samples]
    pictures: dict[str, Sample] = {}
    for digest, sample in zip(digests, samples, strict=True):
        pictures.setdefault(digest, sample)
    rows = {digest: row for row, digest in enumerate(pictures)}
    filled: set[str] = set()
    values = torch.zeros(0, 0, 0, dtype=torch.float16)

    def put(names: Sequence[str], features: Tensor) -> None:
        """Fills rows of the one tensor that holds all features: nothing is kept twice."""
        nonlocal values
        finite = features.isfinite().flatten(1).all(1)
        if not finite.all():
            worst = pictures[names[int(finite.int().argmin())]]
            raise ConfigError(
                f"model.tower: its features of picture {worst.image} ({worst.origin}) are beyond 65,504 or no "
                "numbers; choose another tower or model.feature_layer"
            )
        if not filled:
            values = torch.empty(len(rows), *features.shape[1:], dtype=torch.float16)
        values[[rows[name] for name in names]] = features
        filled.update(names)

    if folder is not None:
        for names, features in _load(folder, key, rows):
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
        if folder is not None and (done or len(pending) * features[0].nbytes >= SHARD_BYTES):
            _append(folder, key, pending, values[[rows[name] for name in pending]])
            pending = []
    return FeatureTable(values, [rows[digest] for digest in digests])


def _load(folder: Path, key: str, wanted: Container[str]) -> Iterator[tuple[list[str], Tensor]]:
    """The wanted features, shard by shard: their pictures and ``[n, T, d]``; corrupted shards are left out."""
    for note in sorted(folder.glob("shard-*.json")):
        shard = note.with_suffix(".safetensors")
        try:
            said = json.loads(note.read_text())
            places = {row: name for row, name in enumerate(said["pictures"]) if name in wanted}
            if not places:
                continue
            if said["key"] != key or said["sha256"] != sha256_of(shard):
                raise ValueError("it is of another tower, or its checksum is wrong")
            with safe_open(shard, framework="pt") as file:
                values = file.get_tensor("features")
            found = list(places.values()), values[list(places)] if len(places) < len(values) else values
        except Exception as error:  # safetensors has classes of its own
            log.warning("feature cache shard %s is corrupted (%s); it is computed again", shard, error)
            continue
        yield found


def _append(folder: Path, key: str, pictures: Sequence[str], values: Tensor) -> None:
    """Writes one more shard, then its note: a kill in between costs the shard, and runs may share a cache."""
    shard = folder / f"shard-{hashlib.sha256(''.join(pictures).encode()).hexdigest()[:16]}.safetensors"
    partial = shard.with_suffix(f".{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"features": values.contiguous()}, partial)
        digest = sha256_of(partial)
        os.replace(partial, shard)
        partial.write_text(json.dumps({"key": key, "sha256": digest, "pictures": list(pictures)}))
        os.replace(partial, shard.with_suffix(".json"))
    except Exception as error:  # safetensors raises its own class for a full disk
        raise DataError(f"cannot write the feature cache {folder} (data.cache_dir): {error}") from error
