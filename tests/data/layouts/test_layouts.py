"""Each layout, read from a few records written exactly as published."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import published
import pytest

from fedcmp.data.layouts import LAYOUTS, Item, Options, find_layout
from fedcmp.data.layouts.base import inside
from fedcmp.data.layouts.sources import find_files
from fedcmp.errors import ConfigError, DataError


def read(name: str, path: Path, **options: str) -> list[Item | DataError]:
    layout = find_layout(name)
    return [found for file in find_files([str(path)], layout) for found in layout.read(file, Options(**options))]


def good(found: list[Item | DataError]) -> list[Item]:
    assert all(isinstance(one, Item) for one in found), [str(one) for one in found if isinstance(one, DataError)]
    return [one for one in found if isinstance(one, Item)]


def bad(found: list[Item | DataError]) -> list[str]:
    return [str(one) for one in found if isinstance(one, DataError)]


def test_a_misspelt_layout_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown layout 'lava'; did you mean \"llava\""):
        find_layout("lava")


def test_llava(tmp_path: Path) -> None:
    items = good(read("llava", published.llava(tmp_path)))
    assert len(items) == 40
    assert items[4][:3] == ("000000004", ("00001/000000004.jpg",), ("a photo of thing 4",))
    assert items[4].origin.endswith("blip_laion_cc_sbu_558k.json: record 4")
    assert items[4].label is items[4].split is items[4].content is None


def test_llava_med_in_both_spellings_and_both_forms(tmp_path: Path) -> None:
    array = good(read("llava-med", published.llava_med(tmp_path)))
    assert array[3][:3] == ("28928573_Fig3", ("28928573_Fig3.jpg",), ("Axial view of case 3.",))
    rows = published.llava_med_rows(24)
    (tmp_path / "lines.jsonl").write_text(
        "\n".join(
            json.dumps({"conversations" if number % 2 and key == "conversatons" else key: row[key] for key in row})
            for number, row in enumerate(rows)
        )
    )
    lines = good(read("llava-med", tmp_path / "lines.jsonl"))
    assert [one[:3] for one in lines] == [one[:3] for one in array]
    assert re.search(r"lines\.jsonl:4$", lines[3].origin)


def test_rsicd_with_classes_from_lists_and_names(tmp_path: Path) -> None:
    items = good(read("rsicd", published.rsicd(tmp_path)))
    assert [items[0].label, items[8].label, items[16].label] == ["airport", "port", "desert"]
    assert items[0].captions == tuple(f"sentence {place} of airport_1.jpg ." for place in range(5))
    assert [one.split for one in items[4:8]] == ["train", "val", "test", "train"]
    (tmp_path / "dataset_rsicd.json").write_text('{"dataset": "rsicd"}')
    with pytest.raises(DataError, match=r"no pictures in member `images`"):
        read("rsicd", tmp_path)


def test_nwpu(tmp_path: Path) -> None:
    items = good(read("nwpu", published.nwpu(tmp_path)))
    assert len(items) == 20
    assert items[13].places == ("bridge/bridge_003.jpg", "bridge_003.jpg")
    assert items[13].label == "bridge"
    assert items[13].captions == ("the first of bridge 3 .", *(f"number {more} of bridge 3 ." for more in range(1, 5)))
    assert items[13].origin.endswith("dataset_nwpu.json: bridge[3]")
    assert [one.split for one in items[7:10]] == ["train", "val", "test"]
    (tmp_path / "dataset_nwpu.json").write_text("[1]")
    with pytest.raises(DataError, match=r"an object with a list for each class"):
        read("nwpu", tmp_path)


def test_coco(tmp_path: Path) -> None:
    published.coco(tmp_path)
    items = good(read("coco", published.coco(tmp_path, 6, "val2017", 500)))
    assert len(items) == 30
    assert items[2][:2] == ("2", ("000000000002.jpg", "train2017/000000000002.jpg"))
    assert items[2].captions == tuple(f"{place}: picture 2" for place in range(5))
    assert [one.split for one in items] == [None] * 24 + ["val"] * 6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content["annotations"][0].pop("caption"), r"annotations\[0\]: no field `caption`"),
        (lambda content: content["annotations"][3].update(caption=" "), r"field `annotations.caption` must be a text"),
        (lambda content: content["images"].append({"id": 77, "file_name": "x.jpg"}), r"`image_id` 77 of this picture"),
        (lambda content: content["images"][1].pop("file_name"), r"images\[1\]: no field `file_name`"),
        (
            lambda content: content["images"][1].update(file_name="../x.jpg"),
            r"images\[1\]: field `file_name` must stay",
        ),
    ],
)
def test_bad_records_of_coco(tmp_path: Path, change: Callable, complaint: str) -> None:
    path = published.coco(tmp_path) / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    published.dump(path, content)
    found = bad(read("coco", path))
    assert len(found) == 1
    assert re.search(complaint, found[0])


def test_a_file_of_another_form_is_no_coco(tmp_path: Path) -> None:
    published.dump(tmp_path / "captions_train2017.json", {"annotations": [{"image_id": 1, "caption": "a"}]})
    with pytest.raises(DataError, match=r"nothing in member `images`"):
        read("coco", tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": None}, r"record 2: field `id` must be a non-empty string or a number, got None"),
        ({"id": True}, r"field `id`"),
        ({"image": 5}, r"record 2: field `image` must be the path of a picture, got 5"),
        ({"image": "../../etc/passwd"}, r"field `image` must stay inside the folder of pictures"),
        ({"image": "/etc/passwd"}, r"field `image` must stay inside"),
        ({"image": "C:\\secret.jpg"}, r"field `image` must stay inside"),
        ({"image": "a\\..\\..\\b.jpg"}, r"field `image` must stay inside"),
        ({"conversations": "a caption"}, r"field `conversations` must be a list of turns"),
        ({"conversations": [{"from": "human", "value": "?"}]}, r'has no turn with "from": "gpt"'),
        ({"conversations": published.turns("  ")}, r"field `conversations` must be a text that is not empty"),
        ({"conversations": published.turns("\ud83d")}, r"holds half of a character"),
    ],
)
def test_bad_records_are_named_by_file_record_and_field(tmp_path: Path, change: dict, complaint: str) -> None:
    path = published.llava(tmp_path) / "blip_laion_cc_sbu_558k.json"
    rows = json.loads(path.read_text())
    published.dump(path, [*rows[:2], rows[2] | change, *rows[3:]])
    found = read("llava", path)
    assert len(found) == 40
    assert len(bad(found)) == 1
    assert re.search(complaint, bad(found)[0])
    for field in ("id", "image", "conversations"):
        published.dump(path, [{key: value for key, value in rows[0].items() if key != field}, 7])
        assert re.search(f"record 0: .*field `{field}`", bad(read("llava", path))[0])
        assert "record 1: expected a JSON object, got int" in bad(read("llava", path))[1]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    path = published.rsicd(tmp_path) / "dataset_rsicd.json"
    content = json.loads(path.read_text())
    content["images"][0]["split"] = "trian"
    content["images"][1]["split"] = "restval"
    content["images"][2]["sentences"] = []
    published.dump(path, content)
    found = read("rsicd", path)
    assert re.search(r"images\[0\]: field `split` is 'trian'; did you mean \"train\"", bad(found)[0])
    assert "images[2]: no caption in field `sentences.raw`" in bad(found)[1]
    assert found[1].split == "train"  # type: ignore[union-attr]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_ones_own(tmp_path: Path, delimiter: str) -> None:
    rows = [
        {"Name": "a/1.png", "Text": 'first; with, "all"\tand\na break', "What": "lung"},
        {"Name": "a/1.png", "Text": "second", "What": ""},
        {"Name": ".\\b\\2.png", "Text": "third", "What": "knee"},
    ]
    path = published.table(tmp_path / "notes.csv", rows, delimiter)
    items = good(read("csv", path, image_column="Name", caption_column="Text", label_column="What"))
    assert [one.id for one in items] == ["a/1.png", "a/1.png#2", ".\\b\\2.png"]
    assert [one.places for one in items] == [("a/1.png",), ("a/1.png",), ("b/2.png",)]
    assert [one.label for one in items] == ["lung", None, "knee"]
    assert items[0].captions == ('first; with, "all"\tand\na break',)
    assert items[1].origin.endswith("notes.csv:4")


def test_mistakes_in_a_table(tmp_path: Path) -> None:
    path = published.clinic(tmp_path)
    with pytest.raises(ConfigError, match=r"--image-column: no column 'image' in .*choices: case, file, organ, report"):
        read("csv", path)
    with pytest.raises(ConfigError, match=r"--label-column: no column 'orgn' .*did you mean \"organ\""):
        read("csv", path, image_column="file", caption_column="report", label_column="orgn")
    with path.open("a") as file:
        file.write(
            "scan_000.png,a text, with a comma,lung,c41\n,no picture,lung,c42\nscan_1.png,,lung,c43\nscan_2.png\n"
        )
    found = bad(read("csv", path, image_column="file", caption_column="report"))
    assert "notes.csv:42: more cells than the 4 columns; a text that holds ',' must stand in double quotes" in found[0]
    assert "notes.csv:43: field `file` must be a non-empty string" in found[1]
    assert "notes.csv:44: field `report` must be a text that is not empty, got ''" in found[2]
    assert "notes.csv:45: field `report` must be a text that is not empty, got None" in found[3]
    for before in ("", "a.png,x\n" * 5, "a.png,x\n" * 5000):  # of one chunk, and of several
        path.write_bytes(f"file,report\n{before}a.png,Röntgen\n".encode("latin-1"))
        line = 2 + before.count("\n")
        with pytest.raises(DataError, match=rf"notes\.csv:{line}: .* in position 7: .*save it as CSV in UTF-8"):
            read("csv", path, image_column="file", caption_column="report")
    path.write_text("\n")
    with pytest.raises(DataError, match=r"the first line is empty"):
        read("csv", path)
    path.write_text("image,image,caption\n")
    with pytest.raises(DataError, match=r"column 'image' stands twice"):
        read("csv", path)


@pytest.mark.parametrize(("later", "why"), [
    ("clear lungs", "unexpected end of data"),
    ('"clear, both lungs"', "',' expected after '\"'"),
])  # fmt: skip
def test_a_quote_that_is_not_closed_takes_no_rows(tmp_path: Path, later: str, why: str) -> None:
    rows = [f"s{number}.png,clear lungs" for number in range(200)]
    rows[50], rows[180] = 's50.png,"no comparison', f"s180.png,{later}"
    (tmp_path / "notes.csv").write_text("\n".join(["file,report", *rows]) + "\n")
    with pytest.raises(DataError, match=rf"notes\.csv:52: cannot be read: {why}; the double quote that opens a text"):
        read("csv", tmp_path / "notes.csv", image_column="file", caption_column="report")


def test_the_line_of_a_row_is_that_where_it_begins(tmp_path: Path) -> None:
    for text, line in (
        ('file,report,"a"b\nx', 1),
        ('file,report\na.png,"x"y\n', 2),
        ('file,report\na.png,x\n\nb.png,"y', 3),
    ):
        (tmp_path / "notes.csv").write_text(text)
        with pytest.raises(DataError, match=rf"notes\.csv:{line}: cannot be read"):
            read("csv", tmp_path / "notes.csv", image_column="file", caption_column="report")


def test_texts_of_several_lines_are_texts(tmp_path: Path) -> None:
    texts = [
        "lungs clear,\nno mass;\n3 cm, or less",
        'a "mark"\r\n\r\n"scan.png" is old',
        "clear\nas in s0.png, not new",
        "compare, if any,\ns0.png\nand, of last year,\ns1.png",
        "clear, no mass, 3 cm,\nsee scan.png, scan2.png, and others\n",
    ]
    rows = [{"file": f"s{number}.png", "report": text, "organ": "lung"} for number, text in enumerate(texts)]
    for columns in itertools.permutations(["file", "report", "organ"]):
        path = published.table(tmp_path / "notes.csv", [{name: row[name] for name in columns} for row in rows])
        found = good(read("csv", path, image_column="file", caption_column="report", label_column="organ"))
        assert [one.captions for one in found] == [(text.strip(),) for text in texts], columns
        assert [one.label for one in found] == ["lung"] * len(texts)


def test_sources_are_files_folders_globs_and_brace_lists(tmp_path: Path) -> None:
    home = published.shards(tmp_path / "shards")
    layout = LAYOUTS["webdataset"]
    names = ["00000.tar", "00001.tar", "00002.tar"]
    for word in (str(home), f"{home}/*.tar", f"{home}/{{00000..00002}}.tar", f"{home}/{{00000,00001,00002}}.tar"):
        assert [path.name for path in find_files([word], layout)] == names
    assert len(find_files([str(home), f"{home}/00001.tar"], layout)) == 3
    with pytest.raises(DataError, match=r"no file .*00003\.tar \(of .*00000\.\.00003"):
        find_files([f"{home}/{{00000..00003}}.tar"], layout)
    with pytest.raises(DataError, match=r"no file .*/x\*\.tar"):
        find_files([f"{home}/x*.tar"], layout)
    with pytest.raises(DataError, match=r"holds none of dataset_rsicd\.json"):
        find_files([str(home)], LAYOUTS["rsicd"])
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"holds 2 files \*\.csv \(a\.csv, b\.csv"):
        find_files([str(tmp_path)], LAYOUTS["csv"])


def test_paths_stay_inside() -> None:
    assert inside("./a//b.png", "", "") == "a/b.png"
    for path in ("", " ", "/", "\\x", "..", "a/../b", "a\0b", "D:/x", None):
        with pytest.raises(DataError):
            inside(path, "here", "image")
