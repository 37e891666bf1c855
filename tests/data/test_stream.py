"""Pictures that are read ahead: the right batches, in order, whoever asks, and errors that reach the run."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fedcmp.data.images import ImageStore
from fedcmp.data.records import Sample
from fedcmp.data.sources import RecordSource, SceneSource
from fedcmp.data.stream import Stream, announce
from fedcmp.errors import DataError

CPU = torch.device("cpu")
SOURCE = SceneSource({"train": 6, "val": 2, "test": 2}, ["plain", "noisy"])
SAMPLES = SOURCE.samples("train")
BATCHES = [[3, 1], [0, 5], [7, 2, 4], [1, 3]]


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.tensor([[[float(sum(picture.getpixel((9, 9))))]]]) for picture in pictures])


def encode(samples: Sequence[Sample]) -> list[Tensor]:
    return [torch.tensor([len(sample.caption), 1]) for sample in samples]


def stream(workers: int, source: object = SOURCE, encode: object = encode) -> Stream:
    return Stream(source, SAMPLES, pixels, encode, 0, CPU, workers)  # type: ignore[arg-type]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def helpers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def where(samples: Sequence[Sample]) -> list[Tensor]:
    """Tokens that tell which process made them."""
    return [torch.tensor([os.getpid()]) for _ in samples]


def test_what_was_announced_comes_from_other_processes_and_is_what_was_asked_for() -> None:
    plain, ahead = stream(0), stream(2)
    announce(ahead, BATCHES)
    for batch in BATCHES:
        assert same(ahead(batch), plain(batch))
    told = stream(2, encode=where)
    told.expect(BATCHES)
    makers = {int(told(batch)["input_ids"][0, 0]) for batch in BATCHES}
    assert len(makers) == 2
    assert os.getpid() not in makers


def test_what_was_not_announced_is_read_on_the_spot_and_disturbs_nothing() -> None:
    told = stream(2, encode=where)
    told.expect(BATCHES)
    assert int(told([6, 6])["input_ids"][0, 0]) == os.getpid()
    assert all(int(told(batch)["input_ids"][0, 0]) != os.getpid() for batch in BATCHES[:2])


def test_batches_that_nobody_asked_for_are_passed_over() -> None:
    """A client that fails leaves the rest of its batches unused."""
    told, plain = stream(2), stream(0)
    told.expect(BATCHES)
    assert same(told(BATCHES[2]), plain(BATCHES[2]))
    assert same(told(BATCHES[3]), plain(BATCHES[3]))
    assert same(told(BATCHES[0]), plain(BATCHES[0])), "it is gone, so it is read again"


def test_a_new_announcement_replaces_the_last_and_its_processes() -> None:
    before = helpers()
    told, plain = stream(2), stream(0)
    told.expect(BATCHES)
    told.expect(BATCHES[1:2])
    assert same(told(BATCHES[1]), plain(BATCHES[1]))
    assert len(set(helpers()) - set(before)) <= 2
    told.expect([])
    assert set(helpers()) <= set(before)


class Broken(SceneSource):
    def image(self, sample: Sample) -> Image.Image:
        if sample is SAMPLES[5]:
            raise DataError("scene 5: picture cannot be decoded")
        return super().image(sample)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_picture_is_told_where_it_is_needed(workers: int) -> None:
    told = stream(workers, Broken({"train": 6, "val": 2, "test": 2}, ["plain", "noisy"]))
    told.expect(BATCHES)
    told(BATCHES[0])
    with pytest.raises(DataError, match=r"^scene 5: picture cannot be decoded$"):
        told(BATCHES[1])
    assert all(same(told(batch), stream(0)(batch)) for batch in BATCHES[2:]), "each has its own pictures still"


def test_an_error_that_nobody_asked_for_is_passed_over() -> None:
    told = stream(1, Broken({"train": 6, "val": 2, "test": 2}, ["plain", "noisy"]))
    told.expect(BATCHES)
    assert all(same(told(batch), stream(0)(batch)) for batch in (BATCHES[0], BATCHES[2], BATCHES[3]))


def bug(samples: Sequence[Sample]) -> list[Tensor]:
    if SAMPLES[5] in samples:
        raise ZeroDivisionError("a bug")
    return encode(samples)


def test_an_error_that_nobody_foresaw_moves_nothing_either() -> None:
    told = stream(1, encode=bug)
    told.expect(BATCHES)
    told(BATCHES[0])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        told(BATCHES[1])
    assert all(same(told(batch), stream(0)(batch)) for batch in BATCHES[2:])


def short(samples: Sequence[Sample]) -> list[Tensor]:
    raise RuntimeError("stack expects each tensor to be equal size")


def test_an_error_of_torch_in_a_process_is_not_taken_for_its_end() -> None:
    told = stream(1, encode=short)
    told.expect(BATCHES)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        told(BATCHES[0])


def test_processes_that_share_a_zip_do_not_move_each_others_place(tmp_path: Path) -> None:
    """A forked process shares the place in an open file with its parent and its siblings."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(200):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (number, 0, 0)).save(buffer, "PNG")
            archive.writestr(f"{number}.png", buffer.getvalue() + bytes(20_000))
    turns = [{"from": "gpt", "value": "a picture."}]
    rows = [{"id": number, "image": f"{number}.png", "conversations": turns} for number in range(200)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    store = ImageStore(tmp_path / "images.zip")
    source = RecordSource([("train", tmp_path / "train.json", store, "a")])
    assert source.image(source.samples("train")[0]).size == (64, 64), "the zip is open when the processes begin"
    told = Stream(source, source.samples("train"), pixels, encode, 0, CPU, 2)
    batches = [[place, 199 - place] for place in range(100)]
    told.expect(batches)
    for batch in batches:
        assert told(batch)["pixels"].flatten().tolist() == batch
    assert store._file is not None
    assert os.lseek(store._file, 0, os.SEEK_CUR) == 0, "nobody has moved the place that all share"


def slow(samples: Sequence[Sample]) -> list[Tensor]:
    time.sleep(30)
    return encode(samples)


def test_a_process_that_is_killed_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    before = helpers()
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    told = stream(1, encode=slow)
    told.expect(BATCHES)
    (reader,) = set(helpers()) - set(before)
    os.kill(reader, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads pictures ended .*lower data\.workers \(now 1\)"):
        told(BATCHES[0])


def test_what_a_killed_process_had_before_it_is_read_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch leaves out what a dead process had before it: every later batch would be another."""
    gate = tmp_path / "open"

    def waits(samples: Sequence[Sample]) -> list[Tensor]:
        while not gate.exists():
            time.sleep(0.01)
        return encode(samples)

    before = helpers()
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    told = stream(2, encode=waits)
    told.expect(BATCHES)
    os.kill(max(set(helpers()) - set(before)), signal.SIGKILL)
    with pytest.raises(DataError, match="a process that reads pictures ended"):
        told(BATCHES[0])
    gate.touch()
    assert all(same(told(batch), stream(0)(batch)) for batch in BATCHES[1:])
