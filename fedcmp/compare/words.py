"""The words after ``--methods`` and ``--scenarios``, and what they mean.

    --methods    [label=]PRESET[:key=value]*[,...]
    --scenarios  [label=](SCENARIO | FILE)[:key=value]*[,...]

Commas part the words, colons the parts of a word. Inside quotes ('...' or "...") and brackets ([...], {...}, (...))
both are ordinary letters, so that values may hold them: ``domain:data.domains=[icons,xray]``, ``'a, b'=fedavg``. Values
are read as overrides are, that is, as YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedcmp.aggregation.presets import PRESETS
from fedcmp.errors import ConfigError, nearest

BOUNDS = ("centralized", "local")
"""Upper and lower bound: their names are taken."""
PLACES = ("run.dir", "run.name")
"""What the comparison decides for each run."""
ALIKE = (*PLACES, "run.seed", "run.device", "wandb", "launch")
"""What no method or setting has of its own."""


class Method(NamedTuple):
    """A method that is compared."""

    label: str
    preset: str
    """A row of the table of methods."""
    overrides: tuple[str, ...]


class Scenario(NamedTuple):
    """A setting in which methods are compared, as asked for."""

    label: str
    name: str | None
    """A value of ``partition.scenario``; None: that of the file."""
    file: str | None
    """A config file in place of the comparison's; None: that one."""
    overrides: tuple[str, ...]


def parse_methods(text: str) -> tuple[Method, ...]:
    """The methods of a ``--methods``.

    Raises:
        ConfigError: no such preset, a label twice, or words that cannot be read.

    >>> parse_methods("fedavg,slow=fedcmp:aggregator.server.lr=0.5:optimizer.lr=1e-3")[1]
    Method(label='slow', preset='fedcmp', overrides=('aggregator.server.lr=0.5', 'optimizer.lr=1e-3'))
    >>> parse_methods("fedcmp:aggregator.fuse.tau=0")[0].label
    'fedcmp fuse.tau=0'
    """
    methods = []
    for word in _words(text, "--methods"):
        label, preset, overrides = _parts(word, "--methods")
        if preset not in PRESETS:
            bound = "; centralized and local are run beside the methods anyway" if preset in BOUNDS else ""
            raise ConfigError(f"--methods {word}: unknown method {preset!r}; {nearest(preset, PRESETS)}{bound}")
        label = label or _label(preset, overrides, "aggregator.")
        if label in BOUNDS:
            raise ConfigError(f"--methods {word}: the label {label!r} is that of a bound; choose another")
        methods.append(Method(label, preset, overrides))
    _differ([one.label for one in methods], "--methods")
    return tuple(methods)


def parse_scenarios(text: str) -> tuple[Scenario, ...]:
    """The settings of a ``--scenarios``; whether a scenario exists, its config says when it is loaded.

    Raises:
        ConfigError: a label twice, or words that cannot be read.

    >>> parse_scenarios("domain+quality:partition.clients=4")[0]
    Scenario(label='domain+quality clients=4', name='domain+quality', file=None, overrides=('partition.clients=4',))
    >>> parse_scenarios("configs/scenarios/topic.yaml")[0]
    Scenario(label='topic', name=None, file='configs/scenarios/topic.yaml', overrides=())
    """
    scenarios = []
    for word in _words(text, "--scenarios"):
        label, head, overrides = _parts(word, "--scenarios")
        is_file = "/" in head or head.endswith((".yaml", ".yml")) or Path(head).is_file()
        label = label or _label(Path(head).stem if is_file else head, overrides, "partition.")
        scenarios.append(Scenario(label, None if is_file else head, head if is_file else None, overrides))
    _differ([one.label for one in scenarios], "--scenarios")
    return tuple(scenarios)


def forbid(overrides: Sequence[str], keys: Sequence[str], where: str) -> None:
    """Refuses overrides of keys, or of what is under them.

    Raises:
        ConfigError: there is one; the message says what to use.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if any(f"{key}.".startswith(f"{kept}.") for kept in keys):
            instead = {
                "run.seed": "methods are reported on --seeds and tuned on the run.seed beside CONFIG",
                "run.dir": "use --out",
                "run.name": "use --out",
            }.get(key, "say it beside CONFIG, for all methods and settings alike")
            raise ConfigError(f"{where}: {key} cannot be set here; {instead}")


def split(text: str, at: str) -> list[str]:
    """Parts a text at a character that stands outside quotes and brackets.

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
        raise ConfigError(f"{text!r}: a quote or bracket has no partner")
    return parts


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in split(text, ",")]
    if not all(words):
        raise ConfigError(f"{option} {text!r}: a word between commas is empty")
    return words


def _parts(word: str, option: str) -> tuple[str | None, str, tuple[str, ...]]:
    """Label, head and overrides of one word."""
    whole, *overrides = split(word, ":")
    names = [_unquoted(name) for name in split(whole, "=")]
    if len(names) > 2 or not all(names):
        raise ConfigError(f"{option} {word}: expected [label=]NAME[:key=value]*, got {whole!r} before the first colon")
    for override in overrides:
        if not override.partition("=")[0].strip() or "=" not in override:
            raise ConfigError(f"{option} {word}: {override!r} is no key=value; quote values that hold a colon or comma")
    forbid(overrides, ALIKE, f"{option} {word}")
    return names[0] if len(names) == 2 else None, names[-1], tuple(overrides)


def _unquoted(name: str) -> str:
    clean = name.strip()
    return clean[1:-1].strip() if len(clean) > 1 and clean[0] == clean[-1] and clean[0] in "'\"" else clean


def _label(head: str, overrides: Sequence[str], prefix: str) -> str:
    return " ".join([head, *(override.removeprefix(prefix) for override in overrides)])


def _differ(labels: Sequence[str], option: str) -> None:
    twice = [label for number, label in enumerate(labels) if label in labels[:number]]
    if twice:
        raise ConfigError(f"{option}: {twice[0]!r} is there twice; give one a label of its own: label={twice[0]}")
