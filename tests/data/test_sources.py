"""Domains, LLaVA's own layout and the digit scenes as sources: what is read, held out, named and left out."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import domain, lines, picture, read_lines, record

from fedcmp.data.scenes import CAMERAS, CELL, COLOURS, POOLS, make_scene, named_digits, render
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import RecordSource, Source, build_source, name_pictures
from fedcmp.errors import ConfigError, DataError


def png(number: int) -> bytes:
    return picture(number, "PNG")


def ids(source: Source, split: str, prefix: str = "") -> list[str]:
    return [sample.id for sample in source.samples(split) if sample.id.startswith(prefix)]


def pairs(root: Path, *domains: str, **more: Any) -> Source:
    return build_source(DataConfig(kind="pairs", root=str(root), domains=list(domains), **more))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A domain in a zip that is halved, and one in a folder with a test set; two training pictures are held out."""
    train = {"1": png(1), "2": png(5), "3": png(8), "4": png(4)}
    domain(tmp_path, "red", packed=True, train=train, val={"1": png(5), "2": png(6), "3": png(5)})
    domain(tmp_path, "blue", train={"1": png(7)}, val={"1": png(8), "2": png(9)}, test={"1": png(10)})
    return tmp_path


def test_zip_and_folder_give_the_same_kind_of_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = RecordSource._read
    monkeypatch.setattr(RecordSource, "_read", lambda self, one: read.append(one.id) or original(self, one))
    source = pairs(root, on_overlap="ignore")
    samples = {sample.id: sample for sample in source.samples("train")}
    assert Counter(sample.domain for sample in samples.values()) == {"blue": 1, "red": 4}
    for name, number in (("red-train-1", 1), ("blue-train-1", 7)):
        for _ in range(2):
            assert source.digest(samples[name]) == hashlib.sha256(png(number)).hexdigest()
        assert read.count(name) == 1, "a picture is hashed once"
        assert source.image(samples[name]).size == (16, 12)
    assert ids(pairs(root, "blue"), "train") == ["blue-train-1"]
    with pytest.raises(ConfigError, match=r'data\.domains.*did you mean "red"'):
        pairs(root, "rde")
    with pytest.raises(DataError, match=r"data\.root"):
        pairs(root / "no")


def test_held_out_pictures_are_on_one_side_and_leave_training(root: Path) -> None:
    source = pairs(root)
    assert (ids(source, "val", "blue"), ids(source, "test", "blue")) == (["blue-val-1", "blue-val-2"], ["blue-test-1"])
    halves = sorted([ids(source, "val", "red"), ids(source, "test", "red")], key=len)
    assert halves == [["red-val-2"], ["red-val-1", "red-val-3"]]
    assert ids(source, "train") == ["blue-train-1", "red-train-1", "red-train-4"]
    assert source.left_out == {"training samples whose picture is also held out": 2}
    assert len(pairs(root, on_overlap="ignore").samples("train")) == 5
    with pytest.raises(DataError, match=r"2 training .*red/train\.jsonl:2 and .*red/val\.jsonl:[13].*data\.on_overlap"):
        pairs(root, on_overlap="error")


def test_bad_records_and_pictures_stop_or_are_counted(root: Path) -> None:
    pictures, file = root / "blue" / "images", root / "blue" / "train.jsonl"
    (pictures / "train-1").write_bytes(b"no picture")
    source = pairs(root, "blue")
    with pytest.raises(DataError, match=r"blue/train\.jsonl:1: picture blue/train-1"):
        source.image(source.samples("train")[0])
    two = record("two", "val-1", conversations=record(0, "", "one")["conversations"] * 2)
    lines(file, *read_lines(file), "{not json", two, two, record("more", ["a", "b"]))
    with pytest.raises(DataError, match=r"blue/train\.jsonl:2: not valid JSON"):
        pairs(root)
    (pictures / "train-1").unlink()
    with pytest.raises(DataError, match=r"blue/train\.jsonl:1: picture blue/train-1"):
        pairs(root)
    kinds = {"records whose picture is missing": 1, "bad records": 2, "records with several pictures": 1}
    for turns, more, count in (("first", {"answers after the first": 1}, 5), ("all", {}, 6)):
        source = pairs(root, on_bad_record="skip", on_overlap="ignore", turns=turns)
        assert source.left_out == kinds | more
        assert len(source.samples("train")) == count


