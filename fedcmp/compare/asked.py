"""What a comparison was asked to compare: settings, methods, seeds, budget. Checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.config import Config, amend, from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError, RunFolderError, nearest
from fedcmp.compare.identity import folders
from fedcmp.compare.words import PLACES, Method, forbid, parse_methods, parse_scenarios

METHODS = "fedavg,fedadam,fedcmp"


class Setting(NamedTuple):
    """One split of one set of data among clients, in which all methods are compared."""

    label: str
    config: Config
    """Resolved; of its ``aggregator``, options count for the methods of its own name only."""


class Request(NamedTuple):
    """The words of a command line; None: not said."""

    methods: str | None = None
    scenarios: str | None = None
    seeds: int | None = None
    budget: int | None = None
    extra_seeds: int | None = None
    rivals: int | None = None
    reference: str | None = None
    bounds: bool | None = None
    keep_projectors: bool | None = None


@dataclass(frozen=True)
class Study:
    """What is compared. ``check`` tells whether it can be."""

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
    """Tuning runs of every method in every setting; 1: none, the config's own values."""
    extra_seeds: int = 0
    """The reference, its strongest rivals and the bounds are reported on seeds up to this; 0: no further."""
    rivals: int = 2
    """How many rivals of each setting get the extra seeds."""
    bounds: bool = True
    """Run centralized and local, too."""
    keep_projectors: bool = False
    """Whether the runs keep theirs when they have finished."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Variable -> folder it pointed at when this was first asked for: runs are not known by these folders."""

    @property
    def last_seed(self) -> int:
        """The last seed that anybody gets."""
        return max(self.seeds, self.extra_seeds)

    def check(self) -> None:
        """Whether the numbers fit together.

        Raises:
            ConfigError: they do not.
        """
        for option, value in (("--seeds", self.seeds), ("--budget", self.budget), ("--rivals", self.rivals)):
            if value < 1:
                raise ConfigError(f"{option} must be at least 1, got {value}")
        if self.extra_seeds and self.extra_seeds < self.seeds:
            raise ConfigError(f"--extra-seeds {self.extra_seeds} must not be below --seeds {self.seeds}")
        labels = [method.label for method in self.methods]
        if self.reference not in labels:
            raise ConfigError(f"--reference: no method {self.reference!r}; {nearest(self.reference, labels)}")
        for setting in self.settings:
            if 1 <= setting.config.run.seed <= self.last_seed and self.budget > 1:
                raise ConfigError(
                    f"run.seed={setting.config.run.seed} is the seed on which methods are tuned, and one of the seeds "
                    f"1 to {self.last_seed} on which they are reported; choose 0 or one above {self.last_seed}"
                )


def ask(file: Path | None, overrides: Sequence[str], request: Request) -> Study:
    """A comparison from words; what was not said has its default.

    Args:
        file: the config file; None: the defaults.
        overrides: ``key=value`` for all methods and settings.
        request: the options.

    Raises:
        ConfigError: a word is wrong; the message says which and what was expected.
    """
    forbid(overrides, PLACES, "fedcmp compare")
    base = load_config(file, overrides)
    whole = (Setting(file.stem if file else "demo", base),)
    study = Study(str(file) if file else None, tuple(overrides), base, whole, parse_methods(METHODS), "")
    return again(dataclasses.replace(study, folders=folders(base)), request)


def again(study: Study, request: Request) -> Study:
    """The comparison with the options that were said now in place of its own.

    Raises:
        ConfigError: as for ``ask``.
    """
    if request.methods is not None:
        study = dataclasses.replace(study, methods=parse_methods(request.methods))
    if request.scenarios is not None:
        settings = _settings(study.config, study.overrides, request.scenarios)
        found = folders(*(setting.config for setting in settings))
        study = dataclasses.replace(study, settings=settings, folders={**found, **study.folders})
    said = {key: value for key in _NUMBERS if (value := getattr(request, key)) is not None}
    labels = [method.label for method in study.methods]
    if request.reference is None and study.reference not in labels:
        said["reference"] = "fedcmp" if "fedcmp" in labels else labels[0]
    study = dataclasses.replace(study, **said)
    study.check()
    return study


_NUMBERS = ("seeds", "budget", "extra_seeds", "rivals", "reference", "bounds", "keep_projectors")


def to_json(study: Study) -> dict[str, Any]:
    """The part of compare.json from which ``from_json`` makes the comparison again, whatever became of its files."""
    return {
        "file": study.file,
        "overrides": list(study.overrides),
        "config": to_yaml(study.config),
        "settings": [{"label": one.label, "config": to_yaml(one.config)} for one in study.settings],
        "methods": [{**one._asdict(), "overrides": list(one.overrides)} for one in study.methods],
        **{key: getattr(study, key) for key in _NUMBERS},
        "folders": dict(study.folders),
    }


def from_json(content: Mapping[str, Any], where: str) -> Study:
    """What ``to_json`` wrote.

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
                Setting(one["label"], from_yaml(one["config"], f"setting {one['label']} in {where}"))
                for one in content["settings"]
            ),
            methods=tuple(Method(one["label"], one["preset"], tuple(one["overrides"])) for one in content["methods"]),
            **{key: content[key] for key in _NUMBERS},
            folders=content.get("folders", {}),
        )
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{where} is no compare.json of fedcmp: {type(error).__name__} {error}") from error


def _settings(base: Config, overrides: Sequence[str], scenarios: str) -> tuple[Setting, ...]:
    settings = []
    for one in parse_scenarios(scenarios):
        words = [*([f"partition.scenario={one.name}"] if one.name else []), *one.overrides]
        try:
            config = load_config(Path(one.file), [*overrides, *words]) if one.file else amend(base, words)
        except ConfigError as error:
            raise ConfigError(f"--scenarios {one.label}: {error}") from error
        settings.append(Setting(one.label, config))
    return tuple(settings)
