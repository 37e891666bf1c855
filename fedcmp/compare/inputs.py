"""Before any run begins: whether all inputs fit, and the features of all pictures."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedcmp.compare.jobs import Job, Jobs, baseline
from fedcmp.compare.schedule import Results, tuned
from fedcmp.config import to_dict
from fedcmp.data.settings import expand
from fedcmp.data.sources import SPLITS
from fedcmp.errors import ConfigError, DataError, FedcmpError
from fedcmp.federation.sampling import RunPlan
from fedcmp.models.backbones import load_tower
from fedcmp.pictures import see
from fedcmp.runs.data import read_data, read_samples
from fedcmp.runs.method import build_method
from fedcmp.runs.models import check_models, pick_device
from fedcmp.tracking.progress import Bar, Progress

log = logging.getLogger(__name__)

OF_PICTURES = ("tower", "tower_dtype", "feature_layer", "keep_cls", "token_grid", "pixel_shuffle")
"""The settings of ``model`` that features depend on."""


def check_inputs(jobs: Jobs) -> None:
    """Reads the records, assigns them, and builds the methods, of the first run of each. No model is loaded.

    Raises:
        ConfigError, DataError: a run would be refused; the message names its setting and method.
    """
    plans: dict[str, RunPlan] = {}
    for (setting, entrant), grid in jobs.grids.items():
        config = (jobs.tuning(setting, entrant) or [jobs.final(setting, entrant, grid[0], 1)])[0].config
        try:
            content = to_dict(config)
            of_plan = [content[part] for part in ("data", "partition", "federation", "model")]
            key = json.dumps([*of_plan, config.run.seed])
            if key not in plans:
                config.wandb.check_environment(os.environ)
                check_models(config)
                plans[key] = read_data(baseline(config, "local")).plan
            build_method(config, plans[key])
        except (ConfigError, DataError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"setting {setting}, method {entrant}: {error}") from error


def open_jobs(jobs: Jobs, results: Results) -> list[Job]:
    """The missing runs; where tuning has not chosen yet, with any options: the pictures are the same."""
    found: list[Job] = []
    for (setting, entrant), grid in jobs.grids.items():
        best = tuned(jobs, setting, entrant, results).options or grid[0]
        seeds = range(1, jobs.study.last_seed + 1)
        found += jobs.tuning(setting, entrant) + [jobs.final(setting, entrant, best, seed) for seed in seeds]
    return [job for job in found if job.id not in results]


def encode_features(jobs: Iterable[Job], folder: Path) -> dict[str, Any]:
    """Fills the caches of the jobs: ``data.cache_dir``, or ``folder`` where that is unset.

    What fails is a warning here and an error of the runs that need it.

    Returns:
        ``seconds``; ``pictures`` that were asked for; ``encoded``, how many of them no cache had.
    """
    t0, progress, asked, encoded = time.perf_counter(), Progress(), 0, 0
    different: dict[str, Job] = {}
    for job in jobs:
        different.setdefault(_pictures_key(job), job)
    name: Any = None
    tower: Any = None
    for key, job in different.items():
        config, data = job.config, job.config.data
        device, cache = pick_device(config.run.device), expand(data.cache_dir) if data.cache_dir else folder
        try:
            source, *splits = read_samples(config)
            if name != json.loads(key)[0]:
                name, tower = json.loads(key)[0], load_tower(config.model).to(device)
            for part, samples in zip(SPLITS, splits, strict=True):
                if (part == "train" and data.stream) or (part == "test" and not config.evaluation.test):
                    continue
                with progress.bar(len(samples), f"{job.cell.setting}, seed {config.run.seed}: {part} pictures") as bar:
                    encoded += _encode(tower, source, samples, device, cache, bar)
                asked += len(samples)
        except FedcmpError as error:
            log.warning("setting %s: its pictures are not encoded before its runs: %s", job.cell.setting, error)
    return {"seconds": round(time.perf_counter() - t0, 3), "pictures": asked, "encoded": encoded}


def _encode(tower: Any, source: Any, samples: list[Any], device: Any, cache: Path, bar: Bar) -> int:
    """Fills the cache; how many samples it did not have."""
    steps: list[int] = []

    def step(count: int) -> None:
        steps.append(count)
        bar(count)

    see(tower, source, samples, device, cache, step)
    return sum(steps[1:])  # the first is what the cache had


def _pictures_key(job: Job) -> str:
    """What the pictures of a run and their features depend on, the tower first."""
    data, whole = job.config.data, to_dict(job.config)
    drawn = data.kind == "scenes" or any(getattr(data, f"max_{part}_per_domain") for part in SPLITS)
    tower = [whole["model"][key] for key in OF_PICTURES]
    return json.dumps([tower, whole["data"], job.config.run.seed if drawn else None, job.config.evaluation.test])
