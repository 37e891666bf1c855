"""Pictures that are read ahead: the right batches, in order, and errors that reach the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from published import lines, picture, record, zipped
from torch import Tensor

from fedcmp.data.records import Sample
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import SceneSource, build_source
from fedcmp.data.stream import Stream, announce
from fedcmp.errors import DataError

CPU = torch.device("cpu")
NUM = {"train": 6, "val": 2, "test": 2}
SOURCE = SceneSource(NUM, ["plain", "noisy"])
SAMPLES = SOURCE.samples("train")
BATCHES = [[3, 1], [0, 5], [7, 2, 4], [1, 3]]


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.tensor([[[float(sum(picture.getpixel((9, 9))))]]]) for picture in pictures])


def encode(samples: Sequence[Sample]) -> list[Tensor]:
    return [torch.tensor([len(sample.caption), 1]) for sample in samples]


def where(samples: Sequence[Sample]) -> list[Tensor]:
    """Tokens that say which process made them."""
    return [torch.tensor([os.getpid()]) for _ in samples]


def stream(workers: int, source: object = SOURCE, encode: object = encode, announced: list = BATCHES) -> Stream:
    made = Stream(source, SAMPLES, pixels, encode, 0, CPU, workers)  # type: ignore[arg-type]
    announce(made, announced)
    return made


def same(ahead: Stream, batch: list[int]) -> bool:
    """Whether it gives what is read on the spot."""
    one, other = ahead(batch), stream(0)(batch)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def helpers() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def test_what_was_announced_comes_from_other_processes_and_is_what_was_asked_for() -> None:
    ahead, told = stream(2), stream(2, encode=where)
    assert all(same(ahead, batch) for batch in BATCHES)
    assert int(told([6, 6])["input_ids"][0, 0]) == os.getpid(), "what was not announced is read on the spot"
    makers = {int(told(batch)["input_ids"][0, 0]) for batch in BATCHES}
    assert len(makers) == 2
    assert os.getpid() not in makers


def test_a_new_announcement_replaces_the_last_and_unused_batches_are_passed_over() -> None:
    before, ahead = helpers(), stream(2)
    assert all(same(ahead, BATCHES[place]) for place in (2, 3, 0)), "the first is gone, so it is read again"
    ahead.expect(BATCHES[1:2])
    assert same(ahead, BATCHES[1])
    assert len(helpers() - before) <= 2
    ahead.expect([])
    assert helpers() <= before


class Broken(SceneSource):
    def image(self, sample: Sample) -> Image.Image:
        if sample is SAMPLES[5]:
            raise DataError("scene 5: picture cannot be decoded")
        return super().image(sample)


def stack(samples: Sequence[Sample]) -> list[Tensor]:
    """An error of torch in a process is not its end."""
    return [torch.stack([torch.zeros(2), torch.zeros(3)])] if SAMPLES[5] in samples else encode(samples)


@pytest.mark.parametrize(("workers", "options", "error", "text"), [
    (0, {"source": Broken(NUM, ["plain", "noisy"])}, DataError, "^scene 5: picture cannot be decoded$"),
    (2, {"source": Broken(NUM, ["plain", "noisy"])}, DataError, "^scene 5: picture cannot be decoded$"),
    (1, {"encode": stack}, RuntimeError, "stack expects each tensor to be equal size"),
])  # fmt: skip
def test_an_error_is_of_its_batch_alone(workers: int, options: dict, error: type[Exception], text: str) -> None:
    ahead = stream(workers, **options)
    ahead(BATCHES[0])
    with pytest.raises(error, match=text):
        ahead(BATCHES[1])
    assert all(same(ahead, batch) for batch in BATCHES[2:]), "each has its own pictures still"
    ahead = stream(workers, **options)
    assert all(same(ahead, BATCHES[place]) for place in (0, 2, 3)), "one that is not asked for is passed over"


def test_processes_that_share_a_zip_do_not_move_each_others_place(tmp_path: Path) -> None:
    """A forked process shares the place in an open file with its parent and its siblings."""
    files = {f"{number}.png": picture(number, "PNG") + bytes(20_000) for number in range(60)}
    path = lines(tmp_path / "train.json", *(record(number, f"{number}.png") for number in range(60)))
    config = DataConfig(kind="file", train=str(path), val=str(lines(tmp_path / "val.json", record("v", "0.png"))),
                        images=str(zipped(tmp_path / "images.zip", files)), on_overlap="ignore")  # fmt: skip
    source = build_source(config)
    samples = source.samples("train")
    expected = [float(sum(source.image(sample).getpixel((9, 9)))) for sample in samples]
    ahead = Stream(source, samples, pixels, encode, 0, CPU, 2)
    batches = [[place, 59 - place] for place in range(30)]
    ahead.expect(batches)
    for one, other in batches:
        assert ahead([one, other])["pixels"].flatten().tolist() == [expected[one], expected[other]]
        assert source.image(samples[other]).size == (16, 12), "nor that of the first process"


def test_what_a_killed_process_had_before_it_is_read_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch leaves out what a dead process had before it: every later batch would be another."""
    gate = tmp_path / "open"

    def waits(samples: Sequence[Sample]) -> list[Tensor]:
        while not gate.exists():
            time.sleep(0.01)
        return encode(samples)

    before = helpers()
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    ahead = stream(2, encode=waits)
    os.kill(max(helpers() - before), signal.SIGKILL)
    with pytest.raises(DataError, match=r"data\.workers=2"):
        ahead(BATCHES[0])
    gate.touch()
    assert all(same(ahead, batch) for batch in BATCHES[1:])
