"""Layouts whose pictures come with the records: parquet files and tar shards."""

from __future__ import annotations

import builtins
import io
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import published
import pytest

from fedcmp.data.layouts import Item, Options, find_layout, roco
from fedcmp.data.layouts.sources import find_files
from fedcmp.errors import ConfigError, DataError


def read(name: str, path: Path, **options: str) -> list[tuple[Item | DataError, bytes | None]]:
    """Items with their pictures, each read while it is the current one."""
    layout = find_layout(name)
    return [
        (found, found.content() if isinstance(found, Item) and found.content else None)
        for file in find_files([str(path)], layout)
        for found in layout.read(file, Options(**options))
    ]


def good(found: list[tuple[Item | DataError, bytes | None]]) -> list[Item]:
    return [one for one, _ in found if isinstance(one, Item)]


def bad(found: list[tuple[Item | DataError, bytes | None]]) -> list[str]:
    return [str(one) for one, _ in found if isinstance(one, DataError)]


def test_roco(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    found = read("roco", published.roco(tmp_path))
    items = good(found)
    assert len(items) == len(found) == 19
    # files are read in the order of their names: test, train, validation
    assert [one.split for one in items] == ["test"] * 5 + ["train"] * 10 + ["val"] * 4
    train = found[5:15]
    assert [content for _, content in train] == [published.picture(row, "PNG") for row in range(10)]
    assert items[5][:3] == ("ROCOv2_2023_train_000001", ("ROCOv2_2023_train_000001",), ("CT or not, case 0.",))
    assert [one.label for one in items[5:8]] == ["computed tomography", "x-ray", "magnetic resonance imaging"]
    assert items[14].origin.endswith("train-00000-of-00001.parquet: row 9")


def test_pictures_of_parquet_are_read_only_if_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    published.roco(tmp_path)
    asked: list[list[str]] = []
    original = pq.ParquetFile.read_row_group

    def watched(self: Any, group: int, columns: list[str]) -> Any:
        asked.append(columns)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    (path,) = tmp_path.glob("data/train-*")
    items = list(roco.read(path, Options()))
    assert len(items) == 10
    assert ["image"] not in asked
    asked.clear()
    for number, one in enumerate(roco.read(path, Options())):
        if number in (5, 6):
            assert one.content() == published.picture(number, "PNG")  # type: ignore[union-attr, misc]
    assert asked.count(["image"]) == 1  # of three row groups of at most four pictures


def test_concepts_as_a_text_and_none_at_all() -> None:
    assert roco._modality("C0817096;C1306645") == "x-ray"
    assert roco._modality("") is roco._modality(None) is roco._modality(["C9"]) is None


def test_bad_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as a parquet file"):
        read("roco", path)
    pq.write_table(pa.table({"img": ["a"], "image_id": ["b"], "caption": ["c"]}), path)
    with pytest.raises(DataError, match=r"no column `image`"):
        read("roco", path)
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]
    columns = {"image": cells, "image_id": ["one", "../two", "three"], "caption": ["c", "d", None]}
    pq.write_table(pa.table(columns), path)
    reading = roco.read(path, Options())
    first = next(reading)
    with pytest.raises(DataError, match=r"row 0: column `image` holds no `bytes` of a picture"):
        first.content()  # type: ignore[union-attr, misc]
    rows = list(roco.read(path, Options()))
    assert re.search(r"row 1: field `image_id` must stay inside", str(rows[1]))
    assert re.search(r"row 2: field `caption` must be a text that is not empty, got None", str(rows[2]))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"needs pyarrow, .*pip install 'fedcmp\[data\]'"):
        read("roco", tmp_path)


def test_shards(tmp_path: Path) -> None:
    found = read("webdataset", published.shards(tmp_path))
    items = good(found)
    assert len(items) == len(found) == 24
    assert items[9][:3] == ("00001/000010001", ("00001/000010001",), ("shard 1, sample 1",))
    assert items[9].origin.endswith("00001.tar: sample 000010001")
    assert [content for _, content in found] == [published.picture(number) for number in range(24)]
    named = good(read("webdataset", tmp_path, caption_key="caption"))
    assert named[9].captions == ("shard 1, sample 1 (json)",)


def test_compressed_shards_and_other_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(directory := tarfile.TarInfo("sub"))
        directory.type = tarfile.DIRTYPE
        for number in range(3):
            published.member(archive, f"sub/{number}.PNG", published.picture(number, "PNG"))
            published.member(archive, f"sub/{number}.seg.png", b"a mask is not the picture")
            published.member(archive, f"sub/{number}.json", b'{"caption": ["one", "two"]}')
        published.member(archive, "README", b"of no use")
    found = read("webdataset", tmp_path)
    assert [one.id for one in good(found)] == ["a/sub/0", "a/sub/1", "a/sub/2"]
    assert good(found)[1].captions == ("one", "two")
    assert found[2][1] == published.picture(2, "PNG")
    assert not bad(found)


