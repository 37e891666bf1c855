"""The runs of a comparison, each with its config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig
from fedcmp.compare.entries import Method
from fedcmp.compare.grid import LR, OPTIMIZER, Options, centralized_grid, local_grid, method_grid, with_optimizers
from fedcmp.compare.identity import identity
from fedcmp.compare.spec import Study
from fedcmp.config import CentralizedConfig, Config, amend
from fedcmp.distributed.launch import LaunchConfig
from fedcmp.errors import ConfigError
from fedcmp.privacy.settings import PrivacyConfig
from fedcmp.report.comparison.results import BOUNDS, FINAL, TUNE, Cell

NORMALISE = "aggregator.normalise"
T = TypeVar("T")


class Job(NamedTuple):
    """A cell with all that its run needs."""

    cell: Cell
    id: str
    """Depends on what is computed alone: the same run under another label is known."""
    config: Config
    """Resolved; without a folder."""

    @property
    def group(self) -> tuple[str, int]:
        """Setting and seed: runs of one group have the same features."""
        return self.cell.setting, self.cell.seed


class Jobs:
    """Makes the jobs of a comparison, each once.

    Raises:
        ConfigError: a config of a method in a setting is not valid, or cannot be tuned as often as asked.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.settings = tuple(setting.label for setting in study.settings)
        self.methods = tuple(method.label for method in study.methods)
        self.bounds = BOUNDS if study.bounds else ()
        self.entrants = (*self.methods, *self.bounds)
        """In the order of their runs: who stops early has compared methods first."""
        self.configs: dict[tuple[str, str], Config] = {}
        """(setting, entrant) -> its config without what the grid sets."""
        self.grids: dict[tuple[str, str], list[Options]] = {}
        """(setting, entrant) -> what is tuned."""
        self._jobs: dict[tuple[str, ...], Job] = {}
        for setting in study.settings:
            launch = setting.config.launch
            if launch.devices % launch.group_size:
                raise ConfigError(
                    f"setting {setting.label}: launch.group_size={launch.group_size} must divide launch.devices="
                    f"{launch.devices}, on which a comparison starts each run"
                )
            if not setting.config.evaluation.test:
                raise ConfigError(f"setting {setting.label}: evaluation.test must be true for a comparison")
            for method in study.methods:
                key = setting.label, method.label
                try:
                    self.configs[key] = config = method_config(setting.config, method)
                    own = {override.partition("=")[0] for override in method.overrides}
                    fixed = PRESETS[method.preset].optimizer or OPTIMIZER in own
                    self.grids[key] = with_optimizers(
                        config,
                        () if fixed else study.optimizers,
                        partial(method_grid, budget=study.budget, lr_held=LR in own),
                    )
                    for options in self.grids[key]:
                        with_options(config, options).validate()
                except ConfigError as error:
                    raise ConfigError(f"--methods {method.label}: {error} (setting {setting.label})") from error
            for bound in self.bounds:
                grid = partial(centralized_grid if bound == "centralized" else local_grid, budget=study.budget)
                self.configs[setting.label, bound] = config = baseline(setting.config, bound)
                self.grids[setting.label, bound] = with_optimizers(config, study.optimizers, grid)

    def tuning(self, setting: str, entrant: str) -> list[Job]:
        """The runs that choose; where one alone could be chosen there are none."""
        grid = self.grids[setting, entrant] if len(self.grids[setting, entrant]) > 1 else []
        seeds = self.study.tuned_on(self.configs[setting, entrant].run.seed)
        return [self._job(setting, entrant, one, seed, TUNE) for seed in seeds for one in grid]

    def final(self, setting: str, entrant: str, options: Options, seed: int) -> Job:
        """A run that is reported."""
        return self._job(setting, entrant, options, seed, FINAL)

    def _job(self, setting: str, entrant: str, options: Options, seed: int, stage: str) -> Job:
        cell = Cell(setting, entrant, dict(options), seed, stage)
        key = (*cell.key(), json.dumps(cell.options, sort_keys=True))
        if key not in self._jobs:
            config = with_options(self.configs[setting, entrant], {**options, "run.seed": seed})
            if entrant == "centralized":  # the list that its learning rate was taken from is no part of the run
                config = with_options(config, {"centralized.lrs": [config.optimizer.lr]})
            if stage == TUNE:  # its validation loss alone counts
                quiet = {"captions": 0, "examples": 0, "test": False}
                config = with_options(config, {f"evaluation.{key}": value for key, value in quiet.items()})
            kept = config.wandb.projector and self.study.keep_projectors
            config = with_options(config, {"wandb.projector": kept})
            kind = entrant if entrant in BOUNDS else ""
            self._jobs[key] = Job(cell, identity(kind, config, self.study.folders), config)
        return self._jobs[key]


def method_config(config: Config, method: Method) -> Config:
    """The method in place of the config's own.

    Options of parts that the config gives its own method do not reach others; what it sets for all clients' updates
    (weights, clipping, guard, normalisation) holds for every method.

    Raises:
        ConfigError: the method's overrides do not fit, or the settings for all do not fit the method.
    """
    own, optimizer = config.aggregator, config.optimizer
    if method.preset != own.name:
        given = {override.partition("=")[0] for override in method.overrides}
        if own.normalise is False and PRESETS[method.preset].normalise and NORMALISE not in given:
            raise ConfigError(f"{NORMALISE}=false in CONFIG does not fit {method.preset}; leave it unset there")
        own = dataclasses.replace(own, name=method.preset, fuse={}, server={}, local={})
        optimizer = dataclasses.replace(optimizer, name=PRESETS[method.preset].optimizer or optimizer.name)
    bare = dataclasses.replace(config, aggregator=own, optimizer=optimizer, centralized=CentralizedConfig())
    return amend(bare, method.overrides)


def baseline(config: Config, bound: str) -> Config:
    """The config of a bound: without method and privacy, so that these do not make it another run."""
    return dataclasses.replace(
        config,
        aggregator=AggregatorConfig("fedavg"),
        privacy=PrivacyConfig(),
        centralized=config.centralized if bound == "centralized" else CentralizedConfig(),
        launch=LaunchConfig(),  # one process
    )


def with_options(config: T, options: Mapping[str, Any]) -> T:
    """A config with values set; unlike ``amend`` it checks nothing and is a thousand times faster.

    >>> with_options(Config(), {"aggregator.server.lr": 2.0, "run.seed": 3}).aggregator.server
    {'lr': 2.0}
    """
    for key, value in options.items():
        name, _, rest = key.partition(".")
        if isinstance(config, dict):
            config = {**config, name: value}  # type: ignore[assignment]
        else:
            inner = with_options(getattr(config, name), {rest: value}) if rest else value
            config = dataclasses.replace(config, **{name: inner})  # type: ignore[type-var]
    return config
