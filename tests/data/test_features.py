"""The feature cache: computed once, trusted never."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedcmp.data.features import compute_features
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import build_source
from fedcmp.errors import ConfigError, DataError

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
def test_corrupt_is_noticed_and_mended(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_shard_that_holds_more_than_is_wanted_gives_what_is(tmp_path: Path) -> None:
    expected = table(tmp_path, Counting())
    some = Counting()
    assert torch.equal(table(tmp_path, some, [SAMPLES[4], SAMPLES[1]]), expected[[4, 1]])
    assert some.seen == 0


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_features_that_float16_cannot_hold_are_the_towers_fault(value: float, tmp_path: Path) -> None:
    def too_large(pictures) -> torch.Tensor:
        features = encode(pictures)
        features[1, 0, 2] = value
        return features

    with pytest.raises(ConfigError, match=r"model\.tower: what it sees in picture train-plain-1\.png \(scene .*65,504"):
        compute_features(SOURCE, SAMPLES, too_large, cache=tmp_path, key="k", batch_size=4)
    assert not list(tmp_path.glob("**/shard-*"))


PEAK = """
import re
from pathlib import Path
import torch
from PIL import Image
from fedcmp.data.features import compute_features
from fedcmp.data.records import Sample

class Plain:
    def digest(self, sample):
        return sample.id

    def image(self, sample):
        return Image.new("RGB", (1, 1))

def used():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

samples = [Sample(str(number), "x", "c", "d") for number in range(2048)]
features = torch.ones(64, 64, 512).half()
before = used()
table = compute_features(Plain(), samples, lambda pictures: features[: len(pictures)].clone())
assert not table.values.is_inference()
print((used() - before) / table.values.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units")
def test_features_are_held_once() -> None:
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    assert 0.9 < float(told) < 1.3, "a plan counts on one"