def test_a_text_of_a_shard_may_begin_as_windows_begins_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        published.member(archive, "0.png", published.picture(0, "PNG"))
        published.member(archive, "0.txt", "\ufeffa caption".encode())
    assert good(read("webdataset", tmp_path))[0].captions == ("a caption",)


def linked(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def test_shards_never_lead_out(tmp_path: Path) -> None:
    def evil(archive: tarfile.TarFile, shard: int) -> None:
        if shard:
            return
        published.member(archive, "../../up.jpg", published.picture(90))
        published.member(archive, "../../up.txt", b"up")
        published.member(archive, "/outside/abs.jpg", published.picture(91))
        archive.addfile(linked("soft.jpg", "/etc/passwd"))
        published.member(archive, "soft.txt", b"a caption")
        archive.addfile(linked("hard.jpg", "000000000.jpg", tarfile.LNKTYPE))
        published.member(archive, "hard.txt", b"a caption")
        archive.addfile(linked("nameless", "/etc"))
        archive.addfile(linked("fifo.jpg", "", tarfile.FIFOTYPE))

    found = read("webdataset", published.shards(tmp_path, more=evil))
    assert len(good(found)) == 24
    assert not any("up" in one.id or "abs" in one.id or "hard" in one.id for one in good(found))
    wanted = [
        r"00000\.tar: sample \.\./\.\./up: member '\.\./\.\./up\.jpg' leads out of the shard",
        r"member '/outside/abs\.jpg' leads out of the shard",
        r"sample soft: member 'soft\.jpg' is a link or a device, not a file",
        r"member 'hard\.jpg' is a link",
        r"member 'nameless' is a link",
        r"member 'fifo\.jpg' is a link or a device",
    ]
    assert len(bad(found)) == len(wanted)
    for message, pattern in zip(bad(found), wanted, strict=True):
        assert re.search(pattern, message)


def test_members_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = published.shards(tmp_path)
    monkeypatch.setattr("fedcmp.data.layouts.webdataset.LARGEST_FILE", 10)
    found = read("webdataset", files)
    assert not good(found)
    assert all(re.search(r"member '\d+\.jpg' has [\d,]+ bytes, too many to be read", message) for message in bad(found))


def test_bad_samples(tmp_path: Path) -> None:
    def more(archive: tarfile.TarFile, shard: int) -> None:
        if shard == 0:
            published.member(archive, "a.txt", b"no picture")
            published.member(archive, "b.jpg", published.picture(80))
            published.member(archive, "c.jpg", published.picture(81))
            published.member(archive, "c.json", b"{no json")
            published.member(archive, "d.jpg", published.picture(82))
            published.member(archive, "d.json", b'{"captoin": "x"}')
            published.member(archive, "e.jpg", published.picture(83))
            published.member(archive, "e.txt", b"\xff\xfe")
            published.member(archive, "f.jpg", published.picture(84))
            published.member(archive, "f.jpg", published.picture(85))

    messages = bad(read("webdataset", published.shards(tmp_path, 1, more)))
    wanted = [
        r"sample a: no picture; expected one of a\.jpg, a\.jpeg, a\.png, a\.webp",
        r"sample b: no caption; expected a \.json file or a \.txt file",
        r"sample c: its caption cannot be read",
        r"sample d: no field `caption`; did you mean \"captoin\"",
        r"sample e: its caption cannot be read",
        r"sample f: member 'f\.jpg' stands twice",
    ]
    assert len(messages) == len(wanted)
    for message, pattern in zip(messages, wanted, strict=True):
        assert re.search(pattern, message)


@pytest.mark.parametrize("cut", ["header", "picture", "noise", "nothing"])
def test_corrupted_shards_are_named(tmp_path: Path, cut: str) -> None:
    path = published.shards(tmp_path, 1) / "00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        second = archive.getmembers()[3]
    if cut == "header":
        path.write_bytes(whole[: second.offset] + b"\x01" * 512 + whole[second.offset + 512 :])
    elif cut == "picture":
        path.write_bytes(whole[: second.offset_data + 10])
    else:
        path.write_bytes(b"noise" * 200 if cut == "noise" else b"")
    with pytest.raises(DataError, match=r"00000\.tar cannot be read as a tar shard"):
        read("webdataset", path)


def test_nothing_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = published.shards(tmp_path)
    original = builtins.open

    def readonly(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        assert not set(mode) & set("wax+"), f"{file} is opened to write"
        return original(file, mode, *rest, **more)

    monkeypatch.setattr(builtins, "open", readonly)
    monkeypatch.setattr(io, "open", readonly)
    assert len(good(read("webdataset", home))) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
