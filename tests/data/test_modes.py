"""Pictures with more than 8 bit a channel are scaled, or refused by name; never cut."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from fedcmp.data.given import GivenSource
from fedcmp.data.images import decode, to_rgb
from fedcmp.data.layouts.pictures import look
from fedcmp.data.records import Sample
from fedcmp.errors import DataError

SAMPLE = Sample("a", "scan.png", "a scan", "d", origin="notes.csv:3")
WIDE = np.array([[0, 128, 129, 257, 4095, 32768, 65535]], dtype=np.uint16)
NARROW = [0, 0, 1, 1, 16, 128, 255]


def written(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def tiff(content: bytes, bits: int, *, white_is_zero: bool = False, signed: bool = False, width: int = 7) -> bytes:
    """A TIFF of one row as scanners write it; Pillow writes none of these."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: 1,
            279: len(content), 339: 2 if signed else 1}  # fmt: skip
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + content


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_are_scaled_to_8(kind: str) -> None:
    picture = decode(written(Image.fromarray(WIDE), kind), SAMPLE)
    assert picture.mode == "RGB"
    for channel in range(3):
        assert np.asarray(picture)[0, :, channel].tolist() == NARROW


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_whatever_the_order_of_their_bytes(mode: str) -> None:
    ordered = WIDE.byteswap() if mode == "I;16B" else WIDE
    picture = to_rgb(Image.frombytes(mode, (WIDE.shape[1], 1), ordered.tobytes()))
    assert np.asarray(picture)[0, :, 0].tolist() == NARROW


@pytest.mark.parametrize(("numbers", "what"), [(np.float32, "floats"), (np.int32, "(signed )?integers of 32 bit")])
def test_pictures_whose_white_is_not_known_are_refused_by_name(numbers: type, what: str) -> None:
    picture = Image.fromarray(np.zeros((4, 4), dtype=numbers))
    content = written(picture, "TIFF")
    mend = f"its pixels are {what}.* export it with 8 or 16 bit"
    with pytest.raises(DataError, match=rf"notes\.csv:3: picture scan\.png cannot be decoded: {mend}"):
        decode(content, SAMPLE)
    with pytest.raises(DataError, match=rf"notes\.csv:3: scan\.tif is no picture that can be read: {mend}"):
        look(content, "scan.tif", "notes.csv:3")
    with pytest.raises(DataError, match=rf"the train data set 'mine', item 1: the picture cannot be used: {mend}"):
        GivenSource({"train": {"mine": [(Image.new("L", (4, 4)), "a"), (picture, "b")]}})


def test_black_is_black_where_a_tiff_says_that_white_is_zero() -> None:
    picture = decode(tiff((65535 - WIDE).astype("<u2").tobytes(), 16, white_is_zero=True), SAMPLE)
    assert np.asarray(picture)[0, :, 0].tolist() == NARROW
    narrow = decode(tiff(bytes(255 - value for value in NARROW), 8, white_is_zero=True), SAMPLE)
    assert np.asarray(narrow)[0, :, 0].tolist() == NARROW, "Pillow sees to 8 bit"


def test_12_bit_of_a_tiff_are_scaled_to_8() -> None:
    bits = "".join(f"{value:012b}" for value in (0, 16, 2048, 4095))
    picture = decode(tiff(int(bits, 2).to_bytes(6, "big"), 12, width=4), SAMPLE)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("largest", [4095, 65535])
