"""Each layout, read from a few records written exactly as published; bad records are named, and bad files refused."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import published
import pytest

from fedcmp.data.layouts import LAYOUTS, find_files
from fedcmp.data.readers import REPEATED, Item, Options
from fedcmp.errors import ConfigError, DataError


def read(name: str, path: Path, **options: str) -> list[Any]:
    layout = LAYOUTS[name]
    return [one for file in find_files([str(path)], layout) for one in layout.read(file, Options(**options))]


def good(found: list[Any], count: int) -> list[Item]:
    assert [str(one) for one in found if not isinstance(one, Item)] == []
    assert len(found) == count
    return found


def bad(found: list[Any]) -> list[str]:
    return [str(one) for one in found if isinstance(one, DataError)]


def test_records_of_json(tmp_path: Path) -> None:
    items = good(read("llava", published.llava(tmp_path / "llava")), 40)
    assert items[4][:3] == ("000000004", ("00001/000000004.jpg",), ("a photo of thing 4",))
    assert items[4].origin.endswith("blip_laion_cc_sbu_558k.json: record 4")
    assert items[4][4:] == (None, None, None, None, None, ())
    med = good(read("llava-med", published.llava_med(tmp_path / "med")), 24)
    assert med[3][:3] == ("3_Fig", ("3_Fig.jpg",), ("Axial view of case 3.",))
    chats = read("messages", published.chat(tmp_path / "chat"))
    assert (*chats[2][:3], chats[2].further) == ("chat.json:2", ("photos/2.jpg",), ("text 2",), ("more 2",))
    assert [one.kind for one in chats[30:]] == ["records without a picture", "records with several pictures"]
    items = good(read("rsicd", published.rsicd(tmp_path / "rsicd")), 17)
    assert [items[place].label for place in (0, 8, 16)] == ["airport", "port", "desert"]
    assert items[0].captions == tuple(f"sentence {place} of airport_1.jpg ." for place in range(5))
    assert [one.split for one in items[4:8]] == ["train", "val", "test", "train"]
    items = good(read("nwpu", published.nwpu(tmp_path / "nwpu")), 20)
    assert (items[13].places, items[13].label) == (("bridge/bridge_003.jpg", "bridge_003.jpg"), "bridge")
    assert items[13].captions == ("the first of bridge 3 .", *(f"number {more} of bridge 3 ." for more in range(1, 5)))
    assert items[13].origin.endswith("dataset_nwpu.json: bridge[3]")
    assert [one.split for one in items[7:10]] == ["train", "val", "test"]
    published.coco(tmp_path / "coco")
    items = good(read("coco", published.coco(tmp_path / "coco", 6, "val2017", 500)), 30)
    assert items[2][:2] == ("2", ("train2017/000000000002.jpg", "000000000002.jpg"))
    assert items[2].captions == tuple(f"{place}: picture 2" for place in range(5))
    assert [one.split for one in items] == [None] * 24 + ["val"] * 6


def test_roco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    items = good(read("roco", published.roco(tmp_path / "set")), 19)
    # files are read in the order of their names: test, train, validation
    assert [one.split for one in items] == ["test"] * 5 + ["train"] * 10 + ["val"] * 4
    assert [one.content for one in items[5:15]] == [published.picture(row, "PNG") for row in range(10)]
    assert items[5][:3] == ("ROCOv2_2023_train_000001", ("ROCOv2_2023_train_000001",), ("CT or not, case 0.",))
    assert [one.label for one in items[5:8]] == ["computed tomography", "x-ray", "magnetic resonance imaging"]
    assert items[14].origin.endswith("train-00000-of-00001.parquet: row 9")
    path = tmp_path / "train.parquet"
    cells = [{"bytes": b"x", "path": "a.png"}, {"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]
    columns = {"image": cells, "image_id": ["one", "../two", "three"], "caption": ["c", "d", None]}
    pa.parquet.write_table(pa.table({**columns, "cui": ["C0817096;C1306645", "", None]}), path)
    first, *others = read("roco", path)
    assert first.label == "x-ray"
    assert [message.split("`")[1] for message in bad(others)] == ["image", "caption"]
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"fedcmp\[data\]"):
        read("roco", path)


def test_shards(tmp_path: Path) -> None:
    items = good(read("webdataset", published.shards(tmp_path)), 24)
    assert items[9][:3] == ("00001/000010001", ("00001/000010001",), ("shard 1, sample 1",))
    assert items[9].origin.endswith("00001.tar: sample 000010001")
    assert [one.content for one in items] == [published.picture(number) for number in range(24)]
    assert good(read("webdataset", tmp_path, caption_key="caption"), 24)[9].captions == ("shard 1, sample 1 (json)",)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(directory := tarfile.TarInfo("sub"))
        directory.type = tarfile.DIRTYPE
        published.member(archive, "sub/0.PNG", published.picture(2, "PNG"))
        published.member(archive, "sub/0.seg.png", b"a mask is not the picture")
        published.member(archive, "sub/0.json", b'{"caption": ["one", "two"]}')
    (item,) = good(read("webdataset", tmp_path / "a.tar.gz"), 1)
    assert (item.id, item.captions, item.content) == ("a/sub/0", ("one", "two"), published.picture(2, "PNG"))


def test_tables(tmp_path: Path) -> None:
    rows = [{"image": f"{n // 2}.png", "caption": f"text {n}, it is", "organ": "lung" if n else ""} for n in range(4)]
    for delimiter in (",", ";", "\t"):
        items = good(read("csv", published.table(tmp_path / "t.csv", rows, delimiter), label_column="organ"), 4)
        assert [one.id for one in items] == ["0.png", "0.png#2", "1.png", "1.png#2"]
        assert items[1].captions == ("text 1, it is",)
        assert [one.label for one in items] == [None, "lung", "lung", "lung"]
    with (tmp_path / "t.csv").open("a") as file:
        file.write("9.png\ttoo\tmany\tcells\n0.png\ttext 0, it is\t\n9.png\n")
    found = read("csv", tmp_path / "t.csv", label_column="organ")
    assert [one.kind for one in found[4:]] == ["bad records", REPEATED, "bad records"]
    for column in ("image", "caption", "label"):
        with pytest.raises(ConfigError, match=f"--{column}-column"):
            read("csv", tmp_path / "t.csv", **{f"{column}_column": "none"})
    for text in ('image,caption\na.png,"open\nb.png,x\n', "image,caption\na.png,caf\xe9\n"):
        (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"t\.csv:2"):
            read("csv", tmp_path / "t.csv")


LLAVA, COCO = "blip_laion_cc_sbu_558k.json", "annotations/captions_train2017.json"


@pytest.mark.parametrize(("layout", "name", "change", "named"), [
    ("coco", COCO, lambda all_: all_["annotations"][0].pop("caption"), "[0]"),
    ("coco", COCO, lambda all_: all_["images"].append({"id": 77, "file_name": "x"}), "[24]"),
    ("llava", LLAVA, lambda all_: all_[2].update(image="/etc/passwd"), "record 2: field `image`"),
    ("rsicd", "dataset_rsicd.json", lambda all_: all_["images"][0].update(split="trian"), "[0]: field `split`"),
    ("rsicd", "dataset_rsicd.json", lambda all_: all_["images"][2].pop("sentences"), "[2]: a field is missing"),
    ("nwpu", "dataset_nwpu.json", lambda all_: all_["bridge"][2].update(raw=3), "bridge[2]: field `caption`"),
])  # fmt: skip
def test_bad_records_are_named(tmp_path: Path, layout: str, name: str, change: Any, named: str) -> None:
    path = getattr(published, layout)(tmp_path) / name
    content = json.loads(path.read_text())
    change(content)
    (message,) = bad(read(layout, published.dump(path, content)))
    assert path.name in message
    assert named in message


def test_bad_samples_of_a_shard_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(archive: tarfile.TarFile) -> None:
        for name, text in {
            "../../up.txt": b"up", "/outside/abs.txt": b"abs", "b.cls": b"no caption", "c.json": b"{no json",
            "d.json": b'{"captoin": "x"}', "e.txt": b"\xff\xfe",
        }.items():  # fmt: skip
            published.member(archive, f"{name.rpartition('.')[0]}.jpg", published.picture(1))
            published.member(archive, name, text)
        published.member(archive, "a.txt", b"no picture")
        for name, kind in {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}.items():
            entry = tarfile.TarInfo(f"{name}.jpg")
            entry.type, entry.linkname = kind, "000000000.jpg"
            archive.addfile(entry)
            published.member(archive, f"{name}.txt", b"a caption")

    found = read("webdataset", published.shards(tmp_path, more=more))
    assert all(place.startswith("0000") for one in found if isinstance(one, Item) for place in one.places)
    named = [message.split("sample ")[1].split(":")[0] for message in bad(found)]
    assert named == ["../../up", "b", "c", "d", "e", "a", "soft", "hard", "fifo"]
    monkeypatch.setattr("fedcmp.data.readers.LARGEST_FILE", 10)
    assert not [one for one in read("webdataset", tmp_path) if isinstance(one, Item)], "they are too large"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]


def test_sources_are_files_folders_globs_and_brace_lists(tmp_path: Path) -> None:
    home = published.shards(tmp_path / "shards")
    layout = LAYOUTS["webdataset"]
    for word in (str(home), f"{home}/*.tar", f"{home}/{{00000..00002}}.tar", f"{home}/{{00000,00001,00002}}.tar"):
        assert [path.name for path in find_files([word], layout)] == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(find_files([str(home), f"{home}/00001.tar"], layout)) == 3
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("image,caption\n")
    for word, kind, named in (
        (f"{home}/{{00000..00003}}.tar", "webdataset", r"00003\.tar"),
        (str(home), "rsicd", "rsicd"),
        (str(tmp_path), "csv", "2 files"),
    ):
        with pytest.raises(DataError, match=named):
            find_files([word], LAYOUTS[kind])
