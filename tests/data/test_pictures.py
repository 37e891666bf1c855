"""Pictures of any mode are scaled or refused by name; folders and zips are read, and nothing outside them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import foldered, picture, zipped

import fedcmp.data.stores
from fedcmp.data.given import GivenSource
from fedcmp.data.images import decode, find_pictures, read_picture, to_rgb
from fedcmp.data.records import Sample
from fedcmp.data.settings import DataConfig
from fedcmp.data.stores import ImageStore
from fedcmp.errors import DataError

SAMPLE = Sample("a", "scan.png", "a scan", "d", origin="notes.csv:3")
REFUSED = r"notes\.csv:3: picture scan\.png"
WIDE = np.array([[0, 128, 129, 257, 4095, 32768, 65407, 65535]], dtype=np.uint16)
NARROW = [0, 0, 1, 1, 16, 128, 255, 255]
FLOATS = Image.fromarray(np.zeros((4, 4), np.float32))


def written(picture: Image.Image, kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def row(content: bytes) -> list[int]:
    """The first row of one channel, as it is decoded."""
    return np.asarray(decode(content, SAMPLE))[0, :, 0].tolist()


def tiff(content: bytes, bits: int, *, white_is_zero: bool = False, signed: bool = False, width: int = 7) -> bytes:
    """A TIFF of one row as scanners write it; Pillow writes none of these."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: 1,
            279: len(content), 339: 2 if signed else 1}  # fmt: skip
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + content


def test_16_bit_are_scaled_and_8_bit_are_as_pillow_has_them() -> None:
    for kind in ("PNG", "TIFF"):
        assert row(written(Image.fromarray(WIDE), kind)) == NARROW
    big_endian = to_rgb(Image.frombytes("I;16B", (WIDE.shape[1], 1), WIDE.byteswap().tobytes()))
    assert np.asarray(big_endian)[0, :, 0].tolist() == NARROW
    for largest in (4095, 65535):
        values = np.array([0, largest // 2 + 1, largest], dtype=">u2")
        assert row(f"P5 3 1 {largest}\n".encode() + values.tobytes()) == [0, 128, 255]
    inverted = tiff(bytes(255 - value for value in NARROW), 8, white_is_zero=True, width=len(NARROW))
    assert row(inverted) == NARROW, "where a TIFF says that white is 0, Pillow sees to 8 bit"
    source = GivenSource({"train": {"mine": [(Image.fromarray(WIDE), "a scan")]}})
    assert np.asarray(source.image(source.samples("train")[0]))[0, :, 0].tolist() == NARROW
    with pytest.raises(DataError, match=r"'mine', item 1"):
        GivenSource({"train": {"mine": [(Image.fromarray(WIDE), "a"), (FLOATS, "b")]}})
    for mode in ("1", "P", "LA", "PA", "CMYK", "YCbCr"):
        made = Image.linear_gradient("L").convert("RGB").convert("P" if mode in ("P", "PA") else "RGB").convert(mode)
        assert np.array_equal(to_rgb(made), made.convert("RGB"))
    content = written(Image.new("L", (4, 4), 10), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 20)])
    assert row(content)[0] == 10, "an animation is its first frame"


@pytest.mark.parametrize("content", [
    written(FLOATS, "TIFF"),
    written(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
    tiff(bytes(7), 8, signed=True),
    tiff(bytes(14), 16, signed=True),
    tiff(bytes(14), 16, white_is_zero=True),
    tiff(bytes(6), 12, width=4),
    written(Image.new("L", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))]),
    b"\0" * 128 + b"DICM" + b"\0" * 40,
    b"no picture at all",
    b"",
    picture(1)[:200],
], ids=["float", "int32", "signed 8", "signed 16", "white is 0", "12 bit", "pages", "DICOM", "text", "empty", "cut"],
)  # fmt: skip
def test_what_cannot_be_read_rightly_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=REFUSED) as caught:
        decode(content, SAMPLE)
    assert "0x" not in str(caught.value), "no address in memory"
    (tmp_path / "a.PNG").write_bytes(content)
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.PNG"):
        read_picture(*find_pictures([tmp_path]))
    with pytest.raises(DataError, match=r"pictures\[3\]"):
        read_picture(FLOATS, 3)


