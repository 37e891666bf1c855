"""What would end runs with an error, in their first minute or, worse, in the last hour: looked at before any begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from fedcmp.config import Config, to_dict
from fedcmp.errors import ConfigError, DataError
from fedcmp.federation.sampling import RunPlan
from fedcmp.runs.data import read_data
from fedcmp.runs.method import build_method
from fedcmp.runs.models import check_models
from fedcmp.study.cells import Job, baseline


def check_inputs(jobs: Iterable[Job]) -> None:
    """Reads the records, assigns them, and asks whether the cohorts suffice for the methods. No model is loaded.

    Of jobs that differ in nothing but the method and the optimizer the records are read once.

    Raises:
        ConfigError, DataError: a run would be refused; the message names its setting and method.
    """
    plans: dict[str, RunPlan] = {}
    for job in jobs:
        try:
            key = _key(job.config)
            if key not in plans:
                job.config.wandb.check_environment(os.environ)
                check_models(job.config)
                plans[key] = read_data(baseline(job.config, "local")).plan
            build_method(job.config, plans[key])
        except (ConfigError, DataError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"setting {job.cell.setting}, method {job.cell.method}: {error}") from error


def _key(config: Config) -> str:
    """What the records, the split and the plan depend on."""
    content = to_dict(config)
    return json.dumps([content[part] for part in ("data", "partition", "federation", "model")] + [config.run.seed])
