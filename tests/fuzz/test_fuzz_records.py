"""Any file of records, any archive and any picture is read, or refused with an error that names file and place."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from few import attempt, few
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fedcmp.data.images import decode
from fedcmp.data.layouts import LAYOUTS
from fedcmp.data.readers import Item, Options
from fedcmp.data.records import Sample, inside, parse_pairs, read_json
from fedcmp.data.stores import ImageStore
from fedcmp.errors import DataError

SAMPLE = Sample("1", "a.png", "a picture", "here", origin="a.jsonl:1")
GOOD = {"id": "1", "image": "a/b.png", "conversations": [{"from": "gpt", "value": "a cat"}]}
TEXTS = st.text(max_size=8)
PATHS = st.lists(st.sampled_from(["..", ".", "", "a", "b.png", "/", "\\", "C:", "\0", "~"]), max_size=4).map("/".join)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | PATHS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
FIELDS = st.sampled_from(["id", "image", "conversations", "domain", "label", "captions", "more"])


def is_sound(sample: Sample) -> None:
    """It can be written down, and its picture lies inside the folder of pictures."""
    for text in (sample.id, sample.image, sample.caption, sample.domain, sample.label or "", *sample.captions):
        text.encode()
    assert sample.id.strip()
    assert sample.caption.strip()
    assert not sample.image.startswith(("/", "\\"))
    assert ".." not in sample.image.replace("\\", "/").split("/")
    assert "\0" not in sample.image


@given(st.dictionaries(FIELDS, JSON, max_size=3), st.sets(FIELDS, max_size=1))
@few(120)
@example({"caption": "\ud800", "conversations": [{"from": "gpt", "value": "\ud83d"}]}, set())
@example({"image": "a\0b.png"}, set())
def test_any_record_is_a_sound_sample_or_refused(changes: dict[str, Any], missing: set[str]) -> None:
    record = {key: value for key, value in {**GOOD, **changes}.items() if key not in missing}
    pairs, message = attempt(lambda: parse_pairs(record, "a.jsonl:7"))
    assert pairs is not None or message.startswith("a.jsonl:7: ")
    for sample in pairs or ():
        is_sound(sample)


@given(st.lists(st.one_of(JSON, st.just(GOOD), st.binary(max_size=30)), max_size=4), st.booleans(), st.integers(0, 9))
@few(60)
@example([{**GOOD, "id": 10**4000}], False, 0)
@example([GOOD, b'{"id": ' + b"9" * 5000 + b"}"], False, 0)
@example([GOOD, b"[" * 3000], True, 0)
def test_any_file_of_records_is_read_or_refused(tmp_path: Path, parts: list[Any], array: bool, cut: int) -> None:
    content = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    text = b"[" + b",".join(content) + b"]" if array else b"\n".join(content)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text[: len(text) - cut])
    records, message = attempt(lambda: list(read_json(path)))
    assert records is not None or "a.jsonl" in message
    for origin, record in records or ():
        pairs, message = attempt(lambda here=origin, one=record: parse_pairs(one, here))  # type: ignore[misc]
        assert pairs is not None or message.startswith(f"{path}")
        for sample in pairs or ():
            is_sound(sample)


@given(PATHS | TEXTS)
@few(100)
def test_a_path_of_a_layout_stays_inside(path: str) -> None:
    found, message = attempt(lambda: inside(path, "a.json: record 3"))
    root = Path("/somewhere/pictures")
    assert message.startswith("a.json: record 3: field `image`") or root in (root / str(found)).resolve().parents


def packed(names: list[str], kind: str) -> bytes:
    """A zip, or a tar."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, b"\x89PNG" + bytes(64))
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 64
            shard.addfile(entry, io.BytesIO(bytes(64)))
    return file.getvalue()


@given(st.lists(st.sampled_from(["a.png", "../a.png", "b/c.png", "/etc/a.png"]), max_size=3, unique=True), st.data())
@few(60)
def test_any_bytes_of_a_zip_are_read_or_refused(tmp_path: Path, names: list[str], data: st.DataObject) -> None:
    content = bytearray(packed(names, "zip"))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "images.zip"
    path.write_bytes(content[: data.draw(st.integers(max(0, len(content) - 30), len(content)))])
    store, message = attempt(lambda: ImageStore(path))
    assert store is not None or "images.zip" in message
    if store is not None:
        for name in filter(store.has, ["a.png", "b/c.png"]):
            picture, message = attempt(lambda wanted=name: store.read(wanted, "here"))  # type: ignore[misc]
            assert picture is not None or "images.zip" in message
        store.close()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()), st.none() | st.integers(0, 6000))
@few(20)
def test_any_bytes_of_a_layout_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, layout: str, content: bytes, cut: int | None
) -> None:
    if cut is not None:
        content = packed(["1.jpg", "1.txt", "1.json", "../2.jpg"], "tar")[:cut]
    path = tmp_path_factory.mktemp("any") / "annotations.json"
    path.write_bytes(content)
    items, message = attempt(lambda: list(LAYOUTS[layout].read(path, Options())))
    assert items is not None or message
    assert all(isinstance(one, Item | DataError) for one in items or ())


@given(st.binary(max_size=60), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]), st.integers(0, 900))
@few(80)
def test_any_bytes_of_a_picture_are_a_picture_or_refused(junk: bytes, kind: str, place: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(file, kind)
    content = bytearray(file.getvalue())
    content[place % len(content) : place % len(content) + len(junk)] = junk
    found, message = attempt(lambda: decode(bytes(content), SAMPLE))
    assert found is not None or message.startswith("a.jsonl:1: ")
