"""Pictures with more than 8 bit a channel are scaled, or refused by name; never cut."""

from __future__ import annotations

import io

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


@pytest.mark.parametrize(("numbers", "what"), [(np.float32, "floats"), (np.int32, "integers of 32 bit")])
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


def test_a_script_may_give_16_bit() -> None:
    source = GivenSource({"train": {"mine": [(Image.fromarray(WIDE), "a scan")]}})
    assert np.asarray(source.image(source.samples("train")[0]))[0, :, 0].tolist() == NARROW


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_8_bit_is_as_pillow_has_it(mode: str) -> None:
    picture = Image.linear_gradient("L").convert("RGB").convert("P" if mode in ("P", "PA") else "RGB")
    if mode not in ("P", "LAB"):
        picture = picture.convert(mode)
    elif mode == "LAB":
        picture = Image.merge("LAB", picture.split())
    assert np.array_equal(to_rgb(picture), picture.convert("RGB"))
