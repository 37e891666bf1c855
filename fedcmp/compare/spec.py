"""What a comparison compares: methods, settings, seeds, budget. Checked before anything runs.

    --methods    [label=]PRESET[:key=value]*[,...]
    --scenarios  [label=](SCENARIO | FILE)[:key=value]*[,...]

Commas separate entries, colons the parts of an entry. Inside quotes ('...' or "...") and brackets ([...], {...}, (...))
both are ordinary letters: ``domain:data.domains=[icons,xray]``, ``'a, b'=fedavg``. Values are YAML, as in overrides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.aggregation.presets import PRESETS
from fedcmp.compare.identity import folders
from fedcmp.config import Config, amend, from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError, RunFolderError, check_choice, nearest
from fedcmp.optimizer import OPTIMIZERS
from fedcmp.report.comparison.results import BOUNDS

METHODS = "fedavg,fedadam,fedcmp"
PLACES = ("run.dir", "run.name")
"""Keys that the comparison sets for each run."""
SHARED = (*PLACES, "run.seed", "run.device", "wandb", "launch")
"""Keys that no method or setting has of its own."""


class Method(NamedTuple):
    """A method that is compared."""

    label: str
    preset: str
    """A row of the table of methods."""
    overrides: tuple[str, ...]


class Setting(NamedTuple):
    """One split of one set of data among clients, in which all methods are compared."""

    label: str
    config: Config
    """Resolved; of its ``aggregator``, options count for the methods of its own name only."""
    name: str = ""
    """The scenario or file that was asked for; empty: CONFIG unchanged."""
    overrides: tuple[str, ...] = ()
    """Of this setting, beside those of all."""


class Request(NamedTuple):
    """The options of a command line; None: not given."""

    methods: str | None = None
    scenarios: str | None = None
    optimizers: str | None = None
    seeds: int | None = None
    budget: int | None = None
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
    """Tuning runs of every method in every setting; 1: none, the config's own values."""
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
        """Tuning runs of a method in a setting, over all optimizers."""
        return self.budget * (1 + len(self.optimizers))

    @property
    def last_seed(self) -> int:
        """The last seed of any method."""
        return max(self.seeds, self.extra_seeds)

    def check(self) -> None:
        """Whether the numbers fit together.

        Raises:
            ConfigError: they do not.
        """
        for name in ("seeds", "budget", "rivals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.extra_seeds and self.extra_seeds < self.seeds:
            raise ConfigError(f"--extra-seeds must be at least --seeds {self.seeds}, got {self.extra_seeds}")
        labels = [method.label for method in self.methods]
        if self.reference not in labels:
            raise ConfigError(f"--reference: no method {self.reference!r}; {nearest(self.reference, labels)}")
        for name, _ in self.optimizers:
            if name == self.config.optimizer.name:
                raise ConfigError(f"--optimizers: {name} is optimizer.name of all runs; name another one")
        for setting in self.settings:
            if 1 <= setting.config.run.seed <= self.last_seed and self.tuned > 1:
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
    _forbid(overrides, PLACES, "fedcmp compare")
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
        _forbid(overrides, PLACES, "fedcmp compare")
        own = [override for override in overrides if not _sets(override, SHARED)]
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
        changes["settings"] = _parse_settings(study, request.scenarios)
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
                    one.get("name", ""),
                    tuple(one.get("overrides", ())),
                )
                for one in content["settings"]
            ),
            methods=tuple(Method(one["label"], one["preset"], tuple(one["overrides"])) for one in content["methods"]),
            **{key: content[key] for key in OPTIONS},
            optimizers=tuple((name, lr) for name, lr in content.get("optimizers", ())),
            folders=content.get("folders", {}),
        )
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{where} is no compare.json of fedcmp: {type(error).__name__} {error}") from error


