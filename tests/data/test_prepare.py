"""From a set to a domain, and on to a trained projector: whole or not at all, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import published
import pytest
from PIL import Image
from published import read_lines

from fedcmp.cli import main
from fedcmp.data.layouts import LAYOUTS
from fedcmp.data.prepare import Recipe, prepare
from fedcmp.data.readers import Options
from fedcmp.data.settings import DataConfig
from fedcmp.data.sources import Source, build_source
from fedcmp.errors import ConfigError, DataError, RunFolderError

DOCS = Path(__file__).parents[2] / "docs"
CLINIC = Options(image_column="file", caption_column="report", label_column="organ")
COLUMNS = ["--image-column", "file", "--caption-column", "report"]
SIDES = ("train", "val", "test")


def make(layout: str, source: Path, out: Path, **more: Any) -> dict[str, Any]:
    return prepare(Recipe(layout, (str(source),), out, **more))


def load(root: Path, **more: Any) -> Source:
    return build_source(DataConfig(kind="pairs", root=str(root), **more))


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sides(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {side: read_lines(folder / f"{side}.jsonl") for side in SIDES}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_a_domain_that_loads(tmp_path: Path, layout: str) -> None:
    if layout == "roco":
        pytest.importorskip("pyarrow")
    names = {"webdataset": "shards", "csv": "clinic", "llava-med": "llava_med", "messages": "chat"}
    source = getattr(published, names.get(layout, layout))(tmp_path / "set")
    more = {"options": CLINIC if layout == "csv" else Options(), "skip_bad": layout == "messages"}
    out, again = tmp_path / "root" / layout, tmp_path / "again" / layout
    facts = make(layout, source, out, **more)
    loaded = load(tmp_path / "root", on_overlap="error")
    samples = {split: loaded.samples(split) for split in SIDES}
    assert {split: len(own) for split, own in samples.items()} == facts["counts"]
    assert all(facts["counts"].values())
    assert {loaded.image(sample).size for own in samples.values() for sample in own} == {(16, 12)}
    assert facts["splits"] == ("own" if layout in ("roco", "rsicd", "nwpu") else "drawn")
    assert len(samples["train"][0].captions) == (5 if layout in ("rsicd", "nwpu", "coco") else 0)
    assert facts["images"]["kind"] == ("packed" if layout in ("roco", "webdataset") else "linked")
    make(layout, source, again, **more)
    assert tree(again) == tree(out)


def test_captions_and_limits_are_drawn_and_train_and_val_of_coco_are_one_domain(tmp_path: Path) -> None:
    home = published.coco(tmp_path / "coco", 100)

    def captions(name: str, **more: int) -> dict[str, str]:
        make("coco", home, tmp_path / name, domain="d", **more)
        rows = [row for own in sides(tmp_path / name).values() for row in own]
        assert all(row["conversations"][1]["value"] in row["captions"] for row in rows)
        return {row["id"]: row["conversations"][1]["value"] for row in rows}

    first = captions("a")
    assert first != captions("c", seed=1)
    assert min(Counter(caption[0] for caption in first.values()).values()) > 10  # of 100, five captions each
    few, other = captions("d", limit=12), captions("e", limit=12, seed=1)
    assert len(few) == len(other) == 12
    assert few.keys() != other.keys()
    assert few.items() < first.items()
    published.coco(home, 6, "val2017", 500)
    facts = make("coco", home, tmp_path / "root" / "photos")
    assert facts["counts"] == {"train": 100, "val": 6, "test": 0}  # half of val is the test set at run time
    make("webdataset", published.shards(tmp_path / "shards"), tmp_path / "f", limit=9)
    with zipfile.ZipFile(tmp_path / "f" / "images.zip") as archive:
        assert len(archive.namelist()) == 9


def test_messages_keep_all_their_answers(tmp_path: Path) -> None:
    chat, out = published.chat(tmp_path / "set"), tmp_path / "talk" / "chat"
    with pytest.raises(DataError, match=r"chat\.json: record 30: field `image`"):
        make("messages", chat, out)
    facts = make("messages", chat, out, skip_bad=True)
    assert facts["left_out"]["bad_by_kind"] == {"records without a picture": 1, "records with several pictures": 1}
    assert facts["further_answers"] == 30
    one, whole = (load(out.parent, turns=turns).samples("train") for turns in ("first", "all"))
    texts = {sample.id: sample.caption for sample in whole}
    assert len(texts) == 56
    assert all(texts[f"{sample.id}#2"] == sample.caption.replace("text", "more") for sample in one)


def test_pictures_of_one_patient_stay_on_one_side(tmp_path: Path) -> None:
    clinic = published.clinic(tmp_path / "clinic", 60, patient=lambda n: f"p{n % 12}")
    options = CLINIC._replace(group_column="patient")
    make("csv", clinic, tmp_path / "out", val=8, test=8, options=options)
    held = [{int(row["image"][5:8]) % 12 for row in own} for own in sides(tmp_path / "out").values()]
    assert [len(found) for found in held] == [8, 2, 2]
    assert len(set.union(*held)) == 12
    with pytest.raises(ConfigError, match="--group-column"):
        make("csv", clinic, tmp_path / "none", val=8, test=0, options=options)


def test_equal_pictures_are_never_on_both_sides(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.jpg", "caption": f"text {number}"} for number in range(60)]
    files = {row["image"]: published.picture(number % 20) for number, row in enumerate(rows)}
    path = published.table(tmp_path / "set" / "t.csv", rows)
    folder, packed = published.foldered(tmp_path / "images", files), published.zipped(tmp_path / "z.zip", files)
    found = []
    for name, place in (("folder", folder), ("zip", packed), ("copy", folder)):
        facts = make("csv", path, tmp_path / name / "d", val=4, test=4, images=place, copy=name == "copy")
        assert (facts["pictures"], facts["counts"]) == (20, {"train": 36, "val": 12, "test": 12})
        found.append(sides(tmp_path / name / "d"))
    assert sum(len({int(row["image"][:-4]) % 20 for row in own}) for own in found[0].values()) == 20
    assert found[0] == found[1] == found[2]


def test_bad_records_stop_or_are_counted(tmp_path: Path) -> None:
    path = published.clinic(tmp_path / "clinic")
    with path.open("a") as file:
        file.write("nowhere.png,a text,lung,c41\nscan_000.png,,lung,c42\nscan_000.png,the same id,lung,c1\n")
    (path.parent / "pictures" / "scan_007.png").write_bytes(b"no picture")
    Image.new("L", (999, 1)).save(path.parent / "pictures" / "scan_008.png")
    scan = path.parent / "pictures" / "scan_009.png"
    scan.write_bytes(scan.read_bytes()[:-40])
    recipe = Recipe("csv", (str(path),), tmp_path / "root" / "clinic", options=CLINIC._replace(id_column="case"))
    with pytest.raises(DataError, match=r"notes\.csv:9: .*scan_007\.png"):
        prepare(recipe)
    assert not (tmp_path / "root" / "clinic").exists()
    for check, count, lines in ((False, 4, ["9", "42", "43", "44"]), (True, 6, ["9", "10", "11", "42", "43"])):
        facts = prepare(replace(recipe, skip_bad=True, check=check, out=tmp_path / f"{check}"))
        assert sum(facts["counts"].values()) == 43 - count
        assert facts["left_out"]["bad"] == count
        assert [re.findall(r"notes\.csv:(\d+)", text)[0] for text in facts["left_out"]["first_bad"]] == lines
    with pytest.raises(DataError, match=r"notes\.csv:2: .*scan_000\.png .*--max-pixels"):
        prepare(replace(recipe, check=True, max_pixels=99, out=tmp_path / "small"))
    path.write_text("file,report,organ,case\nnowhere.png,text,lung,c1\n")
    with pytest.raises(DataError, match=r"no record of .*notes\.csv:2: no file .*pictures/nowhere\.png"):
        prepare(replace(recipe, skip_bad=True, out=tmp_path / "other"))


def test_a_domain_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, out = published.llava(tmp_path / "LLaVA-Pretrain"), tmp_path / "root" / "web"
    monkeypatch.setattr("fedcmp.data.prepare.PROGRESS_EVERY", 20)
    told: list[str] = []
    facts = prepare(Recipe("llava", (str(home),), out, licence="see its card", val=5, test=5), told.append)
    assert told == ["20 records", "40 records"]
    assert (out / "images.zip").resolve() == (home / "images.zip").resolve()
    assert set(tree(out)) == {"SOURCE.md", "images.zip", "source.json", *(f"{side}.jsonl" for side in SIDES)}
    assert facts == json.loads((out / "source.json").read_text())
    assert facts["sha256"] == {name: digest for name, digest in tree(out).items() if name.endswith(".jsonl")}
    assert "see its card" in (out / "SOURCE.md").read_text()
    (row,) = [row for rows in sides(out).values() for row in rows if row["id"] == "web-000000004"]
    assert row == published.record("web-000000004", "00001/000000004.jpg", "a photo of thing 4", domain="web")
    with pytest.raises(RunFolderError, match=r"--out .*web"):
        make("llava", home, out)

    def full(self: Path, *_arguments: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunFolderError, match=r"--out .*other: .*No space left"):
            make("llava", home, tmp_path / "root" / "other")
    assert list((tmp_path / "root").iterdir()) == [out]
    out.rename(tmp_path / "root" / ".web.17.partial")
    with pytest.raises(DataError, match=r"data\.root"):
        load(tmp_path / "root")  # nor is what a killed process left a domain


def test_wrong_options_are_named(tmp_path: Path) -> None:
    home = published.llava(tmp_path / "set")
    for layout, more, named in (
        ("llava", {"options": Options(caption_column="x")}, "--caption-column is for layout csv"),
        ("webdataset", {"images": home}, "--images"),
        ("llava", {"limit": 0}, "--limit"),
        ("llava", {"domain": " "}, "--domain"),
        ("lava", {}, 'did you mean "llava"'),
    ):
        with pytest.raises(ConfigError, match=named):
            make(layout, home, tmp_path / "out", **more)
    (home / "images.zip").unlink()
    with pytest.raises(DataError, match=r"images\.zip, .*images; .*--images"):
        make("llava", home, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """Forty pictures of 1 MB, never more than a few at once."""
    home = tmp_path / "shards"
    home.mkdir()
    for shard in range(4):
        with tarfile.open(home / f"{shard}.tar", "w") as archive:
            for number in range(10):
                heavy = published.picture(10 * shard + number) + bytes([number]) * 1_000_000
                published.member(archive, f"{number}.jpg", heavy)
                published.member(archive, f"{number}.txt", b"a caption")
    make("webdataset", home, tmp_path / "warm")  # imports, caches
    tracemalloc.start()
    try:
        make("webdataset", home, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / "images.zip").stat().st_size > 40_000_000
    assert peak < 8_000_000


def ward(number: int) -> str:
    return f"ward {1 + number % 3}"


def test_every_step_for_ones_own_data_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in LAYOUTS)
    published.clinic(tmp_path / "north")
    published.clinic(tmp_path / "all", clinic=ward)
    monkeypatch.chdir(tmp_path)
    steps = [shlex.split(line)[1:] for line in re.findall(r"^fedcmp .*", page, re.M)][:3]
    assert [words[0] for words in steps] == ["prepare", "prepare", "plan"]
    assert [main(words) for words in steps] == [0, 0, 0]
    out = capsys.readouterr().out
    assert "36 training, 2 validation and 2 test samples" in out
    assert out.count("fewer than 40 test samples say little") == 2
    assert "fedcmp site init KIT.zip --data data/north" in out
    assert all(f"client {place} (ward {place + 1})" in out for place in range(3))


def test_what_is_left_out_is_told_and_rows_have_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = published.clinic(tmp_path / "set", 12, clinic=ward), tmp_path / "my root" / "all"
    row = table.read_text().splitlines()[4]
    again = (row, row, row.replace("finding", "mass"), row.replace("ward 1", "ward 2"), row.replace("ward 1", " "))
    table.write_text("\n".join([*table.read_text().splitlines(), *again]) + "\n")
    words = ["prepare", "csv", str(table), *COLUMNS, "--client-column", "clinic", "--out", str(out)]
    assert main(words) == 2
    assert "notes.csv:18: field `client`" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    told = capsys.readouterr().out
    assert "left out 1 bad records" in told
    assert "left out 2 rows" in told
    assert sum(map(len, sides(out).values())) == 14
    assert main(shlex.split(re.findall(r"^next: fedcmp (.*)$", told, re.M)[-1])) == 0
    assert "client 2 (ward 3)" in capsys.readouterr().out
