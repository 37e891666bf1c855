"""One run of a comparison: where it stands in it, and which config it has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig
from fedcmp.config import CentralizedConfig, Config, amend
from fedcmp.distributed.launch import LaunchConfig
from fedcmp.errors import ConfigError
from fedcmp.privacy.settings import PrivacyConfig
from fedcmp.compare.asked import Setting, Study
from fedcmp.compare.grid import LR, Options, centralized_grid, local_grid, method_grid
from fedcmp.compare.identity import identity
from fedcmp.compare.words import BOUNDS, Method

TUNE, FINAL = "tune", "final"
NORMALISE = "aggregator.normalise"
T = TypeVar("T")


class Cell(NamedTuple):
    """Where a run stands in the comparison."""

    setting: str
    method: str
    """A method's label, ``centralized`` or ``local``."""
    options: dict[str, Any]
    """What the grid sets: override key -> value."""
    seed: int
    stage: str
    """``tune``: chooses, on validation; ``final``: is reported, on test."""

    def key(self) -> tuple[str, ...]:
        """Cells of one key answer the same question; a final cell does whatever was chosen for it."""
        options = json.dumps(self.options, sort_keys=True) if self.stage == TUNE else ""
        return (self.setting, self.method, str(self.seed), self.stage, options)


class Job(NamedTuple):
    """A cell with what it takes to run it."""

    cell: Cell
    id: str
    """Made of what is computed alone, so that the same run is known again under any label."""
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
        self.grids: dict[tuple[str, str], list[Options]] = {}
        self._configs: dict[tuple[str, str], Config] = {}
        self._jobs: dict[tuple[str, ...], Job] = {}
        for setting in study.settings:
            if not setting.config.evaluation.test:
                raise ConfigError(f"setting {setting.label}: evaluation.test=false, but a comparison reports on test")
            for method in study.methods:
                self._add_method(setting, method)
            for bound in self.bounds:
                config = baseline(setting.config, bound)
                grid = centralized_grid if bound == "centralized" else local_grid
                self._configs[setting.label, bound] = config
                self.grids[setting.label, bound] = grid(config, study.budget)

    def _add_method(self, setting: Setting, method: Method) -> None:
        where = f"--methods {method.label}"
        try:
            config = method_config(setting.config, method)
            held = any(override.partition("=")[0] == LR for override in method.overrides)
            grid = method_grid(config, self.study.budget, held, where)
            for options in grid:
                with_options(config, options).validate()
        except ConfigError as error:
            text = str(error) if str(error).startswith("--") else f"{where}: {error}"
            raise ConfigError(f"{text} (setting {setting.label})") from error
        self._configs[setting.label, method.label] = config
        self.grids[setting.label, method.label] = grid

    def config(self, setting: str, method: str) -> Config:
        """Of a method in a setting, without what the grid sets."""
        return self._configs[setting, method]

    def tuning(self, setting: str, method: str) -> list[Job]:
        """The runs that choose; with a budget of 1 there are none."""
        grid = self.grids[setting, method]
        seed = self.config(setting, method).run.seed
        return [self._job(setting, method, one, seed, TUNE) for one in grid] if self.study.budget > 1 else []

    def final(self, setting: str, method: str, options: Options, seed: int) -> Job:
        """A run that is reported."""
        return self._job(setting, method, options, seed, FINAL)

    def _job(self, setting: str, method: str, options: Options, seed: int, stage: str) -> Job:
        cell = Cell(setting, method, dict(options), seed, stage)
        key = (*cell.key(), json.dumps(cell.options, sort_keys=True))
        if key not in self._jobs:
            config = with_options(self._configs[setting, method], {**options, "run.seed": seed})
            if method == "centralized":  # the list that its learning rate was taken from is no part of the run
                config = with_options(config, {"centralized.lrs": [config.optimizer.lr]})
            if stage == TUNE:  # nobody looks at more than its validation loss
                quiet = {"captions": 0, "examples": 0, "test": False}
                config = with_options(config, {f"evaluation.{key}": value for key, value in quiet.items()})
            kind = method if method in BOUNDS else ""
            self._jobs[key] = Job(cell, identity(kind, config, self.study.folders), config)
        return self._jobs[key]


def method_config(config: Config, method: Method) -> Config:
    """The method in place of the config's own. Options of parts that the config gives its own method are no other's;
    what it says of all clients' updates (weights, clipping, guard, normalisation) holds for every method.

    Raises:
        ConfigError: the method's words do not fit, or what the config says of all does not fit the method.
    """
    own = config.aggregator
    if method.preset != own.name:
        said = {override.partition("=")[0] for override in method.overrides}
        if own.normalise is False and PRESETS[method.preset].normalise and NORMALISE not in said:
            raise ConfigError(
                f"{NORMALISE}=false in CONFIG takes from {method.preset} what it is; leave it unset, or say "
                f"{method.preset}:{NORMALISE}=true"
            )
        own = dataclasses.replace(own, name=method.preset, fuse={}, server={}, local={})
    return amend(_alike(dataclasses.replace(config, aggregator=own, centralized=CentralizedConfig())), method.overrides)


def baseline(config: Config, bound: str) -> Config:
    """The config of a bound: it has no method, and what the config says of one must not make it another run. Nor has it
    rounds in which clients could be protected."""
    lists = config.centralized if bound == "centralized" else CentralizedConfig()
    bare = dataclasses.replace(config, aggregator=AggregatorConfig("fedavg"), privacy=PrivacyConfig())
    return _alike(dataclasses.replace(bare, centralized=lists))


def _alike(config: Config) -> Config:
    """Every run is one process."""
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
