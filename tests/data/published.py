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


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def lines(path: Path, *rows: object) -> Path:
    """JSON lines; a text is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(key: object, image: object, caption: object = "a cat.", **more: object) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]
    return {"id": key, "image": image, "conversations": turns, **more}


def domain(root: Path, name: str, packed: bool = False, **splits: dict[str, bytes]) -> Path:
    """A prepared domain with the pictures of each split; records spell the domain's folder before the picture."""
    pictures = {f"{split}-{file}": content for split, own in splits.items() for file, content in own.items()}
    (zipped if packed else foldered)(root / name / ("images.zip" if packed else "images"), pictures)
    for split, own in splits.items():
        rows = [record(f"{name}-{split}-{file}", f"{name}/{split}-{file}", f"a {name}.") for file in own]
        lines(root / name / f"{split}.jsonl", *rows)
    return root / name


def llava(home: Path, num: int = 40) -> Path:
    names = [f"{number % 3:05d}/{number:09d}.jpg" for number in range(num)]
    rows = [record(f"{n:09d}", name, f"a photo of thing {n}") for n, name in enumerate(names)]
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


def llava_med(home: Path, num: int = 24) -> Path:
    rows = [record(f"{n}_Fig", f"{n}_Fig.jpg", f"Axial view of case {n}.") for n in range(num)]
    foldered(home / "images", {row["image"]: picture(number) for number, row in enumerate(rows)})
    rows = [{**row, "conversatons": row.pop("conversations")} for row in rows]  # as they spell it
    return dump(home / "alignment" / "llava_med_alignment_500k.json", rows)


def roco(home: Path) -> Path:
    """Three files, as `datasets` pushes them to the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (home / "data").mkdir(parents=True)
    concepts = [["C0040405", "C0000726"], ["C1306645", "C0817096"], ["C0024485"]]
    start = 0
    for split, num in (("train", 10), ("validation", 4), ("test", 5)):
        names = [f"ROCOv2_2023_{split}_{number:06d}" for number in range(1, num + 1)]
        columns = {
            "image": [{"bytes": picture(start + row, "PNG"), "path": f"{name}.png"} for row, name in enumerate(names)],
            "image_id": names,
            "caption": [f"CT or not, case {start + row}." for row in range(num)],
            "cui": [concepts[row % 3] for row in range(num)],
        }
        pq.write_table(pa.table(columns), home / "data" / f"{split}-00000-of-00001.parquet", row_group_size=4)
        start += num
    return home


def rsicd(home: Path) -> Path:
    names = [f"{label}_{number}.jpg" for label in ("airport", "port") for number in range(1, 9)] + ["00744.jpg"]
    splits = (["train"] * 5 + ["val", "test", "train"]) * 2 + ["train"]
    rows: list[dict[str, Any]] = [{"filename": name, "split": split} for name, split in zip(names, splits, strict=True)]
    for row in rows:
        row["sentences"] = [{"raw": f"sentence {n} of {row['filename']} ."} for n in range(5)]
    dump(home / "dataset_rsicd.json", {"images": rows, "dataset": "rsicd"})
    zipped(home / "RSICD_images.zip", {f"RSICD_images/{name}": picture(number) for number, name in enumerate(names)})
    foldered(home / "txtclasses_rsicd", {"Desert.txt": b"00744.jpg\n"})
    return home


def nwpu(home: Path) -> Path:
    content: dict[str, list[dict[str, str]]] = {"airplane": [], "bridge": []}
    files = {}
    for number in range(20):
        label, place = ("airplane", "bridge")[number // 10], number % 10
        row = {"filename": f"{label}_{place:03d}.jpg", "split": {8: "val", 9: "test"}.get(place, "train")}
        more = {f"raw_{more}": f"number {more} of {label} {place} ." for more in range(1, 5)}
        content[label].append({**row, "raw": f"the first of {label} {place} .", **more})
        files[f"{label}/{row['filename']}"] = picture(300 + number)
    dump(home / "dataset_nwpu.json", content)
    foldered(home / "NWPU_images", files)
    return home


def coco(home: Path, num: int = 24, year: str = "train2017", start: int = 0) -> Path:
    numbers = range(start, start + num)
    images = [{"file_name": f"{number:012d}.jpg", "id": number} for number in numbers]
    notes = [
        {"image_id": number, "id": 5 * number + place, "caption": f"{place}: picture {number - start}"}
        for place in range(5)
        for number in reversed(numbers)
    ]
    dump(home / "annotations" / f"captions_{year}.json", {"images": images, "annotations": notes})
    foldered(home / year, {f"{number:012d}.jpg": picture(number) for number in numbers})
    return home


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def shards(home: Path, num: int = 3, more: Callable[[tarfile.TarFile], None] = lambda archive: None) -> Path:
    """As img2dataset writes them; ``more`` is added to the first."""
    home.mkdir(parents=True, exist_ok=True)
    for shard in range(num):
        with tarfile.open(home / f"{shard:05d}.tar", "w") as archive:
            for sample in range(8):
                key, caption = f"{shard:05d}{sample:04d}", f"shard {shard}, sample {sample}"
                member(archive, f"{key}.jpg", picture(8 * shard + sample))
                member(archive, f"{key}.txt", caption.encode())
                member(archive, f"{key}.json", json.dumps({"key": key, "caption": f"{caption} (json)"}).encode())
            if shard == 0:
                more(archive)
    return home


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def clinic(home: Path, num: int = 40, first: int = 0, **more: Callable[[int], str]) -> Path:
    """A hospital's folder: a table and pictures; ``more`` columns are functions of the row."""
    organs = ("lung", "liver", "knee", "skull")
    rows = [
        {"file": f"scan_{n:03d}.png", "report": f"The {organs[n % 4]}, case {n}; no finding.",
         "organ": organs[n % 4], "case": f"c{n}", **{name: of(n) for name, of in more.items()}}
        for n in range(num)
    ]  # fmt: skip
    foldered(home / "pictures", {row["file"]: picture(first + n, "PNG") for n, row in enumerate(rows)})
    return table(home / "notes.csv", rows)