def test_llavas_own_layout(root: Path) -> None:
    home = root / "red"
    train, val, images = str(home / "train.jsonl"), str(home / "val.jsonl"), str(home / "images.zip")
    config = DataConfig(kind="file", train=train, val=val, images=images, on_overlap="ignore")
    source = build_source(config)
    assert [len(source.samples(split)) for split in ("train", "val", "test")] in ([4, 2, 1], [4, 1, 2])
    with pytest.raises(DataError, match="id 'red-train-1' is used twice"):
        build_source(replace(config, val=train, test=val))
    for words, key in (({"images": None}, "images"), ({"val": None, "test": "t.jsonl"}, "test")):
        with pytest.raises(ConfigError, match=rf"data\.{key}"):
            replace(config, **words).validate()
    lines(home / "many.jsonl", *(record(number, f"train-{1 + number % 4}") for number in range(30)))
    source = build_source(replace(config, train=str(home / "many.jsonl"), val=None, held_out_per_domain=6))
    assert len(source.samples("val")) + len(source.samples("test")) == 6, "without held-out records some are held out"
    assert not {source.digest(one) for one in source.samples("val")} & set(map(source.digest, source.samples("test")))


def test_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hospitals are prepared as one domain; the second has two rows of each picture; val-same is in both."""
    for first, name in ((10, "north"), (20, "south")):
        val = {"scan": png(first + 1), "same": png(1), name: png(first + 2)}
        home = domain(tmp_path, name, train={"1": png(first)}, val=val, test={"1": png(first + 3)})
        rows = read_lines(home / "val.jsonl")
        rows = [{**row, "image": row["image"].split("/")[1], "domain": "clinic"} for row in rows]
        again = [{**row, "id": f"{row['id']} again"} for row in rows] if name == "south" else []
        lines(home / "val.jsonl", *rows, *again)
    source = pairs(tmp_path)
    samples = source.samples("val")
    named = dict(zip((one.id for one in samples), name_pictures(samples, source), strict=True))
    assert named["north-val-scan"] != named["south-val-scan"] == named["south-val-scan again"]
    assert named["north-val-scan"].startswith("val-scan ")
    assert named["north-val-same"] == named["south-val-same"], "equal pictures are one"
    monkeypatch.setattr(RecordSource, "digest", None)  # all others keep their name, and are not read
    alone = [one for one in samples if one.image in ("val-north", "val-south")]
    assert name_pictures(alone, source) == ("val-north", "val-south", "val-south")


def test_scenes_are_a_source() -> None:
    num = dict.fromkeys(("val_scenes_per_camera", "test_scenes_per_camera"), 2)
    source = build_source(DataConfig(scenes_per_camera=3, domains=["plain", "tilted"], **num), seed=4)
    train, val = source.samples("train"), source.samples("val")
    assert Counter(sample.domain for sample in train) == {"plain": 3, "tilted": 3}
    assert len({sample.id for sample in [*train, *val, *source.samples("test")]}) == 14
    assert source.image(train[0]).size == (32, 32)
    assert source.score([sample.caption for sample in val], val)["digits_named"] == 1.0
    assert " nobody at the " in (source.swapped(train[0], source.objects(train[0])[0], "nobody") or "")
    with pytest.raises(ConfigError, match=r'did you mean "plain"'):
        build_source(DataConfig(domains=["plane"]))
    for place, kind in (("root", "scenes"), ("train", "scenes"), ("images", "pairs"), ("root", "file")):
        with pytest.raises(ConfigError, match=rf"data\.{place}.*data\.kind"):
            build_source(replace(DataConfig(kind=kind), **{place: "here"}))  # it would be silently left unread


def test_a_scene_is_a_pure_function_and_pools_share_no_digit() -> None:
    spans = sorted(POOLS.values())
    assert (spans[0][0], spans[-1][1]) == (0, 1797)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    for pool, (first, last) in POOLS.items():
        assert all(first <= s < last for i in range(50) for s in make_scene(pool, "plain", i).sprites if s >= 0)
    for camera in CAMERAS:
        one, two, next_one = (make_scene("val", camera, number, seed=1) for number in (3, 3, 4))
        assert one == two != make_scene("val", camera, 3, seed=2)
        assert render(one).tobytes() == render(two).tobytes() != render(next_one).tobytes()


def test_captions_say_what_is_where_and_in_which_colour() -> None:
    for index in range(30):
        scene = make_scene("train", "plain", index)
        assert sorted(named_digits(scene.caption).values()) == sorted(digit for digit in scene.digits if digit >= 0)
        pixels = np.asarray(render(scene), np.float32)
        for place, colour in enumerate(scene.colours):
            row, column = divmod(place, 2)
            cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            assert bool(cell.max() > 60) == bool(colour)
            if colour:
                brightest = cell.reshape(-1, 3)[cell.sum(-1).argmax()]
                assert min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - brightest).sum()) == colour
