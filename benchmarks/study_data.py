"""The study's pairs: compares a copy with ours, and makes one from clones of the sources. DATA.md has the sources.

    python benchmarks/study_data.py check ../shared/data               # every domain and model: equal or different
    python benchmarks/study_data.py make waste Trash-Classification- --out data/pairs/waste
    python benchmarks/study_data.py make icons noto-emoji country-flags --out data/pairs/icons

``study_data.json`` has SHA-256 digests of our copy: of record files and of models as bytes; of ``pictures`` over their
sorted names, sizes and decoded RGB pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from study_domains import DOMAINS, Item, pick

DIGESTS = Path(__file__).with_suffix(".json")


def record_of(domain: str, item: Item) -> dict[str, Any]:
    """LLaVA's form, and what else is known."""
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": item.caption}]
    found = {
        "id": f"{domain}-{item.file.rpartition('.')[0]}", "image": f"{domain}/{item.file}", "domain": domain,
        "caption_kind": item.kind, "captions": [item.caption], "conversations": talk,
    }  # fmt: skip
    known = {"label": item.label, "group": item.group}
    return found | {key: value for key, value in known.items() if value is not None}


def side_of(record: dict[str, Any]) -> str:
    """``train`` or ``val``, a tenth of the groups."""
    return pick(record.get("group", record["id"]), ["val", *["train"] * 9])


def make(domain: str, clones: Sequence[Path], out: Path) -> None:
    """Writes ``train.jsonl``, ``val.jsonl`` and ``images.zip``. Of equal pictures the first is taken."""
    out.mkdir(parents=True)
    sides: dict[str, list[str]] = {"train": [], "val": []}
    seen: set[bytes] = set()
    quality = 88 if domain == "icons" else 82
    with zipfile.ZipFile(out / "images.zip", "w") as pack:
        for item in DOMAINS[domain](*clones):
            record, data = record_of(domain, item), item.picture
            if isinstance(data, Image.Image):
                buffer = io.BytesIO()
                data.save(buffer, "PNG" if item.file.endswith("png") else "JPEG", quality=quality)
                data = buffer.getvalue()
            if data in seen:
                continue
            seen.add(data)
            pack.writestr(zipfile.ZipInfo(item.file), data)
            sides[side_of(record)].append(json.dumps(record, ensure_ascii=False) + "\n")
    for side, lines in sides.items():
        (out / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a domain or a model, and of its pictures."""
    files = [
        folder / name for name in ("train.jsonl", "val.jsonl", "config.json", "tokenizer.json", "model.safetensors")
    ]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    if (folder / "images.zip").is_file():
        total = hashlib.sha256()
        with zipfile.ZipFile(folder / "images.zip") as pack:
            for name in sorted(pack.namelist()):
                image = Image.open(io.BytesIO(pack.read(name))).convert("RGB")
                total.update(f"{name} {image.width}x{image.height}\n".encode() + image.tobytes())
        found["pictures"] = total.hexdigest()
    return found


def check(root: Path) -> bool:
    """Prints how each folder of a copy compares with ours; returns whether all are equal."""
    equal = True
    for name, ours in json.loads(DIGESTS.read_text(encoding="utf-8")).items():
        theirs = digests(root / name)
        words = {
            key: "equal" if theirs.get(key) == ours[key] else "different" if key in theirs else "absent" for key in ours
        }
        print(f"{name}: " + ", ".join(f"{key} {word}" for key, word in words.items()), flush=True)
        equal &= set(words.values()) == {"equal"}
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="compare a copy with ours; exit code 1 if they differ")
    checking.add_argument("root", type=Path, help="the folder with pairs/ and weights/")
    making = commands.add_parser("make", help="make a domain from clones of its sources")
    making.add_argument("domain", choices=DOMAINS)
    making.add_argument("clones", type=Path, nargs="+", help="at the commits that DATA.md names")
    making.add_argument("--out", type=Path, required=True, help="the new folder")
    options = parser.parse_args()
    if options.command == "check":
        return 0 if check(options.root) else 1
    make(options.domain, options.clones, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
