"""Pictures where they lie: found by name, never outside."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import published
import pytest

from fedcmp.data.layouts.pictures import Pack, Pictures, look
from fedcmp.errors import DataError

FILES = {f"sub/{number}.jpg": published.picture(number) for number in range(3)} | {"top.jpg": published.picture(9)}


@pytest.fixture(params=["folder", "zip", "zip of a folder"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Pictures:
    if request.param == "folder":
        return Pictures(published.foldered(tmp_path / "scans", FILES))
    prefix = "scans/" if request.param == "zip of a folder" else ""
    return Pictures(published.zipped(tmp_path / "x.zip", {prefix + name: content for name, content in FILES.items()}))


def test_folders_and_zips_tell_the_same(pictures: Pictures) -> None:
    with closing(pictures):
        for name, content in FILES.items():
            found = pictures.find([name], "here")
            assert pictures.read(found, "here") == content
            assert pictures.mark(found, "here") == (len(content), zlib.crc32(content))
        assert pictures.find(["nowhere.jpg", "sub/1.jpg"], "here").endswith("sub/1.jpg")
        with pytest.raises(DataError, match=r"here: picture sub/7\.jpg is not in "):
            pictures.find(["sub/7.jpg", "7.jpg"], "here")
        with pytest.raises(DataError, match=r"here: picture sub/1\.JPG is not in .*, but .*sub/1\.jpg is: capital"):
            pictures.find(["sub/1.JPG"], "here")
        with pytest.raises(DataError, match=r"here: picture sub is "):
            pictures.find(["sub"], "here")


def test_a_path_may_begin_with_the_folder_itself(tmp_path: Path) -> None:
    with closing(Pictures(published.foldered(tmp_path / "scans", FILES))) as pictures:
        assert pictures.find(["scans/sub/1.jpg"], "here") == "sub/1.jpg"


def test_dicom_is_out_of_scope(tmp_path: Path) -> None:
    files = {"a.DCM": b"x", "b.png": b"\0" * 128 + b"DICM" + b"\0" * 40}
    with closing(Pictures(published.foldered(tmp_path, files))) as pictures:
        with pytest.raises(DataError, match=r"a\.csv:2: a\.DCM: DICOM is not read: export the pictures as PNG or JPEG"):
            pictures.find(["a.DCM"], "a.csv:2")
        with pytest.raises(DataError, match=r"a\.csv:3: b\.png: DICOM is not read"):
            pictures.mark(pictures.find(["b.png"], "a.csv:3"), "a.csv:3")


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(published.picture(1))
    home = published.foldered(tmp_path / "scans", FILES)
    (home / "out.jpg").symlink_to(outside)
    (home / "away").symlink_to(tmp_path)
    (home / "in.jpg").symlink_to(home / "top.jpg")
    (tmp_path / "scans2").symlink_to(home)
    for path in (home, tmp_path / "scans2"):
        with closing(Pictures(path)) as pictures:
            for name in ("out.jpg", "away/outside.jpg"):
                with pytest.raises(DataError, match=r"link that leads out of"):
                    pictures.find([name], "here")
            assert pictures.find(["in.jpg"], "here") == "in.jpg"
            assert pictures.find(["top.jpg"], "here") == "top.jpg"


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """A small zip can claim to hold terabytes."""
    monkeypatch.setattr("fedcmp.data.images.LARGEST_FILE", 100)
    path = published.zipped(tmp_path / "scans.zip", FILES) if packed else published.foldered(tmp_path / "scans", FILES)
    with closing(Pictures(path)) as pictures:
        name = pictures.find(["top.jpg"], "a.json: record 0")
        with pytest.raises(DataError, match=r"a\.json: record 0: picture .*top\.jpg in .*more than 100"):
            pictures.read(name, "a.json: record 0")


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    files = {"text.jpg": b"no picture at all", "empty.jpg": b""}
    with closing(Pictures(published.foldered(tmp_path / "scans", files))) as pictures:
        with pytest.raises(DataError, match=r"here: text\.jpg is no picture that can be read"):
            pictures.mark("text.jpg", "here")
        with pytest.raises(DataError, match=r"here: picture empty\.jpg is empty"):
            pictures.mark("empty.jpg", "here")
    with closing(Pictures(published.zipped(tmp_path / "a.zip", files))) as pictures:
        with pytest.raises(DataError, match=r"here: picture empty\.jpg is empty"):
            pictures.mark("empty.jpg", "here")
        pictures.mark("text.jpg", "here")  # of a zip only the directory is read
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"b\.zip cannot be read as a zip"):
        Pictures(tmp_path / "b.zip")
    with pytest.raises(DataError, match=r"none"):
        Pictures(tmp_path / "none")


def test_corrupt_inside_a_zip_is_named(tmp_path: Path) -> None:
    path = published.zipped(tmp_path / "a.zip", FILES)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("sub/1.jpg").header_offset
    content[start + 60 : start + 90] = b"\xff" * 30
    path.write_bytes(bytes(content))
    with (
        closing(Pictures(path)) as pictures,
        pytest.raises(DataError, match=r"here: cannot read picture sub/1\.jpg in "),
    ):
        pictures.read("sub/1.jpg", "here")


def test_encrypted_pictures_are_named(tmp_path: Path) -> None:
    path = published.zipped(tmp_path / "a.zip", FILES)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while at >= 0:  # the flag of every entry of the directory
        content[at + 8] |= 1
        at = content.find(b"PK\x01\x02", at + 1)
    path.write_bytes(bytes(content))
    with closing(Pictures(path)) as pictures, pytest.raises(DataError, match=r"is encrypted"):
        pictures.mark("top.jpg", "here")


def test_formats_are_told_by_content() -> None:
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp")):
        assert look(published.picture(1, kind), "x", "here") == suffix


def test_a_pack_is_the_same_bytes_on_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, today in enumerate((1_600_000_000, 1_700_000_000)):
        monkeypatch.setattr("time.time", lambda today=today: today)
        with Pack(tmp_path / f"{number}.zip") as pack:
            for name, content in [*FILES.items(), ("top.jpg", b"a second of that name is passed over")]:
                pack.add(name, content)
    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "0.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
