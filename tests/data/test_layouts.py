"""Each layout, read from a few records written exactly as published; bad records are named, and bad files refused."""

from __future__ import annotations

import itertools
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest

from fedcmp.data.layouts import LAYOUTS, Item, find_files, find_layout, read_items
from fedcmp.data.readers import Options, Repeated, _modality
from fedcmp.errors import ConfigError, DataError


def read(name: str, path: Path, **options: str) -> list[Item | DataError]:
    """Items with their pictures, each read while it is the current one."""
    layout = find_layout(name)
    files = find_files([str(path)], layout)
    return [
        found._replace(content=found.content()) if isinstance(found, Item) and found.content else found
        for file in files
        for found in read_items(layout, file, Options(**options))
    ]


def good(found: list[Item | DataError]) -> list[Item]:
    assert all(isinstance(one, Item) for one in found), [str(one) for one in found if isinstance(one, DataError)]
    return [one for one in found if isinstance(one, Item)]


def bad(found: list[Item | DataError]) -> list[str]:
    return [str(one) for one in found if isinstance(one, DataError)]


def test_conversations(tmp_path: Path) -> None:
    items = good(read("llava", published.llava(tmp_path)))
    assert len(items) == 40
    assert items[4][:3] == ("000000004", ("00001/000000004.jpg",), ("a photo of thing 4",))
    assert items[4].origin.endswith("blip_laion_cc_sbu_558k.json: record 4")
    assert items[4][4:] == (None, None, None, None, None, ())
    med = good(read("llava-med", published.llava_med(tmp_path / "med")))
    assert med[3][:3] == ("3_Fig", ("3_Fig.jpg",), ("Axial view of case 3.",))
    chats = read("messages", published.chat(tmp_path / "chat"))
    assert chats[2][:3] == ("chat.json:2", ("photos/2.jpg",), ("text 2",))  # type: ignore[index]
    assert chats[2].further == ("more 2",)  # type: ignore[union-attr]
    assert [one.kind for one in chats[30:]] == ["records without a picture", "records with several pictures"]  # type: ignore[union-attr]


def test_rsicd_with_classes_from_lists_and_names(tmp_path: Path) -> None:
    items = good(read("rsicd", published.rsicd(tmp_path)))
    assert [items[0].label, items[8].label, items[16].label] == ["airport", "port", "desert"]
    assert items[0].captions == tuple(f"sentence {place} of airport_1.jpg ." for place in range(5))
    assert [one.split for one in items[4:8]] == ["train", "val", "test", "train"]


def test_nwpu(tmp_path: Path) -> None:
    items = good(read("nwpu", published.nwpu(tmp_path)))
    assert len(items) == 20
    assert items[13].places == ("bridge/bridge_003.jpg", "bridge_003.jpg")
    assert items[13].label == "bridge"
    assert items[13].captions == ("the first of bridge 3 .", *(f"number {more} of bridge 3 ." for more in range(1, 5)))
    assert items[13].origin.endswith("dataset_nwpu.json: bridge[3]")
    assert [one.split for one in items[7:10]] == ["train", "val", "test"]


def test_coco(tmp_path: Path) -> None:
    published.coco(tmp_path)
    items = good(read("coco", published.coco(tmp_path, 6, "val2017", 500)))
    assert len(items) == 30
    assert items[2][:2] == ("2", ("train2017/000000000002.jpg", "000000000002.jpg"))
    assert items[2].captions == tuple(f"{place}: picture 2" for place in range(5))
    assert [one.split for one in items] == [None] * 24 + ["val"] * 6


def test_roco_reads_pictures_only_if_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    items = good(read("roco", published.roco(tmp_path)))
    # files are read in the order of their names: test, train, validation
    assert [one.split for one in items] == ["test"] * 5 + ["train"] * 10 + ["val"] * 4
    assert [one.content for one in items[5:15]] == [published.picture(row, "PNG") for row in range(10)]
    assert items[5][:3] == ("ROCOv2_2023_train_000001", ("ROCOv2_2023_train_000001",), ("CT or not, case 0.",))
    assert [one.label for one in items[5:8]] == ["computed tomography", "x-ray", "magnetic resonance imaging"]
    assert items[14].origin.endswith("train-00000-of-00001.parquet: row 9")
    assert _modality("C0817096;C1306645") == "x-ray"
    assert _modality("") is _modality(None) is _modality(["C9"]) is None
    asked: list[list[str]] = []
    original = pq.ParquetFile.read_row_group

    def watched(self: Any, group: int, columns: list[str]) -> Any:
        asked.append(columns)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    (path,) = tmp_path.glob("data/train-*")
    for number, one in enumerate(read_items(LAYOUTS["roco"], path, Options())):
        if number in (5, 6):
            assert one.content() == published.picture(number, "PNG")  # type: ignore[union-attr, misc]
    assert asked.count(["image"]) == 1  # of three row groups of at most four pictures


