"""The feature cache: computed once, trusted never."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from fedcmp.data.config import DataConfig
from fedcmp.data.features import compute_features
from fedcmp.data.sources import build_source
from fedcmp.errors import DataError

SOURCE = build_source(DataConfig(scenes_per_camera=6, val_scenes_per_camera=2, domains=["plain"]))
SAMPLES = SOURCE.samples("train")


def encode(pictures) -> torch.Tensor:
    return torch.stack(
        [torch.tensor(list(p.resize((2, 2)).tobytes()[:8]), dtype=torch.float32).view(2, 4) for p in pictures]
    )


class Counting:
    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pictures) -> torch.Tensor:
        self.seen += len(pictures)
        return encode(pictures)


def table(cache: Path | None, encoder: Counting, samples=SAMPLES, key: str = "k") -> torch.Tensor:
    return compute_features(SOURCE, samples, encoder, cache=cache, key=key, batch_size=4)[list(range(len(samples)))]


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    first, second, third = Counting(), Counting(), Counting()
    fresh = table(tmp_path, first)
    assert first.seen == 6
    assert torch.equal(fresh, table(tmp_path, second))
    assert second.seen == 0
    assert torch.equal(fresh, table(None, third))
    assert torch.equal(fresh, encode([SOURCE.image(sample) for sample in SAMPLES]))
    more = Counting()
    table(tmp_path, more, [*SAMPLES, *SOURCE.samples("val")])
    assert more.seen == 2


def test_runs_that_share_a_cache_keep_each_others_work(tmp_path: Path) -> None:
    """One begins before the other has written anything, and ends after it."""

    class Slow(Counting):
        def __call__(self, pictures) -> torch.Tensor:
            if not self.seen:
                table(tmp_path, Counting(), SAMPLES[3:])
            return super().__call__(pictures)

    table(tmp_path, Slow(), SAMPLES[:3])
    after = Counting()
    table(tmp_path, after)
    assert after.seen == 0


def test_another_tower_has_another_cache(tmp_path: Path) -> None:
    table(tmp_path, Counting())
    other = Counting()
    table(tmp_path, other, key="another")
    assert other.seen == 6


@pytest.mark.parametrize("harm", ["shard", "note", "foreign", "missing"])
def test_damage_is_noticed_and_mended(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = table(tmp_path, Counting())
    shard = next((tmp_path / "k").glob("shard-*.safetensors"))
    note = shard.with_suffix(".json")
    if harm == "shard":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 255
        shard.write_bytes(content)
    elif harm == "note":
        note.write_text("{")
    elif harm == "foreign":
        note.write_text(json.dumps({**json.loads(note.read_text()), "key": "somebody's"}))
    else:
        shard.unlink()
    again, after = Counting(), Counting()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(table(tmp_path, again), expected)
    assert again.seen == 6
    assert "feature cache" in caplog.text
    assert torch.equal(table(tmp_path, after), expected)
    assert after.seen == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the feature cache .*data\.cache_dir"):
        table(tmp_path / "file", Counting())


def test_rows_follow_the_samples() -> None:
    features = compute_features(SOURCE, SAMPLES, encode)
    assert len(features) == 6
    assert features[[3, 0]].dtype == torch.float32
    assert torch.equal(features[[3, 0]][1], features[[0]][0])
