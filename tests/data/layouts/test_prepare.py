"""From a set to a domain: whole or not at all, the same bytes every time, nothing from outside."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
from published import read_jsonl

from fedcmp.data.readers import Options
from fedcmp.data.prepare import prepare
from fedcmp.data.prepare import Recipe
from fedcmp.data.sources import count_domains, pairs_source
from fedcmp.errors import ConfigError, DataError, RunFolderError

CLINIC = Options(image_column="file", caption_column="report", label_column="organ")


def make(layout: str, source: Path, out: Path, **more: Any) -> dict[str, Any]:
    return prepare(Recipe(layout, (str(source),), out, **more)).facts


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_llava_links_its_zip_and_holds_out(tmp_path: Path) -> None:
    home, out = published.llava(tmp_path / "LLaVA-Pretrain"), tmp_path / "root" / "web"
    facts = make("llava", home, out, licence="see its card", val=5, test=5)
    assert facts["counts"] == {"train": 30, "val": 5, "test": 5}
    assert (out / "images.zip").is_symlink()
    assert (out / "images.zip").resolve() == (home / "images.zip").resolve()
    assert sorted(path.name for path in out.iterdir()) == [
        "SOURCE.md", "images.zip", "source.json", "test.jsonl", "train.jsonl", "val.jsonl"
    ]  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    assert facts == json.loads((out / "source.json").read_text())
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert "see its card" in (out / "SOURCE.md").read_text()
    row = next(row for split in ("train", "val", "test") for row in read_jsonl(out / f"{split}.jsonl")
               if row["id"] == "web-000000004")  # fmt: skip
    assert row == {
        "id": "web-000000004",
        "image": "00001/000000004.jpg",
        "domain": "web",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a photo of thing 4"}],
    }


@pytest.mark.parametrize("layout", ["llava", "llava-med", "roco", "rsicd", "nwpu", "coco", "webdataset", "csv"])
def test_every_layout_gives_a_domain_that_loads(tmp_path: Path, layout: str) -> None:
    if layout == "roco":
        pytest.importorskip("pyarrow")
    write = {"webdataset": published.shards, "csv": published.clinic, "llava-med": published.llava_med}
    source = write.get(layout, getattr(published, layout, None))(tmp_path / "set")  # type: ignore[misc]
    options = CLINIC if layout == "csv" else Options()
    out = tmp_path / "root" / layout
    facts = make(layout, source, out, options=options)
    loaded = pairs_source(tmp_path / "root", on_overlap="error")
    sizes = {split: len(loaded.samples(split)) for split in ("train", "val", "test")}
    assert sizes == facts["counts"]
    assert min(sizes.values()) > 0
    for split in sizes:
        for sample in loaded.samples(split):
            assert loaded.image(sample).size == (16, 12)
    assert facts["splits"] == ("own" if layout in ("roco", "rsicd", "nwpu") else "drawn")
    assert facts["licence"] == "unknown; ask the owner"
    captions = {sample.captions for split in sizes for sample in loaded.samples(split)}
    assert {len(found) for found in captions} == ({5} if layout in ("rsicd", "nwpu", "coco") else {0})
    packed = layout in ("roco", "webdataset")
    assert facts["images"]["kind"] == ("packed" if packed else "linked")
    assert not packed or (out / "images.zip").is_file()
    again = tmp_path / "again" / layout
    make(layout, source, again, options=options)
    assert tree(again) == tree(out)


def test_messages_keep_all_their_answers_and_the_run_says_which_are_used(tmp_path: Path) -> None:
    path, root = published.chat(tmp_path / "set"), tmp_path / "root"
    with pytest.raises(DataError, match=r"chat\.json: record 30: field `image`"):
        make("messages", path, root / "chat")
    facts = make("messages", path, root / "chat", skip_bad=True)
    assert facts["left_out"]["bad_by_kind"] == {"records without a picture": 1, "records with several pictures": 1}
    assert facts["further_answers"] == 30
    first, whole = (pairs_source(root, turns=turns) for turns in ("first", "all"))
    assert first.left_out == {"answers after the first": 30}
    assert (len(first.samples("train")), len(whole.samples("train")), whole.left_out) == (28, 56, {})
    captions = {sample.id: sample.caption for sample in whole.samples("train")}
    assert all(
        captions[f"{sample.id}#2"] == sample.caption.replace("text", "more") for sample in first.samples("train")
    )


def test_a_root_of_two_layouts_is_a_federation(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make("nwpu", published.nwpu(tmp_path / "nwpu"), root / "space")
    make("csv", published.clinic(tmp_path / "clinic"), root / "clinic", options=CLINIC)
    make("coco", published.coco(tmp_path / "coco"), root / "photos", copy=True)
    make("coco", published.coco(tmp_path / "coco2", 24, "val2014", 100), root / "photos2", val=2)
    source = pairs_source(root, on_overlap="error")
    assert count_domains(source.samples("train")) == {"clinic": 36, "photos": 22, "photos2": 21, "space": 16}
    sample = next(sample for sample in source.samples("test") if sample.domain == "space")
    assert sample.label in ("airplane", "bridge")
    assert sample.caption in sample.captions
    assert len(sample.captions) == 5
    assert {sample.label for sample in source.samples("train") if sample.domain == "clinic"} == {
        "lung", "liver", "knee", "skull"
    }  # fmt: skip
    (tmp_path / "coco").rename(tmp_path / "gone")  # what was copied does not need where it came from
    sample = next(sample for sample in source.samples("train") if sample.domain == "photos")
    assert source.image(sample).size == (16, 12)


def test_the_caption_that_is_trained_on_depends_on_the_seed_alone(tmp_path: Path) -> None:
    home = published.coco(tmp_path / "coco", 200)

    def captions(name: str, seed: int) -> dict[str, str]:
        make("coco", home, tmp_path / name, seed=seed, domain="d")
        rows = [row for split in ("train", "val", "test") for row in read_jsonl(tmp_path / name / f"{split}.jsonl")]
        assert all(row["conversations"][1]["value"] in row["captions"] for row in rows)
        return {row["id"]: row["conversations"][1]["value"] for row in rows}

    first = captions("a", 0)
    assert captions("b", 0) == first
    assert captions("c", 1) != first
    assert min(Counter(caption[0] for caption in first.values()).values()) > 20  # of 200, five captions each


def test_train_and_val_of_coco_are_one_domain(tmp_path: Path) -> None:
    home = published.coco(tmp_path / "coco")
    published.coco(home, 6, "val2017", 500)
    facts = make("coco", home, tmp_path / "root" / "photos")
    assert facts["counts"] == {"train": 24, "val": 6, "test": 0}  # half of val is the test set at run time
    assert not (tmp_path / "root" / "photos" / "test.jsonl").exists()
    assert read_jsonl(tmp_path / "root" / "photos" / "val.jsonl")[0]["image"].startswith("val2017/")
    source = pairs_source(tmp_path / "root")
    assert len(source.samples("val")) == len(source.samples("test")) == 3
    assert make("coco", home, tmp_path / "anew", val=7, test=8)["counts"] == {"train": 15, "val": 7, "test": 8}


def test_equal_pictures_never_stand_on_both_sides(tmp_path: Path) -> None:
    home = tmp_path / "set"
    rows = [{"image": f"{number}.jpg", "caption": f"text {number}"} for number in range(60)]
    published.foldered(home / "images", {row["image"]: published.picture(int(row["image"][:-4]) % 20) for row in rows})
    for copy in (False, True):
        out = tmp_path / f"copy-{copy}" / "d"
        facts = make("csv", published.table(home / "t.csv", rows), out, val=4, test=4, copy=copy)
        assert facts["pictures"] == 20
        assert facts["counts"] == {"train": 36, "val": 12, "test": 12}
        held = {
            split: {int(row["image"][:-4]) % 20 for row in read_jsonl(out / f"{split}.jsonl")}
            for split in ("train", "val", "test")
        }
        assert sum(map(len, held.values())) == 20
    zipped = published.zipped(tmp_path / "z.zip", {row["image"]: published.picture(int(row["image"][:-4]) % 20)
                                                   for row in rows})  # fmt: skip
    make("csv", home / "t.csv", tmp_path / "zip" / "d", val=4, test=4, images=zipped)
    for split in ("train", "val", "test"):  # a zip, a folder and a copy are split alike
        assert read_jsonl(tmp_path / "zip" / "d" / f"{split}.jsonl") == read_jsonl(out / f"{split}.jsonl")


def test_pictures_of_one_patient_stay_on_one_side(tmp_path: Path) -> None:
    path = published.clinic(tmp_path / "clinic", 60)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    patients = {row[0]: f"p{number % 12}" for number, row in enumerate(rows[1:])}
    path.write_text(
        "\n".join([",".join([*rows[0], "patient"]), *(",".join([*row, patients[row[0]]]) for row in rows[1:])])
    )
    make("csv", path, tmp_path / "out", val=8, test=8, options=CLINIC._replace(group_column="patient"))
    held = [{patients[row["image"]] for row in read_jsonl(tmp_path / "out" / f"{split}.jsonl")}
            for split in ("train", "val", "test")]  # fmt: skip
    assert [len(found) for found in held] == [8, 2, 2]
    with pytest.raises(ConfigError, match=r"--test 0 leaves halving to the run, which knows no --group-column"):
        make("csv", path, tmp_path / "none", val=8, test=0, options=CLINIC._replace(group_column="patient"))
    assert len(set.union(*held)) == 12


def test_bad_records_stop_or_are_counted(tmp_path: Path) -> None:
    path = published.clinic(tmp_path / "clinic")
    with path.open("a") as file:
        file.write("nowhere.png,a text,lung,c41\nscan_000.png,,lung,c42\nscan_000.png,the same id,lung,c1\n")
    (path.parent / "pictures" / "scan_007.png").write_bytes(b"no picture")
    Image.new("L", (999, 1)).save(path.parent / "pictures" / "scan_008.png")
    recipe = Recipe("csv", (str(path),), tmp_path / "root" / "clinic",
                    options=CLINIC._replace(id_column="case"))  # fmt: skip
    with pytest.raises(DataError, match=r"notes\.csv:9: scan_007\.png is no picture that can be read"):
        prepare(recipe)
    assert not (tmp_path / "root" / "clinic").exists()
    facts = prepare(replace(recipe, skip_bad=True)).facts
    assert sum(facts["counts"].values()) == 39
    assert facts["left_out"]["bad"] == 4
    assert [re.sub(r".*notes\.csv", "", message).split(" ")[0] for message in facts["left_out"]["first_bad"]] == [
        ":9:", ":42:", ":43:", ":44:"
    ]  # fmt: skip
    assert "id 'c1' stands twice" in facts["left_out"]["first_bad"][3]
    for name in ("checked", "again"):
        checked = prepare(replace(recipe, skip_bad=True, check=True, domain="d", out=tmp_path / name)).facts
    assert (tmp_path / "again" / "source.json").read_bytes() == (tmp_path / "checked" / "source.json").read_bytes()
    assert checked["left_out"]["bad"] == 5
    assert "999 x 1" in checked["left_out"]["first_bad"][1]
    with pytest.raises(DataError, match=r"notes\.csv:2: picture scan_000\.png .*16 x 12 .*max_pixels=99.*--max-pixels"):
        prepare(replace(recipe, check=True, max_pixels=99, out=tmp_path / "small"))
    path.write_text("file,report,organ,case\nnowhere.png,text,lung,c1\n")
    with pytest.raises(DataError, match=r"no record of .*notes\.csv can be used: .*nowhere\.png is not in "):
        prepare(replace(recipe, skip_bad=True, out=tmp_path / "other"))


@pytest.mark.parametrize("where", ["linked folder", "linked zip", "copied", "webdataset"])
def test_a_corrupted_picture_is_found_where_pictures_are_checked(tmp_path: Path, where: str) -> None:
    files = {f"{number}.png": published.picture(number, "PNG") for number in range(30)}
    files["7.png"] = files["7.png"][:-40]
    home = tmp_path / "set"
    rows = [{"image": name, "caption": f"scan {name}"} for name in files]
    path = published.table(home / "notes.csv", rows)
    if where == "webdataset":
        path = home / "0.tar"
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                published.member(archive, name, content)
                published.member(archive, name.replace("png", "txt"), b"a scan")
    elif where == "linked zip":
        published.zipped(home / "images.zip", files)
    else:
        published.foldered(home / "images", files)
    layout = "webdataset" if where == "webdataset" else "csv"
    recipe = Recipe(layout, (str(path),), tmp_path / "unchecked", copy=where == "copied")
    assert sum(prepare(recipe).facts["counts"].values()) == 30, "its first bytes are those of a picture"
    checked = replace(recipe, out=tmp_path / "checked", check=True)
    named = r"0\.tar: sample 7: picture 0/7\.png" if where == "webdataset" else r"notes\.csv:9: picture 7\.png"
    with pytest.raises(DataError, match=rf"{named} cannot be decoded: .*truncated"):
        prepare(checked)
    assert prepare(replace(checked, skip_bad=True)).facts["left_out"]["bad"] == 1
    assert len([path for path in tree(tmp_path / "checked") if path.endswith(".jsonl")]) == 3


def test_a_limit_draws_from_all_of_the_set(tmp_path: Path) -> None:
    home = published.nwpu(tmp_path / "nwpu")
    facts = make("nwpu", home, tmp_path / "a", limit=12, val=1, test=1)
    rows = read_jsonl(tmp_path / "a" / "train.jsonl")
    assert sum(facts["counts"].values()) == 12
    assert {row["label"] for row in rows} == {"airplane", "bridge"}
    make("nwpu", home, tmp_path / "b", limit=12, val=1, test=1, domain="a")
    assert read_jsonl(tmp_path / "b" / "train.jsonl") == rows
    make("nwpu", home, tmp_path / "c", limit=12, val=1, test=1, domain="a", seed=1)
    assert read_jsonl(tmp_path / "c" / "train.jsonl") != rows
    shards = published.shards(tmp_path / "shards")
    make("webdataset", shards, tmp_path / "d", limit=9)
    with zipfile.ZipFile(tmp_path / "d" / "images.zip") as archive:
        assert len(archive.namelist()) == 9


def test_byzantine_records_reach_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(published.picture(200))
    home = published.llava(tmp_path / "set")
    rows = json.loads((home / "blip_laion_cc_sbu_558k.json").read_text())
    for number, image in enumerate(("../secret.jpg", str(secret), "00000/../../secret.jpg", "..\\secret.jpg")):
        rows[number]["image"] = image
    published.dump(home / "blip_laion_cc_sbu_558k.json", rows)
    with pytest.raises(DataError, match=r"record 0: field `image` must stay inside"):
        make("llava", home, tmp_path / "out")
    facts = make("llava", home, tmp_path / "out", skip_bad=True, copy=True)
    assert facts["left_out"]["bad"] == 4
    with zipfile.ZipFile(tmp_path / "out" / "images.zip") as archive:
        assert secret.read_bytes() not in [archive.read(name) for name in archive.namelist()]

    def evil(archive: tarfile.TarFile, shard: int) -> None:
        published.member(archive, f"../up{shard}.jpg", secret.read_bytes())
        published.member(archive, f"../up{shard}.txt", b"a caption")

    shards = published.shards(tmp_path / "shards", more=evil)
    assert make("webdataset", shards, tmp_path / "wds", skip_bad=True)["left_out"]["bad"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "secret.jpg", "set", "shards", "wds"]
    with zipfile.ZipFile(tmp_path / "wds" / "images.zip") as archive:
        assert not any(".." in name or name.startswith("/") for name in archive.namelist())


def test_a_domain_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, out = published.llava(tmp_path / "set"), tmp_path / "root" / "web"
    make("llava", home, out)
    with pytest.raises(RunFolderError, match=r"--out .*web exists and is not empty"):
        make("llava", home, out)
    original = os.replace

    def full(*_arguments: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedcmp.data.gathering.json.dumps", full)
    with pytest.raises(RunFolderError, match=r"cannot write the folder --out .*other: .*No space left"):
        make("llava", home, tmp_path / "root" / "other")
    monkeypatch.undo()
    assert list((tmp_path / "root").iterdir()) == [out]
    seen = []

    def watched(source: Any, target: Any) -> None:
        # until it has its name, no run takes it for a domain, nor if the process dies
        seen.append(sorted(path.name for path in Path(source).iterdir()))
        original(source, target)

    monkeypatch.setattr("os.replace", watched)
    make("llava", home, tmp_path / "root" / "more")
    assert "train.jsonl" in seen[-1]
    assert not any(name.endswith(".part") for name in seen[-1])


def test_wrong_options_are_named(tmp_path: Path) -> None:
    home = published.llava(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"--caption-column is for layout csv, not for llava"):
        make("llava", home, tmp_path / "out", options=Options(caption_column="x"))
    with pytest.raises(ConfigError, match=r"--caption-key is for layout webdataset, not for llava"):
        make("llava", home, tmp_path / "out", options=Options(caption_key="x"))
    with pytest.raises(ConfigError, match=r"--images: the pictures of layout webdataset come with its records"):
        make("webdataset", home, tmp_path / "out", images=home)
    with pytest.raises(ConfigError, match=r"--limit must be 1 or more, got 0"):
        make("llava", home, tmp_path / "out", limit=0)
    with pytest.raises(ConfigError, match=r"--domain must be a name"):
        make("llava", home, tmp_path / "out", domain=" ")
    (home / "images.zip").unlink()
    with pytest.raises(DataError, match=r"were not found \(looked for .*images\.zip, .*images\); say where .*--images"):
        make("llava", home, tmp_path / "out")
    with pytest.raises(DataError, match=r"no pictures at .*nowhere"):
        make("llava", home, tmp_path / "out", images=tmp_path / "nowhere")
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


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcmp.data.gathering._TOLD", 10)
    told: list[str] = []
    prepare(Recipe("llava", (str(published.llava(tmp_path / "set")),), tmp_path / "out"), told.append)
    assert told == ["10 records", "20 records", "30 records", "40 records"]
