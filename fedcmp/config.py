"""The root config: YAML, dataclass defaults and ``key=value`` overrides. Each room owns its part."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.data.config import DataConfig
from fedcmp.data.scenarios.config import PartitionConfig
from fedcmp.distributed.launch import LaunchConfig
from fedcmp.errors import ConfigError, nearest
from fedcmp.evaluation.config import EvaluationConfig
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.hostile import AttackConfig
from fedcmp.federation.privacy import check_privacy
from fedcmp.federation.secure import check_secure
from fedcmp.models.backbones import ModelConfig
from fedcmp.module import OptimizerConfig
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.shipped import find_config
from fedcmp.tracking.wandb import WandbConfig

DEVICES = ("auto", "cpu", "cuda")


@dataclass
class RunConfig:
    """Name, place, seed and device of a run."""

    name: str | None = None
    """Name of the run; unset: made from data and method, with a number, so that no run meets another."""
    dir: str | None = None
    """Run folder; unset: `runs/<name>`. It must not exist, or be empty."""
    seed: int = 0
    """All random streams derive from it."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu` or `cuda`."""

    figures: bool = True
    """Draw the split at the start."""

    def validate(self, prefix: str = "run") -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"{prefix}.device: unknown device {self.device!r}; {nearest(self.device, DEVICES)}")
        if self.name is not None and (not self.name or "/" in self.name or self.name.startswith(".")):
            raise ConfigError(
                f"{prefix}.name must be a plain folder name, got {self.name!r}; use {prefix}.dir for a path"
            )


@dataclass
class CentralizedConfig:
    """`fedcmp centralized`: the same module and samples without a federation. `--tune` tries every pair of the grid."""

    batch_sizes: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Batch sizes of the grid; without `--tune` the first one is used."""
    lrs: list[float] = field(default_factory=lambda: [5e-3, 1e-2, 2e-2])
    """Learning rates of the grid; without `--tune` it is `optimizer.lr`."""

    def validate(self, prefix: str = "centralized") -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"{prefix}.batch_sizes must hold at least one number >= 1, got {list(self.batch_sizes)}")
        if not self.lrs or not min(self.lrs) > 0:
            raise ConfigError(f"{prefix}.lrs must hold at least one positive number, got {list(self.lrs)}")


@dataclass
class Config:
    """Everything that a run depends on. The defaults are the embedded demo."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    centralized: CentralizedConfig = field(default_factory=CentralizedConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def validate(self) -> None:
        """Checks every value; no file is opened."""
        for part in dataclasses.fields(self):
            getattr(self, part.name).validate(part.name)
        check_secure(self.federation, self.aggregator, self.launch.devices)
        check_privacy(self.privacy, build_aggregator(self.aggregator), self.federation)


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the file, then the overrides; checked.

    Args:
        path: a YAML file, or the name of a shipped one (``demo/scenes``); None: defaults only.
        overrides: ``key=value``, for example ``federation.rounds=20``; ``aggregator=NAME`` is short for
            ``aggregator.name=NAME``.

    Raises:
        ConfigError: a key, name or value is wrong; the message names key, file and the nearest valid choice.
    """
    contents = [] if path is None else [(_read(path), str(path))]
    return _merged(Config(), contents, overrides, path)


def amend(config: Config, overrides: Sequence[str]) -> Config:
    """A config with overrides on top, checked; ``config`` itself stays as it is.

    Raises:
        ConfigError: as for ``load_config``.

    >>> amend(Config(), ["federation.rounds=3"]).federation.rounds
    3
    """
    return _merged(config, [], overrides, None)


def from_yaml(text: str, where: str) -> Config:
    """What ``to_yaml`` wrote, as a config again, checked.

    Args:
        text: YAML.
        where: what errors call it.

    Raises:
        ConfigError: as for ``load_config``.
    """
    return _merged(Config(), [(_parsed(text, where), where)], [], where)


def _merged(
    base: Config, contents: Sequence[tuple[dict[str, Any], str]], overrides: Sequence[str], where: Path | str | None
) -> Config:
    try:
        merged = OmegaConf.structured(base)
        for content, name in contents:
            merged = _merge(merged, content, name)
        for override in overrides:
            merged = _merge(merged, _parse(override), f"override {override}")
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', '') or where}: {_first_line(error)}") from error
    try:
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{error}" + (f" (in {where} and overrides)" if where else "")) from error
    return config


def to_yaml(config: Config) -> str:
    """The config in full, reusable as a config file."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def to_dict(config: Config) -> dict[str, Any]:
    """The config in full, as plain containers."""
    return dataclasses.asdict(config)


def differences(one: Config, other: Config) -> list[str]:
    """``key: one value -> other value`` for every key in which two configs differ.

    >>> differences(Config(), load_config(None, ["federation.rounds=3"]))
    ['federation.rounds: 12 -> 3']
    """
    left, right = _flat(to_dict(one)), _flat(to_dict(other))
    keys = sorted(left.keys() | right.keys())
    return [f"{key}: {left.get(key)} -> {right.get(key)}" for key in keys if left.get(key) != right.get(key)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: one for name, part in value.items() for key, one in _flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        text = find_config(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys and values, got {type(content).__name__}")
    return content


def _parse(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{override!r} is no override; expected key=value, for example federation.rounds=20")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override}: the value cannot be read as YAML: {error}") from error
    if isinstance(value, str):
        value = _number(value)
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def _number(text: str) -> str | float:
    """YAML reads ``1e-3`` as text; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _merge(base: Any, content: dict[str, Any], where: str) -> Any:
    content = _numbers(content)
    if isinstance(content.get("aggregator"), str):
        content = {**content, "aggregator": {"name": content["aggregator"]}}
    _check_keys(Config, content, "", where)
    try:
        return OmegaConf.merge(base, content)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {getattr(error, 'full_key', None) or 'value'}: {_first_line(error)}") from error


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    looks = isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower()
    return _number(value) if looks else value


def _check_keys(kind: type, content: Mapping[Any, Any], prefix: str, where: str) -> None:
    hints = typing.get_type_hints(kind)
    known = {one.name: hints[one.name] for one in dataclasses.fields(kind)}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ConfigError(f"{where}: unknown key `{name}`; {nearest(str(key), known)}")
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: `{name}` holds keys of its own, got {value!r}")
            _check_keys(typing.cast(type, known[key]), value, f"{name}.", where)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
