"""LCS-558K in its own layout, synthetic: what reading, split_by and planning it costs, and pictures a second.

    python benchmarks/scale_data.py                     # 558,128 records; about 3 minutes and 1 GB of disk
    python benchmarks/scale_data.py --records 20000     # seconds: shows that it runs

Records are read from one JSON file of the published form, pictures from one zip with an entry each. Every step runs in
a process of its own that does all before it, so that peak memory is that of the step. Then pictures of 640 x 480 are
read through a CLIP ViT-L/14-336 processor by 0, 1 and more processes (``fedcmp.data.stream``), beside the rate that the
published run of LLaVA-1.5-7B needs: 558,128 samples in 3.5 hours on eight A100.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import RESULTS, save

from fedcmp.config import Config, load_config
from fedcmp.data.collate import Batches
from fedcmp.data.features import FeatureTable
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import manifest, partition
from fedcmp.data.sources import RecordSource, build_source
from fedcmp.data.stream import Stream
from fedcmp.federation.sampling import plan_run

RECORDS = 558_128
NEEDED = RECORDS / (3.5 * 3600) / 8
"""Pictures a second and GPU of the published run."""
WORDS = (
    "a",
    "red",
    "old",
    "small",
    "wooden",
    "photo",
    "of",
    "the",
    "dog",
    "house",
    "on",
    "road",
    "two",
    "people",
    "sky",
)
STEPS = ("read", "assign", "plan", "manifest")


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A picture that is as hard to decode as a photo: smooth areas and some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.integers(-12, 13, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, records: int) -> None:
    """``blip_laion_cc_sbu_558k.json`` and ``images.zip``; pictures are tiny, and no two have the same bytes."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, len(WORDS), (records, 18))
    lengths = rng.integers(5, 19, records)
    names = [f"{number // 10_000:05d}/{number:09d}.jpg" for number in range(records)]
    found = [
        {
            "id": name[6:-4],
            "image": name,
            "conversations": [
                {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
                {"from": "gpt", "value": " ".join(WORDS[word] for word in words[place, : lengths[place]])},
            ],
        }
        for place, name in enumerate(names)
    ]
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(found, indent=2))
    tiny = jpeg(16, 16, 0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(name, tiny + name.encode())  # a reader of JPEG stops before the name


def settings(folder: Path, clients: int) -> Config:
    return load_config(
        None,
        [
            "data.kind=file",
            f"data.train={folder}/blip_laion_cc_sbu_558k.json",
            f"data.images={folder}/images.zip",
            "data.stream=true",
            "partition.scenario=quantity",
            f"partition.clients={clients}",
            "federation.rounds=20",
            "federation.batch_size=32",
        ],
    )


def step(folder: Path, clients: int, until: str) -> dict[str, float]:
    """The steps up to one; seconds of that one, and peak memory of the process."""
    config, seconds = settings(folder, clients), 0.0

    def timed(make: Callable[[], Any]) -> Any:
        nonlocal seconds
        t0 = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - t0
        return made

    source = timed(lambda: build_source(config.data))
    train = source.samples("train")
    if until != "read":
        split = timed(lambda: partition(train, config.partition, 0))
    if until in ("plan", "manifest"):
        timed(lambda: plan_run(split.clients, config.federation, 0))
    if until == "manifest":
        timed(lambda: json.dumps(manifest(split, {"train": train}, config.partition)))
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def rates(folder: Path, pictures: int, batch: int, workers: list[int]) -> dict[str, float]:
    """Pictures a second that come ready from a zip, by the number of processes that read ahead."""
    import transformers

    images, file = folder / "photos.zip", folder / "photos.json"
    with zipfile.ZipFile(images, "w") as archive:
        for number in range(64):
            archive.writestr(f"{number}.jpg", jpeg(640, 480, number))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a photo."}]
    file.write_text(json.dumps([{"id": n, "image": f"{n}.jpg", "conversations": turns} for n in range(64)]))
    config = load_config(None, ["data.kind=file", f"data.train={file}", f"data.images={images}"])
    config.data.held_out_per_domain, config.data.on_overlap = 2, "ignore"
    source = build_source(config.data)
    assert isinstance(source, RecordSource)
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = transformers.CLIPImageProcessorPil(**size)

    def preprocess(found: Any) -> torch.Tensor:
        pixels: torch.Tensor = processor(images=list(found), return_tensors="pt")["pixel_values"]
        return pixels

    def encode(samples: Any) -> list[torch.Tensor]:
        return [torch.zeros(12, dtype=torch.long) for _ in samples]

    train: list[Sample] = source.samples("train")
    places = [number % len(train) for number in range(pictures)]
    batches = [places[begin : begin + batch] for begin in range(0, pictures, batch)]
    found = {}
    for count in workers:
        stream = Stream(source, train, preprocess, encode, 0, torch.device("cpu"), count)
        t0 = time.perf_counter()
        stream.expect(batches)
        for positions in batches:
            stream(positions)
        found[str(count)] = pictures / (time.perf_counter() - t0)
        stream.expect([])
    return found


def cached(batch: int = 16, pictures: int = 128) -> float:
    """Rows a second that come from cached features of CLIP ViT-L/14-336, 576 x 1024 in float16, with their captions."""
    table = FeatureTable(torch.zeros(pictures, 576, 1024, dtype=torch.float16), range(pictures))
    fetch = Batches(table, [torch.zeros(12, dtype=torch.long)] * pictures, 0, torch.device("cpu"))
    fetch(range(batch))
    t0 = time.perf_counter()
    for begin in range(0, pictures, batch):
        fetch(range(begin, begin + batch))
    return pictures / (time.perf_counter() - t0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=768, help="that are decoded for each number of processes")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.folder, options.clients, options.step)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, options.records)
        size = (folder / "blip_laion_cc_sbu_558k.json").stat().st_size
        steps = {}
        for name in STEPS:
            words = [sys.executable, __file__, "--step", name, "--folder", made, "--clients", str(options.clients)]
            steps[name] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        pictures = rates(folder, options.pictures, 32, options.workers)
    from_cache = cached()
    found = {
        "records": options.records,
        "clients": options.clients,
        "json_bytes": size,
        "steps": steps,
        "pictures_per_second": pictures,
        "cached_rows_per_second": from_cache,
        "needed_per_gpu": NEEDED,
    }
    print(json.dumps(found, indent=1))
    save(
        "scale_data",
        f"python benchmarks/scale_data.py --records {options.records} --clients {options.clients} "
        f"--pictures {options.pictures} --workers " + " ".join(map(str, options.workers)),
        found,
        {},
        folder=options.out,
    )


if __name__ == "__main__":
    main()
