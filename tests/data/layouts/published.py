"""Small sets, written to disk in exactly the layouts that their publishers use."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def picture(number: int, kind: str = "JPEG") -> bytes:
    """A picture that no other number has."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (16, 12), (number * 37 % 256, number * 91 % 256, number * 53 % 256))
    image.putpixel((number % 16, number // 16 % 12), (255, 255, 255))
    image.save(buffer, kind)
    return buffer.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def foldered(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def dump(path: Path, content: Any, **style: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, **style), encoding="utf-8")
    return path


def turns(caption: str) -> list[dict[str, str]]:
    question = "Render a clear and concise summary of the photo.\n<image>"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": caption}]


def llava(home: Path, num: int = 40) -> Path:
    names = [f"{number % 3:05d}/{number:09d}.jpg" for number in range(num)]
    rows = [
        {"id": f"{number:09d}", "image": name, "conversations": turns(f"a photo of thing {number}")}
        for number, name in enumerate(names)
    ]
    dump(home / "blip_laion_cc_sbu_558k.json", rows)
    zipped(home / "images.zip", {name: picture(number) for number, name in enumerate(names)})
    return home


def chat(home: Path, num: int = 30) -> Path:
    """Messages of two answers each, with a record of text alone and one of two pictures behind them."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": f"text {number}"},
                      {"role": "user", "content": "more?"}, {"role": "assistant", "content": f"more {number}"}],
         "images": [f"photos/{number}.jpg"]} for number in range(num)]  # fmt: skip
    rows += [{**rows[0], "images": []}, {**rows[0], "images": ["photos/1.jpg", "photos/2.jpg"]}]
    foldered(home, {f"photos/{number}.jpg": picture(number) for number in range(num)})
    return dump(home / "chat.json", rows)


def llava_med_rows(num: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{28928570 + number}_Fig{number}",
            "image": f"{28928570 + number}_Fig{number}.jpg",
            "conversatons": turns(f"Axial view of case {number}."),
        }
        for number in range(num)
    ]


def llava_med(home: Path, num: int = 24) -> Path:
    rows = llava_med_rows(num)
    dump(home / "alignment" / "llava_med_alignment_500k.json", rows, indent=2)
    foldered(home / "images", {row["image"]: picture(number) for number, row in enumerate(rows)})
    return home / "alignment" / "llava_med_alignment_500k.json"


def roco(home: Path, rows_a_group: int = 4) -> Path:
    """Three files, as `datasets` pushes them to the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (home / "data").mkdir(parents=True)
    concepts = [["C0040405", "C0000726"], ["C1306645", "C0817096"], ["C0024485"]]
    start = 0
    for split, short, num in (("train", "train", 10), ("validation", "valid", 4), ("test", "test", 5)):
        names = [f"ROCOv2_2023_{short}_{number:06d}" for number in range(1, num + 1)]
        cells = [{"bytes": picture(start + row, "PNG"), "path": f"{name}.png"} for row, name in enumerate(names)]
        table = pa.table(
            {
                "image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "image_id": names,
                "caption": [f"CT or not, case {start + row}." for row in range(num)],
                "cui": pa.array([concepts[row % 3] for row in range(num)], pa.list_(pa.string())),
            }
        )
        pq.write_table(table, home / "data" / f"{split}-00000-of-00001.parquet", row_group_size=rows_a_group)
        start += num
    return home


def rsicd(home: Path) -> Path:
    names = [
        *(f"airport_{number}.jpg" for number in range(1, 9)),
        *(f"port_{number}.jpg" for number in range(1, 9)),
        "00744.jpg",
    ]
    splits = ["train"] * 5 + ["val", "test", "train"] + ["train"] * 5 + ["val", "test", "train"] + ["train"]
    rows = [
        {
            "filename": name,
            "imgid": number,
            "sentids": [5 * number + place for place in range(5)],
            "sentences": [
                {
                    "raw": f"sentence {place} of {name} .",
                    "tokens": ["sentence", str(place)],
                    "imgid": number,
                    "sentid": 5 * number + place,
                }
                for place in range(5)
            ],
            "split": split,
        }
        for number, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    dump(home / "dataset_rsicd.json", {"images": rows, "dataset": "rsicd"})
    zipped(home / "RSICD_images.zip", {f"RSICD_images/{name}": picture(number) for number, name in enumerate(names)})
    (home / "txtclasses_rsicd").mkdir()
    (home / "txtclasses_rsicd" / "Desert.txt").write_text("00744.jpg\n")
    return home


def nwpu(home: Path) -> Path:
    content, files = {}, {}
    for place, label in enumerate(("airplane", "bridge")):
        content[label] = [
            {
                "filename": f"{label}_{number:03d}.jpg",
                "imgid": 10 * place + number,
                "split": "val" if number == 8 else "test" if number == 9 else "train",
                "raw": f"the first of {label} {number} .",
                **{f"raw_{more}": f"number {more} of {label} {number} ." for more in range(1, 5)},
                "sentids": 0,
            }
            for number in range(10)
        ]
        files |= {f"{label}/{row['filename']}": picture(300 + row["imgid"]) for row in content[label]}
    dump(home / "dataset_nwpu.json", content)
    foldered(home / "NWPU_images", files)
    return home


def coco(home: Path, num: int = 24, year: str = "train2017", start: int = 0) -> Path:
    names = [f"{start + number:012d}.jpg" for number in range(num)]
    images = [
        {"license": 4, "file_name": name, "height": 12, "width": 16, "id": start + number}
        for number, name in enumerate(names)
    ]
    notes = [
        {"image_id": start + number, "id": 5 * (start + number) + place, "caption": f"{place}: picture {number}"}
        for place in range(5)
        for number in reversed(range(num))
    ]
    dump(
        home / "annotations" / f"captions_{year}.json",
        {"info": {"year": 2017}, "licenses": [{"id": 4}], "images": images, "annotations": notes},
    )
    foldered(home / year, {name: picture(start + number) for number, name in enumerate(names)})
    return home


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def shards(
    home: Path, num: int = 3, more: Callable[[tarfile.TarFile, int], None] = lambda archive, shard: None
) -> Path:
    """As img2dataset writes them."""
    home.mkdir(parents=True, exist_ok=True)
    for shard in range(num):
        with tarfile.open(home / f"{shard:05d}.tar", "w") as archive:
            for sample in range(8):
                key, caption = f"{shard:05d}{sample:04d}", f"shard {shard}, sample {sample}"
                member(archive, f"{key}.jpg", picture(8 * shard + sample))
                member(archive, f"{key}.txt", caption.encode())
                meta = {"key": key, "caption": f"{caption} (json)", "status": "success"}
                member(archive, f"{key}.json", json.dumps(meta, indent=4).encode())
            more(archive, shard)
    return home


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def clinic(home: Path, num: int = 40) -> Path:
    """A hospital's folder: a table and pictures."""
    organs = ("lung", "liver", "knee", "skull")
    rows = [
        {"file": f"scan_{number:03d}.png", "report": f"The {organs[number % 4]}, case {number}; no finding.",
         "organ": organs[number % 4], "case": f"c{number}"}
        for number in range(num)
    ]  # fmt: skip
    foldered(home / "pictures", {row["file"]: picture(number, "PNG") for number, row in enumerate(rows)})
    return table(home / "notes.csv", rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