def parse_methods(text: str) -> tuple[Method, ...]:
    """The methods of ``--methods``.

    Raises:
        ConfigError: no such preset, a label twice, or an entry that cannot be read.

    >>> parse_methods("fedavg,slow=fedcmp:aggregator.server.lr=0.5:optimizer.lr=1e-3")[1]
    Method(label='slow', preset='fedcmp', overrides=('aggregator.server.lr=0.5', 'optimizer.lr=1e-3'))
    >>> parse_methods("fedcmp:aggregator.fuse.tau=0")[0].label
    'fedcmp fuse.tau=0'
    """
    methods = tuple(Method(*entry) for entry in _entries(text, "--methods", "aggregator."))
    for label, preset, _ in methods:
        if preset not in PRESETS:
            raise ConfigError(f"--methods: unknown method {preset!r}; {nearest(preset, PRESETS)}")
        if label in BOUNDS:
            raise ConfigError(f"--methods: the label {label!r} is taken by a bound; choose another")
    return methods


def parse_optimizers(text: str) -> tuple[tuple[str, float], ...]:
    """The optimizers of ``--optimizers``.

    Raises:
        ConfigError: no such optimizer, or no learning rate.

    >>> parse_optimizers("muon=0.04")
    (('muon', 0.04),)
    """
    found = []
    for entry in filter(None, text.split(",")):
        name, _, rate = entry.partition("=")
        check_choice("--optimizers", name, OPTIMIZERS)
        try:
            lr = float(rate)
        except ValueError:
            lr = 0.0
        if not 0 < lr < math.inf:
            raise ConfigError(f"--optimizers {entry}: expected NAME=LR with a learning rate above 0")
        found.append((name, lr))
    return tuple(found)


def _parse_settings(study: Study, text: str) -> tuple[Setting, ...]:
    """The settings of ``--scenarios``; a file takes the place of the comparison's own, the overrides remain."""
    settings = []
    for label, name, words in _entries(text, "--scenarios", "partition."):
        try:
            if _is_file(name):
                config = load_config(Path(name), [*study.overrides, *words])
            else:
                config = amend(study.config, [f"partition.scenario={name}", *words])
        except ConfigError as error:
            raise ConfigError(f"--scenarios {label}: {error}") from error
        settings.append(Setting(label, config, name, words))
    return tuple(settings)


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml")) or Path(name).is_file()


def _entries(text: str, option: str, prefix: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Label, name and overrides of each entry; a label that is not given is the others, without ``prefix``."""
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for entry in split(text, ","):
        head, *overrides = split(entry, ":")
        names = [name.strip() for name in split(head, "=")]
        names = [name[1:-1].strip() if name[:1] in ("'", '"') and name[-1] == name[0] else name for name in names]
        if len(names) > 2 or not all(names) or not all("=" in one[1:] for one in overrides):
            raise ConfigError(f"{option} {entry.strip()!r}: expected [label=]NAME[:key=value]*")
        _forbid(overrides, SHARED, f"{option} {entry.strip()}")
        stem = Path(names[-1]).stem if option == "--scenarios" and _is_file(names[-1]) else names[-1]
        own = " ".join([stem, *(override.removeprefix(prefix) for override in overrides)])
        label = names[0] if len(names) == 2 else own
        if label in found:
            raise ConfigError(f"{option}: {label!r} is there twice; give one another label: label={label}")
        found[label] = label, names[-1], tuple(overrides)
    return list(found.values())


def split(text: str, at: str) -> list[str]:
    """Splits a text at a character, but not inside quotes and brackets.

    Raises:
        ConfigError: a quote or bracket is not closed.

    >>> split("a,b=[1,2],'c,d'", ",")
    ['a', 'b=[1,2]', "'c,d'"]
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == at and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if quote or depth:
        raise ConfigError(f"{text!r}: a quote or bracket is not closed")
    return parts


def _sets(override: str, keys: Sequence[str]) -> bool:
    return any(f"{override.partition('=')[0]}.".startswith(f"{kept}.") for kept in keys)


def _forbid(overrides: Sequence[str], keys: Sequence[str], where: str) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if _sets(override, keys):
            instead = "use --out" if key in PLACES else "set it beside CONFIG, for all methods and settings"
            raise ConfigError(f"{where}: {key} cannot be set here; {instead}")