def test_shards(tmp_path: Path) -> None:
    items = good(read("webdataset", published.shards(tmp_path)))
    assert len(items) == 24
    assert items[9][:3] == ("00001/000010001", ("00001/000010001",), ("shard 1, sample 1",))
    assert items[9].origin.endswith("00001.tar: sample 000010001")
    assert [one.content for one in items] == [published.picture(number) for number in range(24)]
    named = good(read("webdataset", tmp_path, caption_key="caption"))
    assert named[9].captions == ("shard 1, sample 1 (json)",)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(directory := tarfile.TarInfo("sub"))
        directory.type = tarfile.DIRTYPE
        published.member(archive, "sub/0.PNG", published.picture(2, "PNG"))
        published.member(archive, "sub/0.seg.png", b"a mask is not the picture")
        published.member(archive, "sub/0.json", b'{"caption": ["one", "two"]}')
        published.member(archive, "README", b"of no use")
    (item,) = good(read("webdataset", tmp_path / "a.tar.gz"))
    assert (item.id, item.captions, item.content) == ("a/sub/0", ("one", "two"), published.picture(2, "PNG"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_ones_own(tmp_path: Path, delimiter: str) -> None:
    texts = ['first; with, "all"\tand\na break', "second", "third", "second"]
    names, labels = ("a/1.png", "a/1.png", ".\\b\\2.png", "a/1.png"), ("lung", "", "knee", "")
    rows = [{"Name": n, "Text": t, "What": w, "": "0"} for n, t, w in zip(names, texts, labels, strict=True)]
    for columns in itertools.permutations(["Name", "Text", "What", ""]):
        path = published.table(tmp_path / "n.csv", [{one: row[one] for one in columns} for row in rows], delimiter)
        *items, again = read("csv", path, image_column="Name", caption_column="Text", label_column="What")
        assert [one.id for one in good(items)] == ["a/1.png", "a/1.png#2", ".\\b\\2.png"]
        assert [one.places for one in good(items)] == [("a/1.png",), ("a/1.png",), ("b/2.png",)]
        assert [one.label for one in good(items)] == ["lung", None, "knee"]
        assert good(items)[0].captions == (texts[0],)
        assert good(items)[1].origin.endswith("n.csv:4")
        assert isinstance(again, Repeated)


def test_mistakes_in_a_table(tmp_path: Path) -> None:
    path = published.clinic(tmp_path)
    columns = {"image_column": "file", "caption_column": "report"}
    with pytest.raises(ConfigError, match=r"--image-column.*'image'"):
        read("csv", path)
    with pytest.raises(ConfigError, match=r"--label-column.*'orgn'.*did you mean \"organ\""):
        read("csv", path, **columns, label_column="orgn")
    with path.open("a") as file:
        file.write("scan_0.png,a text, with a comma,lung,c41\n,no,lung,c42\nscan_1.png,,lung,c43\nscan_2.png\n")
    found = bad(read("csv", path, **columns))
    for message, named in zip(found, (":42: more cells", ":43: field `file`", ":44: field `report`",
                                      ":45: field `report`"), strict=True):  # fmt: skip
        assert f"notes.csv{named}" in message
    path.write_text("file,report\na.png,x\nb.png,\n")
    (row,) = bad(read("csv", path, **columns, client_column="report")[1:])
    assert "notes.csv:3: field `report`" in row
    for content, line in ((b"R\xf6ntgen", 2), (b'"no comparison', 2), (b'"a"b', 2), (b'x\n\nb.png,"y', 3)):
        path.write_bytes(b"file,report\na.png," + content)
        with pytest.raises(DataError, match=rf"notes\.csv:{line}"):
            read("csv", path, **columns)
    for header in ("\n", "file,file,report\n"):
        path.write_text(header)
        with pytest.raises(ConfigError, match="--image-column"):
            read("csv", path, **columns)


COCO, LLAVA, RSICD = "annotations/captions_train2017.json", "blip_laion_cc_sbu_558k.json", "dataset_rsicd.json"
Change = Callable[[Any], Any]
CHANGES: list[tuple[str, str, Change, str]] = [
    ("coco", COCO, lambda all_: all_["annotations"][0].pop("caption"), "annotations[0]"),
    ("coco", COCO, lambda all_: all_["images"].append({"id": 77, "file_name": "x.jpg"}), "images[24]"),
    ("llava", LLAVA, lambda all_: all_[2].update(image="/etc/passwd"), "record 2: field `image`"),
    ("llava", LLAVA, lambda all_: all_.append(7), "record 40: expected"),
    ("rsicd", RSICD, lambda all_: all_["images"][0].update(split="trian"), "field `split`"),
    ("rsicd", RSICD, lambda all_: all_["images"][2].update(sentences=[]), "images[2]: field `sentences`"),
    ("nwpu", "dataset_nwpu.json", lambda all_: all_["bridge"][2].update(raw=3), "bridge[2]: field `raw`"),
]


@pytest.mark.parametrize(("layout", "name", "change", "named"), CHANGES, ids=[f"{c[0]} {c[3]}" for c in CHANGES])
def test_bad_records_are_named_by_file_record_and_field(
    tmp_path: Path, layout: str, name: str, change: Change, named: str
) -> None:
    path = getattr(published, layout)(tmp_path) / name
    whole = len(read(layout, path))
    content = json.loads(path.read_text())
    change(content)
    published.dump(path, content)
    found = read(layout, path)
    assert len(found) >= whole
    (message,) = bad(found)
    assert path.name in message
    assert named in message


def test_bad_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "train.parquet"
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]
    columns = {"image": cells, "image_id": ["one", "../two", "three"], "caption": ["c", "d", None]}
    pa.parquet.write_table(pa.table(columns), path)
    first, *others = read_items(LAYOUTS["roco"], path, Options())
    with pytest.raises(DataError, match=r"row 0: .*`image`"):
        first.content()  # type: ignore[union-attr, misc]
    assert [message.split("`")[1] for message in bad(others)] == ["image_id", "caption"]
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"fedcmp\[data\]"):
        read("roco", path)


