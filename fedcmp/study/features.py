"""What the frozen towers see, computed once by one process before the runs: a cost of its own, in no run's seconds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fedcmp.config import to_dict
from fedcmp.data.config import expand
from fedcmp.data.records import Sample
from fedcmp.data.sources import SPLITS, Source
from fedcmp.errors import FedcmpError
from fedcmp.models.backbones import VisionTower, load_tower
from fedcmp.pictures import see
from fedcmp.runs.data import read_samples
from fedcmp.runs.models import pick_device
from fedcmp.study.cells import Job, Jobs
from fedcmp.study.schedule import Records, chosen
from fedcmp.tracking.progress import Bar, Progress

log = logging.getLogger(__name__)

OF_PICTURES = ("tower", "tower_dtype", "feature_layer", "keep_cls", "token_grid", "pixel_shuffle")
"""The settings of ``model`` that features depend on."""


def open_jobs(jobs: Jobs, records: Records) -> list[Job]:
    """The runs that are missing; where tuning has not chosen yet, with any options: they have the same pictures."""
    found: list[Job] = []
    for (setting, entrant), grid in jobs.grids.items():
        best = chosen(jobs, setting, entrant, records) or grid[0]
        seeds = range(1, jobs.study.last_seed + 1)
        found += jobs.tuning(setting, entrant) + [jobs.final(setting, entrant, best, seed) for seed in seeds]
    return [job for job in found if job.id not in records]


def encode_features(jobs: Iterable[Job], folder: Path) -> dict[str, Any]:
    """Fills the caches of the jobs: ``data.cache_dir``, or ``folder`` where that is unset.

    What fails is a warning here and an error of the runs that need it.

    Returns:
        ``seconds``; ``pictures`` that were asked for; ``encoded``, how many of them no cache had.
    """
    t0, progress, done = time.perf_counter(), Progress(), set[str]()
    asked = encoded = 0
    loaded: tuple[list[Any], VisionTower] | None = None  # the last tower
    for job in jobs:
        config, data, whole = job.config, job.config.data, to_dict(job.config)
        drawn = data.kind == "scenes" or any(getattr(data, f"max_{part}_per_domain") for part in SPLITS)
        tower = [whole["model"][key] for key in OF_PICTURES]
        key = json.dumps([whole["data"], tower, config.run.seed if drawn else None, config.evaluation.test])
        if key in done:
            continue
        done.add(key)
        device, cache = pick_device(config.run.device), expand(data.cache_dir) if data.cache_dir else folder
        try:
            source, *splits = read_samples(config)
            if loaded is None or loaded[0] != tower:
                loaded = tower, load_tower(config.model).to(device)
            for part, samples in zip(SPLITS, splits, strict=True):
                if (part == "train" and data.stream) or (part == "test" and not config.evaluation.test):
                    continue
                with progress.bar(len(samples), f"{job.cell.setting}, seed {config.run.seed}: {part} pictures") as bar:
                    encoded += _encode(loaded[1], source, samples, device, cache, bar)
                asked += len(samples)
        except FedcmpError as error:
            log.warning("setting %s: its pictures are not encoded before its runs: %s", job.cell.setting, error)
    return {"seconds": round(time.perf_counter() - t0, 3), "pictures": asked, "encoded": encoded}


def _encode(
    tower: VisionTower, source: Source, samples: list[Sample], device: torch.device, cache: Path, bar: Bar
) -> int:
    """Fills the cache; how many samples it did not have."""
    steps: list[int] = []

    def step(count: int) -> None:
        steps.append(count)
        bar(count)

    see(tower, source, samples, device, cache, step)
    return sum(steps[1:])  # the first is what the cache had
