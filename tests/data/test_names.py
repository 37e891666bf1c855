"""Pictures are told apart by their names, and by their content where two folders have one name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fedcmp.data.sources import name_pictures
from fedcmp.data.sources import RecordSource, pairs_source


@pytest.fixture
def source(tmp_path: Path) -> RecordSource:
    """Two hospitals prepared as one domain, one with two rows for each picture; same.png is the same in both."""
    for folder, grey in (("north", 10), ("south", 20)):
        (tmp_path / folder / "images").mkdir(parents=True)
        for name, value in (("scan.png", grey), ("same.png", 30), (f"{folder}.png", grey + 100)):
            Image.new("L", (8, 8), value).save(tmp_path / folder / "images" / name)
        names = ["scan.png", "same.png", f"{folder}.png"] * (2 if folder == "south" else 1)
        rows = [
            {
                "id": f"{folder}-{row}",
                "image": name,
                "domain": "clinic",
                "conversations": [{"from": "gpt", "value": "x"}],
            }
            for row, name in enumerate(names)
        ]
        for split, kept in (("train", []), ("val", rows), ("test", [])):
            spare = [{**rows[0], "id": f"{folder}-{split}"}] * (not kept)
            lines = "".join(json.dumps(row) + "\n" for row in kept or spare)
            (tmp_path / folder / f"{split}.jsonl").write_text(lines)
    return pairs_source(tmp_path, on_overlap="ignore")


def test_pictures_of_one_name_in_two_folders_are_two(source: RecordSource) -> None:
    samples = source.samples("val")
    named = dict(zip((sample.id for sample in samples), name_pictures(samples, source), strict=True))
    assert named["north-0"] != named["south-0"]
    assert named["north-0"].startswith("scan.png ")
    assert named["south-0"] == named["south-3"], "two rows of one picture"
    assert named["north-1"] == named["south-1"] == named["south-4"], "equal pictures are one"


def test_all_others_keep_the_name_that_orders_them(source: RecordSource, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample for sample in source.samples("val") if sample.image in ("north.png", "south.png")]
    monkeypatch.setattr(RecordSource, "digest", None)  # they are not read
    assert name_pictures(samples, source) == ("north.png", "south.png", "south.png")
