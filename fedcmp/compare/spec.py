"""What a comparison compares: methods, settings, seeds, budget. Checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.compare.entries import (
    PLACES,
    SHARED,
    Method,
    Setting,
    forbid,
    parse_methods,
    parse_optimizers,
    parse_settings,
    sets,
)
from fedcmp.compare.identity import folders
from fedcmp.config import Config, amend, from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError, RunFolderError, nearest

METHODS = "fedavg,fedadam,fedcmp"


class Request(NamedTuple):
    """The options of a command line; None: not given."""

    methods: str | None = None
    scenarios: str | None = None
    optimizers: str | None = None
    seeds: int | None = None
    budget: int | None = None
    tuning_seeds: int | None = None
    extra_seeds: int | None = None
    rivals: int | None = None
    reference: str | None = None
    bounds: bool | None = None
    keep_projectors: bool | None = None


OPTIONS = Request._fields[3:]
"""Fields that ``Request``, ``Study`` and compare.json share."""


@dataclass(frozen=True)
class Study:
    """A comparison."""

    file: str | None
    """The config file; None: the defaults."""
    overrides: tuple[str, ...]
    """Beside the file, for all methods and settings."""
    config: Config
    """The file with the overrides."""
    settings: tuple[Setting, ...]
    methods: tuple[Method, ...]
    reference: str
    """The label of the method that the others are tested against."""
    seeds: int = 5
    """Every method is reported on seeds 1 to this."""
    budget: int = 4
    """How many options of every method are tried in every setting; 1: none, the config's own values."""
    tuning_seeds: int = 1
    """On how many seeds each is tried: `run.seed`, and further ones 1,000 apart."""
    optimizers: tuple[tuple[str, float], ...] = ()
    """Other local optimizers than CONFIG's, each tuned with the same budget around its learning rate."""
    extra_seeds: int = 0
    """The reference, its strongest rivals and the bounds are reported on seeds up to this; 0: no further."""
    rivals: int = 2
    """How many rivals of each setting get the extra seeds."""
    bounds: bool = True
    """Run centralized and local, too."""
    keep_projectors: bool = False
    """Whether finished runs keep their projector."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Variable -> folder of data at the first request: the identity of a run does not depend on these folders."""

    @property
    def tuned(self) -> int:
        """Tuning runs of a method in a setting, over all optimizers and tuning seeds; 1: none."""
        tried = self.budget * (1 + len(self.optimizers))
        return tried * self.tuning_seeds if tried > 1 else 1

    def tuned_on(self, seed: int) -> range:
        """The tuning seeds of a config with this `run.seed`."""
        return range(seed, seed + 1000 * self.tuning_seeds, 1000)

    @property
    def last_seed(self) -> int:
        """The last seed of any method."""
        return max(self.seeds, self.extra_seeds)

    def check(self) -> None:
        """Whether the numbers fit together.

        Raises:
            ConfigError: they do not.
        """
        for name in ("seeds", "budget", "tuning_seeds", "rivals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.extra_seeds and self.extra_seeds < self.seeds:
            raise ConfigError(f"--extra-seeds must be at least --seeds {self.seeds}, got {self.extra_seeds}")
        labels = [method.label for method in self.methods]
        if self.reference not in labels:
            raise ConfigError(f"--reference: no method {self.reference!r}; {nearest(self.reference, labels)}")
        for name, _ in self.optimizers:
            if name == self.config.optimizer.name:
                raise ConfigError(f"--optimizers: {name} is optimizer.name of all runs; name another one")
        for setting in self.settings:
            reported = set(range(1, self.last_seed + 1))
            if self.tuned > 1 and reported.intersection(self.tuned_on(setting.config.run.seed)):
                raise ConfigError(
                    f"run.seed, on which methods are tuned, must be none of the seeds 1 to {self.last_seed} on which "
                    f"they are reported, got {setting.config.run.seed}"
                )


def ask(file: Path | None, overrides: Sequence[str], request: Request) -> Study:
    """A comparison from a command line; what was not given has its default.

    Args:
        file: the config file; None: the defaults.
        overrides: ``key=value`` for all methods and settings.
        request: the options.

    Raises:
        ConfigError: the message names the entry or key, and what was expected.
    """
    forbid(overrides, PLACES, "fedcmp compare")
    base = load_config(file, overrides)
    whole = (Setting(file.stem if file else "demo", base),)
    study = Study(str(file) if file else None, tuple(overrides), base, whole, parse_methods(METHODS), "")
    return again(dataclasses.replace(study, folders=folders(base)), request)


def again(study: Study, request: Request, overrides: Sequence[str] = ()) -> Study:
    """The comparison with the options that were given now in place of its own, and overrides on top of its settings.

    Raises:
        ConfigError: as for ``ask``.
    """
    if overrides:
        forbid(overrides, PLACES, "fedcmp compare")
        own = [override for override in overrides if not sets(override, SHARED)]
        study = dataclasses.replace(
            study,
            overrides=(*study.overrides, *overrides),
            config=amend(study.config, overrides),
            settings=tuple(
                one._replace(config=amend(one.config, overrides), overrides=(*one.overrides, *own))
                for one in study.settings
            ),
        )
    changes: dict[str, Any] = {key: value for key in OPTIONS if (value := getattr(request, key)) is not None}
    if request.methods is not None:
        changes["methods"] = parse_methods(request.methods)
    if request.scenarios is not None:
        changes["settings"] = parse_settings(request.scenarios, study.config, study.overrides)
        changes["folders"] = {**folders(*(setting.config for setting in changes["settings"])), **study.folders}
    if request.optimizers is not None:
        changes["optimizers"] = parse_optimizers(request.optimizers)
    labels = [method.label for method in changes.get("methods", study.methods)]
    if request.reference is None and study.reference not in labels:
        changes["reference"] = "fedcmp" if "fedcmp" in labels else labels[0]
    study = dataclasses.replace(study, **changes)
    study.check()
    return study


def to_json(study: Study) -> dict[str, Any]:
    """The part of compare.json from which ``from_json`` makes the comparison again, without its files."""
    return {
        "file": study.file,
        "overrides": list(study.overrides),
        "config": to_yaml(study.config),
        "settings": [
            {**one._asdict(), "config": to_yaml(one.config), "overrides": list(one.overrides)} for one in study.settings
        ],
        "methods": [{**one._asdict(), "overrides": list(one.overrides)} for one in study.methods],
        **{key: getattr(study, key) for key in OPTIONS},
        "optimizers": [list(one) for one in study.optimizers],
        "folders": dict(study.folders),
    }


def from_json(content: Mapping[str, Any], where: str) -> Study:
    """Reads what ``to_json`` wrote.

    Raises:
        RunFolderError: this is no compare.json of fedcmp.
        ConfigError: a config in it is not valid (any more).
    """
    try:
        return Study(
            file=content["file"],
            overrides=tuple(content["overrides"]),
            config=from_yaml(content["config"], f"the config in {where}"),
            settings=tuple(
                Setting(
                    one["label"],
                    from_yaml(one["config"], f"setting {one['label']} in {where}"),
                    one["name"],
                    tuple(one["overrides"]),
                )
                for one in content["settings"]
            ),
            methods=tuple(Method(one["label"], one["preset"], tuple(one["overrides"])) for one in content["methods"]),
            **{key: content[key] for key in OPTIONS},
            optimizers=tuple((name, lr) for name, lr in content["optimizers"]),
            folders=content["folders"],
        )
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{where} is no compare.json of fedcmp: {type(error).__name__} {error}") from error
