"""The words of ``--methods``, ``--scenarios`` and ``--optimizers``.

    --methods    [label=]PRESET[:key=value]*[,...]
    --scenarios  [label=](SCENARIO | FILE)[:key=value]*[,...]
    --optimizers NAME=LR[,...]

Commas separate entries, colons the parts of an entry. Inside quotes ('...' or "...") and brackets ([...], {...}, (...))
both are ordinary letters: ``domain:data.domains=[icons,xray]``, ``'a, b'=fedavg``. Values are YAML, as in overrides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedcmp.aggregation.presets import PRESETS
from fedcmp.config import Config, amend, load_config
from fedcmp.errors import ConfigError, check_choice, nearest
from fedcmp.optimizer import OPTIMIZERS
from fedcmp.report.comparison.results import BOUNDS

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


def parse_settings(text: str, base: Config, overrides: Sequence[str]) -> tuple[Setting, ...]:
    """The settings of ``--scenarios``.

    Args:
        text: the words.
        base: the config of the comparison; a file takes its place.
        overrides: of the comparison, which a file gets, too.

    Raises:
        ConfigError: an entry or its config is wrong, or a label is there twice.
    """
    settings = []
    for label, name, words in _entries(text, "--scenarios", "partition."):
        try:
            if _is_file(name):
                config = load_config(Path(name), [*overrides, *words])
            else:
                config = amend(base, [f"partition.scenario={name}", *words])
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
        forbid(overrides, SHARED, f"{option} {entry.strip()}")
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


def sets(override: str, keys: Sequence[str]) -> bool:
    """Whether an override sets one of the keys, or a key below one."""
    return any(f"{override.partition('=')[0]}.".startswith(f"{kept}.") for kept in keys)


def forbid(overrides: Sequence[str], keys: Sequence[str], where: str) -> None:
    """Refuses overrides that set one of the keys; ``where`` names the words they are in.

    Raises:
        ConfigError: one does.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if sets(override, keys):
            instead = "use --out" if key in PLACES else "set it beside CONFIG, for all methods and settings"
            raise ConfigError(f"{where}: {key} cannot be set here; {instead}")