def test_loose_pictures_are_found(tmp_path: Path) -> None:
    home = foldered(tmp_path / "home", {"b/1.PNG": picture(1, "PNG"), "a.jpg": picture(2), "notes.txt": b""})
    assert find_pictures([home, Path("x.png")]) == [home / "a.jpg", home / "b" / "1.PNG", Path("x.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        find_pictures([tmp_path / "empty"])


def test_what_is_transparent_is_white() -> None:
    """A black dot, half of it half transparent, on nothing whose hidden colour is black."""
    shades, palette = Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 255, 0, 128])), Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette(bytes(9))
    for made, kind, more in (
        (shades, "PNG", {}),
        (shades.convert("RGBA"), "WEBP", {"lossless": True}),
        (palette, "PNG", {"transparency": bytes([0, 255, 128])}),
        (Image.frombytes("L", (3, 1), bytes([7, 0, 127])), "PNG", {"transparency": 7}),
    ):
        found = decode(written(made, kind, **more), SAMPLE)
        assert found.mode == "RGB"
        assert np.allclose(np.asarray(found)[0], [[255] * 3, [0] * 3, [127] * 3], atol=1)


def test_a_large_jpeg_is_decoded_at_a_part_of_its_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcmp.data.images.MAX_PIXELS", 1000)
    for size, seen in (((40, 24), (40, 24)), ((64, 48), (32, 24)), ((128, 96), (32, 24)), ((240, 200), (30, 25))):
        made = Image.linear_gradient("L").resize(size).convert("RGB")
        found = decode(written(made, "JPEG"), SAMPLE, 1000)
        assert found.size == seen
        assert np.abs(np.asarray(found, float) - np.asarray(made.resize(seen), float)).mean() < 6
    for content in (written(made, "JPEG", progressive=True), written(made, "PNG")):  # both are in memory whole
        assert decode(content, SAMPLE, 48_000).size == (240, 200)
        with pytest.raises(DataError, match=rf"{REFUSED} .*data\.max_pixels=1,000"):
            decode(content, SAMPLE, 1000)


@pytest.mark.parametrize(("width", "height", "most"), [
    (2**20, 2**20, None), (8, 9, 71), (100_000, 1, None), (1, 201, None),
])  # fmt: skip
def test_bombs_are_refused_before_they_are_unpacked(width: int, height: int, most: int | None) -> None:
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(9)))
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    with pytest.raises(DataError, match=rf"{REFUSED} .*{width:,} x {height:,}"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), SAMPLE, *([most] if most else []))
    assert Image.MAX_IMAGE_PIXELS == 89_478_485 == DataConfig.max_pixels, "as Pillow has it, before and after"


FILES = {f"sub/{number}.jpg": picture(number) for number in range(3)} | {"top.jpg": picture(9)}


@pytest.mark.parametrize("packed", [True, False])
def test_a_store_reads_what_is_in_it(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(zipped(tmp_path / "x.zip", FILES) if packed else foldered(tmp_path / "x", FILES))
    for name, content in FILES.items():
        mark = (len(content), zlib.crc32(content) if packed else None)
        assert (store.has(name), store.read(name, "here"), store.mark(name, "here")) == (True, content, mark)
    assert not any(map(store.has, ("sub/7.jpg", "sub", "sub/", "", ".", "SUB/1.jpg")))
    monkeypatch.setattr(fedcmp.data.stores, "LARGEST_FILE", 100)  # a small zip can claim to hold terabytes
    for name in ("sub/7.jpg", "top.jpg"):
        with pytest.raises(DataError, match=f"here: .*{name}"):
            store.read(name, "here")
    store.close()
    for bad in ("none", "top.zip"):
        (tmp_path / "top.zip").write_bytes(b"PK no zip")
        with pytest.raises(DataError, match=bad):
            ImageStore(tmp_path / bad)


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    home = foldered(tmp_path / "scans", FILES)
    (tmp_path / "outside.jpg").write_bytes(picture(1))
    for name, target in (("out.jpg", "outside.jpg"), ("away", ""), ("in.jpg", "scans/top.jpg")):
        (home / name).symlink_to(tmp_path / target)
    (tmp_path / "linked").symlink_to(home)
    for path in (home, tmp_path / "linked"):  # the folder itself may be a link: prepare's is
        store = ImageStore(path)
        assert not any(map(store.has, ("out.jpg", "away/outside.jpg", "../outside.jpg")))
        assert all(map(store.has, ("in.jpg", "top.jpg", "sub/1.jpg")))
