"""The feature cache: computed once, checked always."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from fedcmp.data.features import compute_features
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import build_source
from fedcmp.errors import ConfigError, DataError

SOURCE = build_source(DataConfig(scenes_per_camera=6, val_scenes_per_camera=2, domains=["plain"]))
SAMPLES = SOURCE.samples("train")


class Counting:
    """A tower that counts the pictures that it sees; ``value`` is a feature of the second one."""

    def __init__(self, value: float | None = None) -> None:
        self.seen, self.value = 0, value

    def __call__(self, pictures) -> torch.Tensor:
        self.seen += len(pictures)
        numbers = [list(picture.resize((2, 2)).tobytes()[:8]) for picture in pictures]
        features = torch.tensor(numbers, dtype=torch.float32).view(-1, 2, 4)
        if self.value is not None:
            features[1, 0, 2] = self.value
        return features


def table(cache: Path | None, samples=SAMPLES, key: str = "k", tower=None) -> tuple[torch.Tensor, int]:
    """The features, and how many pictures the tower saw."""
    tower = tower or Counting()
    found = compute_features(SOURCE, samples, tower, cache=cache, key=key, batch_size=4)
    return found[list(range(len(samples)))], tower.seen


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    fresh, seen = table(tmp_path)
    assert seen == 6
    assert fresh.dtype == torch.float32
    assert torch.equal(fresh, Counting()([SOURCE.image(sample) for sample in SAMPLES]))
    for cache, samples, key, expected in (
        (tmp_path, SAMPLES, "k", 0),
        (None, SAMPLES, "k", 6),
        (tmp_path, [SAMPLES[4], SAMPLES[1]], "k", 0),
        (tmp_path, SAMPLES, "another tower", 6),
    ):
        again, seen = table(cache, samples, key)
        assert torch.equal(again, fresh[[SAMPLES.index(sample) for sample in samples]])
        assert seen == expected
    assert table(tmp_path, [*SAMPLES, *SOURCE.samples("val")])[1] == 2


def test_runs_that_share_a_cache_keep_each_others_work(tmp_path: Path) -> None:
    """One begins before the other has written anything, and ends after it."""

    class Slow(Counting):
        def __call__(self, pictures) -> torch.Tensor:
            if not self.seen:
                table(tmp_path, SAMPLES[3:])
            return super().__call__(pictures)

    table(tmp_path, SAMPLES[:3], tower=Slow())
    assert table(tmp_path)[1] == 0


@pytest.mark.parametrize("harm", ["shard", "note", "foreign", "missing"])
def test_corruption_is_noticed_and_computed_again(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = table(tmp_path)
    shard = next((tmp_path / "k").glob("shard-*.safetensors"))
    note = shard.with_suffix(".json")
    if harm == "shard":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 255
        shard.write_bytes(content)
    elif harm == "missing":
        shard.unlink()
    else:
        note.write_text("{" if harm == "note" else json.dumps({**json.loads(note.read_text()), "key": "another"}))
    with caplog.at_level(logging.WARNING):
        for computed in (6, 0):
            again, seen = table(tmp_path)
            assert torch.equal(again, expected)
            assert seen == computed
    assert shard.stem in caplog.text


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        table(tmp_path / "file")
    for value in (7e4, float("nan")):
        with pytest.raises(ConfigError, match=r"model\.tower: .*train-plain-1\.png"):
            table(tmp_path, tower=Counting(value))
    assert not list(tmp_path.glob("**/shard-*"))
