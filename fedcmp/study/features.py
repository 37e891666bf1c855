"""What the frozen towers see, computed once by one process before the runs: a cost of its own, in no run's seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedcmp.build import draw_samples, pick_device
from fedcmp.config import to_dict
from fedcmp.data.config import expand
from fedcmp.models.backbones import VisionTower, load_tower
from fedcmp.pictures import see
from fedcmp.study.cells import Job, Jobs
from fedcmp.study.schedule import Records, chosen
from fedcmp.tracking.progress import Progress

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

    Returns:
        ``seconds``; ``pictures`` that were asked for; ``encoded``, how many of them no cache had.

    Raises:
        DataError, ConfigError: a picture cannot be read, a tower cannot be loaded, or a cache cannot be written.
    """
    t0, progress, done = time.perf_counter(), Progress(), set[str]()
    asked = encoded = 0
    loaded: tuple[list[Any], VisionTower] | None = None  # the last tower
    for job in jobs:
        config, data, whole = job.config, job.config.data, to_dict(job.config)
        drawn = (
            data.kind == "scenes" or data.max_train_per_domain or data.max_val_per_domain or data.max_test_per_domain
        )
        tower = [whole["model"][key] for key in OF_PICTURES]
        key = json.dumps([whole["data"], tower, config.run.seed if drawn else None, config.evaluation.test])
        if key in done:
            continue
        done.add(key)
        source, train, val, test = draw_samples(config)
        device = pick_device(config.run.device)
        if loaded is None or loaded[0] != tower:
            loaded = tower, load_tower(config.model).to(device)
        parts = {"training": [] if data.stream else train, "validation": val}
        for what, samples in {**parts, "test": test if config.evaluation.test else []}.items():
            steps: list[int] = []
            with progress.bar(len(samples), f"{what} pictures of {job.cell.setting}, seed {config.run.seed}") as bar:

                def step(count: int, steps: list[int] = steps, bar: Any = bar) -> None:
                    steps.append(count)
                    bar(count)

                cache = expand(data.cache_dir) if data.cache_dir else folder
                see(loaded[1], source, samples, device, cache, step)
            asked, encoded = asked + len(samples), encoded + sum(steps[1:])
    return {"seconds": round(time.perf_counter() - t0, 3), "pictures": asked, "encoded": encoded}