def test_a_pgm_is_scaled_by_the_largest_value_that_it_names(largest: int) -> None:
    values = np.array([0, largest // 2 + 1, largest], dtype=">u2")
    content = f"P5 3 1 {largest}\n".encode() + values.tobytes()
    assert np.asarray(decode(content, SAMPLE))[0, :, 0].tolist() == [0, 128, 255]
    assert look(content, "scan.pgm", "notes.csv:3") == "ppm"


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_numbers_are_refused_by_their_name(bits: int) -> None:
    content = tiff(bytes(7 * bits // 8), bits, signed=True)
    with pytest.raises(DataError, match=rf"its pixels are signed integers of {bits} bit, and which value is white"):
        decode(content, SAMPLE)


def test_a_tiff_of_several_pages_is_refused_and_a_small_copy_is_no_page() -> None:
    pages, buffer = [Image.new("L", (4, 4), value) for value in (10, 20)], io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    mend = "it has several pages; save the page or slice that counts as a file of its own"
    with pytest.raises(DataError, match=rf"notes\.csv:3: picture scan\.png cannot be decoded: {mend}"):
        decode(buffer.getvalue(), SAMPLE)
    with pytest.raises(DataError, match=rf"notes\.csv:3: scan\.tif is no picture that can be read: {mend}"):
        look(buffer.getvalue(), "scan.tif", "notes.csv:3")
    small, buffer = pages[1], io.BytesIO()
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(buffer, "TIFF", save_all=True, append_images=[small])
    assert decode(buffer.getvalue(), SAMPLE).getpixel((0, 0)) == (10, 10, 10)


def test_an_animation_is_its_first_frame() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 10).save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 20)])
    assert decode(buffer.getvalue(), SAMPLE).getpixel((0, 0)) == (10, 10, 10)


def test_a_script_may_give_16_bit() -> None:
    source = GivenSource({"train": {"mine": [(Image.fromarray(WIDE), "a scan")]}})
    assert np.asarray(source.image(source.samples("train")[0]))[0, :, 0].tolist() == NARROW


def icon(kind: str, mode: str) -> bytes:
    """A black dot, half of it half transparent, on nothing whose hidden colour is black."""
    picture = Image.new("LA", (3, 1))
    picture.putdata([(0, 0), (0, 255), (0, 128)])
    file = io.BytesIO()
    if mode == "P":
        indexed = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
        indexed.putpalette(bytes(9))
        indexed.save(file, kind, transparency=bytes([0, 255, 128]))
    elif mode == "L":
        Image.frombytes("L", (3, 1), bytes([7, 0, 127])).save(file, kind, transparency=7)
    else:
        picture.convert(mode).save(file, kind, lossless=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("WEBP", "RGBA"), ("TIFF", "RGBA")],
)
def test_what_is_transparent_is_white_everywhere(kind: str, mode: str) -> None:
    content = icon(kind, mode)
    source = GivenSource({"train": {"mine": [(Image.open(io.BytesIO(content)), "an icon")]}})
    for picture in (decode(content, SAMPLE), source.image(source.samples("train")[0])):
        assert picture.mode == "RGB"
        assert np.allclose(np.asarray(picture)[0], [[255] * 3, [0] * 3, [127] * 3], atol=1)


def test_a_large_jpeg_is_decoded_at_a_part_of_its_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcmp.data.images.MAX_PIXELS", 1000)
    for size, seen in (((40, 24), (40, 24)), ((64, 48), (32, 24)), ((128, 96), (32, 24)), ((240, 200), (30, 25))):
        picture = Image.linear_gradient("L").resize(size).convert("RGB")
        found = decode(written(picture, "JPEG"), SAMPLE, 1000)
        assert found.size == seen
        assert np.abs(np.asarray(found, float) - np.asarray(picture.resize(seen), float)).mean() < 6
    whole = io.BytesIO()
    picture.save(whole, "JPEG", progressive=True)
    for content in (whole.getvalue(), written(picture, "PNG")):  # both are in memory whole, whatever is asked for
        assert decode(content, SAMPLE).size == (240, 200)
        with pytest.raises(DataError, match=r"notes\.csv:3: picture scan\.png .*240 x 200 .*data\.max_pixels=1,000"):
            decode(content, SAMPLE, 1000)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_8_bit_is_as_pillow_has_it(mode: str) -> None:
    picture = Image.linear_gradient("L").convert("RGB").convert("P" if mode in ("P", "PA") else "RGB")
    if mode not in ("P", "LAB"):
        picture = picture.convert(mode)
    elif mode == "LAB":
        picture = Image.merge("LAB", picture.split())
    assert np.array_equal(to_rgb(picture), picture.convert("RGB"))