def test_bad_samples_of_a_shard_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(archive: tarfile.TarFile) -> None:
        for key, suffix, text in (
            ("../../up", "txt", b"up"),
            ("/outside/abs", "txt", b"abs"),
            ("b", "cls", b"no caption"),
            ("c", "json", b"{no json"),
            ("d", "json", b'{"captoin": "x"}'),
            ("e", "txt", b"\xff\xfe"),
        ):
            published.member(archive, f"{key}.jpg", published.picture(1))
            published.member(archive, f"{key}.{suffix}", text)
        published.member(archive, "a.txt", b"no picture")
        links = {"soft.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE, "fifo.jpg": tarfile.FIFOTYPE}
        for name, kind in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "000000000.jpg"
            archive.addfile(entry)
            published.member(archive, name.replace("jpg", "txt"), b"a caption")

    found = read("webdataset", published.shards(tmp_path, more=more))
    assert all(place.startswith("0000") for one in found if isinstance(one, Item) for place in one.places)
    named = [message.split("sample ")[1].split(":")[0] for message in bad(found)]
    assert named == ["../../up", "b", "c", "d", "e", "a", "soft", "hard", "fifo"]
    monkeypatch.setattr("fedcmp.data.readers.LARGEST_FILE", 10)
    assert not [one for one in read("webdataset", tmp_path) if isinstance(one, Item)], "they are too large"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]


@pytest.mark.parametrize("cut", ["header", "picture"])
def test_corrupted_shards_are_named(tmp_path: Path, cut: str) -> None:
    path = published.shards(tmp_path, 1) / "00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmembers()[3]
    header = whole[: third.offset] + b"\x01" * 512 + whole[third.offset + 512 :]
    path.write_bytes(header if cut == "header" else whole[: third.offset_data + 10])
    with pytest.raises(DataError, match=r"00000\.tar"):
        read("webdataset", path)


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
        (f"{home}/x*.tar", "webdataset", r"x\*\.tar"),
        (str(home), "rsicd", "rsicd"),
        (str(tmp_path), "csv", "2 files"),
    ):
        with pytest.raises(DataError, match=named):
            find_files([word], LAYOUTS[kind])
    with pytest.raises(ConfigError, match=r"'lava'; did you mean \"llava\""):
        find_layout("lava")
