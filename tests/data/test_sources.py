"""Pictures in folders and zips, domains, and the digit scenes as a source."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import fedcmp.data.images
from fedcmp.data.settings import DataConfig
from fedcmp.data.records import Sample
from fedcmp.data.sources import build_source, count_domains, pairs_source
from fedcmp.errors import ConfigError, DataError


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def domain(root: Path, name: str, train: dict[str, bytes], held_out: dict[str, bytes], packed: bool) -> None:
    folder, pictures = root / name, train | held_out
    folder.mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for file, content in pictures.items():
                archive.writestr(file, content)
    else:
        (folder / "images").mkdir()
        for file, content in pictures.items():
            (folder / "images" / file).write_bytes(content)
    for split, own in (("train", train), ("val", held_out)):
        rows = [
            {
                "id": f"{name}-{split}-{file}",
                "image": f"{name}/{file}",
                "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a {name}."}],
            }
            for file in own
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    reds = {"c.png": png("pink"), "d.png": png("salmon"), "e.png": png("pink")}
    blues = {"c.png": png("navy"), "d.png": png("skyblue")}
    domain(tmp_path, "red", {"a.png": png("red"), "b.png": png("darkred")}, reds, packed=True)
    domain(tmp_path, "blue", {"a.png": png("blue")}, blues, packed=False)
    return tmp_path


def test_zip_and_folder_give_the_same_kind_of_pictures(root: Path) -> None:
    source = pairs_source(root)
    samples = source.samples("train")
    assert count_domains(samples) == {"blue": 1, "red": 2}
    colours = {sample.id: source.image(sample).getpixel((0, 0)) for sample in samples}
    assert colours["red-train-a.png"] == (255, 0, 0)
    assert colours["blue-train-a.png"] == (0, 0, 255)
    digests = {hashlib.sha256(png(colour)).hexdigest() for colour in ("red", "darkred", "blue")}
    assert {source.digest(sample) for sample in samples} == digests


def test_equal_pictures_are_held_out_on_one_side(root: Path) -> None:
    source = pairs_source(root)
    halves = [{sample.id for sample in source.samples(split)} for split in ("val", "test")]
    assert sum(map(len, halves)) == 5
    assert all(len([name for name in half if name.startswith("blue")]) == 1 for half in halves)
    assert any({"red-val-c.png", "red-val-e.png"} <= half for half in halves)
    assert any({"red-val-d.png"} <= half and "red-val-c.png" not in half for half in halves)


def test_domains_are_chosen_and_misspelt_ones_named(root: Path) -> None:
    assert count_domains(pairs_source(root, ["red"]).samples("train")) == {"red": 2}
    with pytest.raises(ConfigError, match=r'data\.domains: no domain .rde.*did you mean "red"'):
        pairs_source(root, ["rde"])
    with pytest.raises(DataError, match=r"data\.root: no folder"):
        pairs_source(root / "nowhere")
    with pytest.raises(DataError, match=r"holds a train\.jsonl"):
        pairs_source(root / "blue" / "images")


def test_a_missing_picture_is_named_or_skipped(root: Path) -> None:
    (root / "blue" / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"blue/train\.jsonl:1: picture blue/a\.png is not in"):
        pairs_source(root)
    source = pairs_source(root, on_bad="skip")
    assert sum(source.left_out.values()) == 1
    assert count_domains(source.samples("train")) == {"red": 2}


@pytest.mark.parametrize("name", ["red", "blue"])
def test_a_suffix_in_capital_letters_is_told_what_is_there(root: Path, name: str) -> None:
    records = root / name / "train.jsonl"
    records.write_text(records.read_text().replace(f"{name}/a.png", f"{name}/a.PNG"))
    with pytest.raises(DataError, match=rf"picture {name}/a\.PNG is not in .*, but a\.png is: capital letters count"):
        pairs_source(root)


@pytest.mark.parametrize(("asked", "there", "hint"), [
    ("a.png", "images/deep/a.png", ""),
    ("a.png", "images/a.png", "images/a.png"),
    ("x/y/a.png", "a.png", "a.png"),
    ("red\\a.png", "red/a.png", "red/a.png"),
    ("r\u00e9d.png", "re\u0301d.png", "NFD"),
    ("re\u0301d.png", "pictures/r\u00e9d.png", "NFC"),
])  # fmt: skip
def test_a_name_that_differs_a_little_is_told_what_is_there(tmp_path: Path, asked: str, there: str, hint: str) -> None:
    domain(tmp_path, "red", {"b.png": png("red")}, {}, packed=True)
    folder = tmp_path / "red"
    folder.joinpath("images.zip").unlink()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr(there, png("red"))
    row = json.loads((folder / "train.jsonl").read_text())
    (folder / "train.jsonl").write_text(json.dumps({**row, "image": asked}) + "\n")
    with pytest.raises(DataError) as caught:
        pairs_source(tmp_path)
    assert f"picture {asked} is not in" in str(caught.value)
    said = str(caught.value).partition("images.zip")[2]
    assert (hint in said) if hint else not said


def test_an_unreadable_picture_is_named(root: Path) -> None:
    (root / "blue" / "images" / "a.png").write_bytes(b"no picture")
    source = pairs_source(root, ["blue"])
    with pytest.raises(DataError, match=r"blue/train\.jsonl:1: picture blue/a\.png cannot be decoded") as caught:
        source.image(source.samples("train")[0])
    assert "0x" not in str(caught.value), "no address in memory"


def test_links_that_lead_out_of_the_folder_are_not_followed(root: Path, tmp_path: Path) -> None:
    images, outside = root / "blue" / "images", tmp_path / "outside.png"
    outside.write_bytes((images / "a.png").read_bytes())
    (images / "b.png").write_bytes(png("blue"))
    (images / "inside.png").symlink_to(images / "b.png")
    (images / "a.png").unlink()
    (images / "a.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"picture blue/a\.png is no file, or a link that leads out of .*give"):
        pairs_source(root, ["blue"])
    store = fedcmp.data.images.ImageStore(images)
    (images / "away").symlink_to(tmp_path)
    assert store.names(["inside.png", "a.png", "away/outside.png", "../outside.png", "b.png", "", "."]) == {
        "inside.png", "b.png",
    }  # fmt: skip
    linked = tmp_path / "linked"
    linked.symlink_to(images)
    assert fedcmp.data.images.ImageStore(linked).names(["b.png"]) == {"b.png"}, "the folder may be a link: prepare's is"


def test_an_encrypted_zip_is_named(root: Path) -> None:
    path = root / "red" / "images.zip"
    content = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    path.write_bytes(content.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00"))
    store, sample = fedcmp.data.images.ImageStore(path), Sample("1", "a.png", "a", "red", origin="a.jsonl:1")
    with pytest.raises(DataError, match=r"a\.jsonl:1: cannot read picture a\.png in .*images\.zip: .*encrypted"):
        store.read("a.png", sample.origin)
    store.close()


def test_bombs_are_refused_before_they_are_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs_source(root, ["red"])
    sample = source.samples("train")[0]
    with monkeypatch.context() as patch:
        patch.setattr(fedcmp.data.images, "LARGEST_FILE", 10)
        with pytest.raises(DataError, match=r"picture a\.png in .*images\.zip has \d+ bytes, more than 10"):
            source.image(sample)
    for width, height, most, named in (
        (10_000, 10_000, None, r"10,000 x 10,000 .*data\.max_pixels=89,478,485"),  # Pillow would warn of this,
        (2**20, 2**20, None, r"data\.max_pixels=89,478,485"),  # and refuse this,
        (8, 9, 71, r"8 x 9 .*data\.max_pixels=71"),
        (100_000, 1, None, r"100,000 x 1 .*factor"),
        (1, 201, None, r"1 x 201 .*factor"),
    ):
        parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(9)))
        chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
        bomb = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
        with pytest.raises(DataError, match=rf"picture red/a\.png cannot be decoded: .*{named}"):
            fedcmp.data.images.decode(bomb, sample, *([most] if most else []))
    assert Image.MAX_IMAGE_PIXELS == 89_478_485 == DataConfig.max_pixels, "as Pillow has it, before and after"


def test_a_broken_zip_is_named(root: Path) -> None:
    (root / "red" / "images.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"images\.zip cannot be read as a zip"):
        pairs_source(root)


def test_llavas_own_layout(root: Path) -> None:
    config = DataConfig(
        kind="file",
        train=str(root / "red" / "train.jsonl"),
        val=str(root / "red" / "val.jsonl"),
        images=str(root / "red" / "images.zip"),
    )
    source = build_source(config)
    held_out = {sample.id: sample for split in ("val", "test") for sample in source.samples(split)}
    assert source.image(held_out["red-val-d.png"]).getpixel((0, 0)) == (250, 128, 114)
    own_test = replace(config, val=str(root / "red" / "train.jsonl"), test=str(root / "red" / "val.jsonl"))
    with pytest.raises(DataError, match=r"id 'red-train-a\.png' stands already"):
        build_source(own_test)
    source = build_source(replace(own_test, train=str(root / "red" / "val.jsonl"), test=None))
    assert len(source.samples("val")) == len(source.samples("test")) == 1
    with pytest.raises(ConfigError, match=r"data\.images is needed for data\.kind=file"):
        DataConfig(kind="file", train="a", val="b").validate()


def test_a_file_without_held_out_records_gives_some_of_its_own(tmp_path: Path) -> None:
    pictures = {f"{number}.png": png(f"#{number % 7:02d}0000") for number in range(30)}  # some are equal
    domain(tmp_path, "red", pictures, {}, packed=True)
    folder = tmp_path / "red"
    config = DataConfig(
        kind="file", train=str(folder / "train.jsonl"), images=str(folder / "images.zip"), held_out_per_domain=6
    )
    config.validate()
    source = build_source(config)
    parts = {split: source.samples(split) for split in ("train", "val", "test")}
    assert len(parts["val"]) + len(parts["test"]) == 6
    seen = {split: {source.digest(sample) for sample in samples} for split, samples in parts.items()}
    assert not seen["val"] & seen["test"]
    assert not seen["train"] & (seen["val"] | seen["test"]), "pictures that are equal are not trained on, either"
    with pytest.raises(ConfigError, match=r"data\.test is given without data\.val"):
        replace(config, test="t.jsonl").validate()


def test_scenes_are_a_source() -> None:
    config = DataConfig(
        scenes_per_camera=3, val_scenes_per_camera=2, test_scenes_per_camera=2, domains=["plain", "tilted"]
    )
    source = build_source(config, seed=4)
    train, val = source.samples("train"), source.samples("val")
    assert count_domains(train) == {"plain": 3, "tilted": 3}
    assert len({sample.id for sample in [*train, *val, *source.samples("test")]}) == 14
    assert source.image(train[0]).size == (32, 32)
    references = [sample.caption for sample in val]
    assert source.score(references, val)["digits_named"] == 1.0
    with pytest.raises(ConfigError, match=r'no camera .plane.; did you mean "plain"'):
        build_source(DataConfig(domains=["plane"]))
