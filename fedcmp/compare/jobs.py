"""The runs of a comparison, each with its config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig
from fedcmp.compare.grid import LR, Options, centralized_grid, local_grid, method_grid
from fedcmp.compare.identity import identity
from fedcmp.compare.spec import Method, Setting, Study
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
        self.entrants = (*self.bounds, *self.methods)
        self.grids: dict[tuple[str, str], list[Options]] = {}
        """(setting, entrant) -> what is tuned."""
        self._configs: dict[tuple[str, str], Config] = {}
        self._jobs: dict[tuple[str, ...], Job] = {}
        for setting in study.settings:
            if not setting.config.evaluation.test:
                raise ConfigError(
                    f"setting {setting.label}: evaluation.test must be true: a comparison reports on test"
                )
            for method in study.methods:
                self._add_method(setting, method)
            for bound in self.bounds:
                config = baseline(setting.config, bound)
                grid = centralized_grid if bound == "centralized" else local_grid
                self._configs[setting.label, bound] = config
                self.grids[setting.label, bound] = grid(config, study.budget)

    def _add_method(self, setting: Setting, method: Method) -> None:
        try:
            config = method_config(setting.config, method)
            held = any(override.partition("=")[0] == LR for override in method.overrides)
            grid = method_grid(config, self.study.budget, held)
            for options in grid:
                with_options(config, options).validate()
        except ConfigError as error:
            raise ConfigError(f"--methods {method.label}: {error} (setting {setting.label})") from error
        self._configs[setting.label, method.label] = config
        self.grids[setting.label, method.label] = grid

    def config(self, setting: str, entrant: str) -> Config:
        """Of a method or bound in a setting, without what the grid sets."""
        return self._configs[setting, entrant]

    def tuning(self, setting: str, entrant: str) -> list[Job]:
        """The runs that choose; with a budget of 1 there are none."""
        grid = self.grids[setting, entrant] if self.study.budget > 1 else []
        seed = self.config(setting, entrant).run.seed
        return [self._job(setting, entrant, one, seed, TUNE) for one in grid]

    def final(self, setting: str, entrant: str, options: Options, seed: int) -> Job:
        """A run that is reported."""
        return self._job(setting, entrant, options, seed, FINAL)

    def _job(self, setting: str, entrant: str, options: Options, seed: int, stage: str) -> Job:
        cell = Cell(setting, entrant, dict(options), seed, stage)
        key = (*cell.key(), json.dumps(cell.options, sort_keys=True))
        if key not in self._jobs:
            config = with_options(self._configs[setting, entrant], {**options, "run.seed": seed})
            if entrant == "centralized":  # the list that its learning rate was taken from is no part of the run
                config = with_options(config, {"centralized.lrs": [config.optimizer.lr]})
            if stage == TUNE:  # its validation loss alone counts
                quiet = {"captions": 0, "examples": 0, "test": False}
                config = with_options(config, {f"evaluation.{key}": value for key, value in quiet.items()})
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
    own = config.aggregator
    if method.preset != own.name:
        given = {override.partition("=")[0] for override in method.overrides}
        if own.normalise is False and PRESETS[method.preset].normalise and NORMALISE not in given:
            raise ConfigError(f"{NORMALISE}=false in CONFIG does not fit {method.preset}; leave it unset there")
        own = dataclasses.replace(own, name=method.preset, fuse={}, server={}, local={})
    return amend(
        _one_process(dataclasses.replace(config, aggregator=own, centralized=CentralizedConfig())), method.overrides
    )


def baseline(config: Config, bound: str) -> Config:
    """The config of a bound: without method and privacy, so that these do not make it another run."""
    lists = config.centralized if bound == "centralized" else CentralizedConfig()
    bare = dataclasses.replace(config, aggregator=AggregatorConfig("fedavg"), privacy=PrivacyConfig())
    return _one_process(dataclasses.replace(bare, centralized=lists))


def _one_process(config: Config) -> Config:
    return dataclasses.replace(config, launch=LaunchConfig())


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """A config with values set; unlike ``amend`` it checks nothing and is a thousand times faster.

    >>> with_options(Config(), {"aggregator.server.lr": 2.0, "run.seed": 3}).aggregator.server
    {'lr': 2.0}
    """
    for key, value in options.items():
        config = _put(config, key.split("."), value)
    return config


def _put(content: T, path: list[str], value: Any) -> T:
    name, rest = path[0], path[1:]
    if isinstance(content, dict):
        inner = _put(content.get(name, {}), rest, value) if rest else value
        return {**content, name: inner}  # type: ignore[return-value]
    inner = _put(getattr(content, name), rest, value) if rest else value
    return dataclasses.replace(content, **{name: inner})  # type: ignore[type-var]
