"""The root config: YAML, dataclass defaults and ``key=value`` overrides. Each room owns its part."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.credentials import mask
from fedcmp.data.scenarios.partition import PartitionConfig
from fedcmp.data.settings import DataConfig
from fedcmp.distributed.launch import LaunchConfig
from fedcmp.errors import ConfigError, nearest
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.federation.byzantine import AttackConfig
from fedcmp.federation.fusing import check_secure
from fedcmp.federation.privacy import check_privacy
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.settings import ModelConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.plain_yaml import Plain, as_fields, check_texts, parse_yaml
from fedcmp.privacy.settings import PrivacyConfig
from fedcmp.shipped import find_config
from fedcmp.tracking.wandb import WandbConfig

T = TypeVar("T")
PARTS = ("fuse", "server", "local")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class RunConfig:
    """Name, place, seed and device of a run."""

    name: str | None = None
    """Name of the run; unset: made from data, method and a number."""
    dir: str | None = None
    """Run folder, new or empty; unset: `runs/<name>`."""
    seed: int = 0
    """All random streams derive from it."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu` or `cuda`."""

    figures: bool = True
    """Draw the split at the end."""

    def validate(self, prefix: str = "run") -> None:
        if self.device not in DEVICES:
            meant = "cuda" if self.device.lower() in ("gpu", "nvidia") else self.device
            raise ConfigError(f"{prefix}.device: unknown device {self.device!r}; {nearest(meant, DEVICES)}")
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
        check_texts(self)
        for part in dataclasses.fields(self):
            getattr(self, part.name).validate(part.name)
        needed = PRESETS[self.aggregator.name].optimizer or self.optimizer.name
        if self.optimizer.name != needed:
            method = self.aggregator.name
            raise ConfigError(
                f"optimizer.name must be {needed} with aggregator.name={method}, got {self.optimizer.name}"
            )
        if self.launch.shard_llm and "outcome" in build_aggregator(self.aggregator).needs:
            raise ConfigError(
                "launch.shard_llm keeps a part of the LLM on each rank, and one rank measures a client's outcomes; set "
                "aggregator.fuse.explore=1, without outcomes, or launch.shard_llm=false"
            )
        check_secure(self.federation, self.aggregator, self.launch.devices)
        check_privacy(self.privacy, self.aggregator, self.federation)


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the file, then the overrides; checked.

    Args:
        path: a YAML file, or the name of a shipped one (``demo/scenes``); None: defaults only.
        overrides: ``key=value``, for example ``federation.rounds=20``; ``aggregator=NAME`` is short for
            ``aggregator.name=NAME``.

    Raises:
        ConfigError: a key, name or value is wrong; the message names key, file and the nearest valid choice.
    """
    return amend(Config(), overrides) if path is None else from_yaml(read_config(path), str(path), overrides)


def read_config(path: Path) -> str:
    """The text of a config file, or of a shipped one by its name.

    Raises:
        ConfigError: there is none, or it is no text.
    """
    try:
        return find_config(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error


def from_yaml(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """As ``load_config``, for the text of a file; ``where`` is what errors call it."""
    return amend(Config(), overrides, text, where)


def amend(config: Config, overrides: Sequence[str], text: str = "", where: str = "") -> Config:
    """A config with YAML and overrides on top, checked; ``config`` itself does not change.

    Raises:
        ConfigError: as for ``load_config``.

    >>> amend(Config(), ["federation.rounds=3"]).federation.rounds
    3
    """
    place = f" (in {where} and overrides)" if where else ""
    try:
        layers = [_fields(parse_yaml(text, where), where)]
        layers += [_fields(_parse(override), f"override {override.partition('=')[0]}") for override in overrides]
        found = typing.cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), *layers)))
        try:
            found.validate()
        except ConfigError as error:
            raise ConfigError(f"{error}{_of_another(str(error), layers[0], where, found)}{place}") from error
    except OmegaConfBaseException as error:  # of references, which are resolved only now
        key, message = getattr(error, "full_key", "") or "a value", str(error).splitlines()[0]
        raise ConfigError(mask(f"{key}: {message}{place}")) from None
    except ConfigError as error:
        if mask(str(error)) == str(error):
            raise
        raise ConfigError(mask(str(error))) from None  # its cause has the secret, too
    return found


def _of_another(error: str, given: dict[str, Any], where: str, found: Config) -> str:
    """What to do about an option that a file gives its own method, where an override chose another one."""
    own = given.get("aggregator", {})
    named = any(error.startswith(f"aggregator.{part}.{one}:") for part in PARTS for one in own.get(part, {}))
    owner, method = own.get("name", AggregatorConfig.name), found.aggregator.name
    if not named or owner == method:
        return ""
    return (
        f"; {where} sets it for {owner}, not for {method}: take it out in a copy of the file, or use fedcmp compare "
        f"{where} --methods {method}, which gives it to {owner} alone"
    )


def _parse(override: str) -> Any:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is no override; expected key=value, for example federation.rounds=20")
    text = text.strip()
    value = parse_yaml(text, f"override {key}") if text[:1] in ("[", "{", "'", '"') else Plain(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _fields(values: Any, where: str) -> dict[str, Any]:
    if isinstance(values, dict) and isinstance(name := values.get("aggregator"), str):
        row = PRESETS.get(name)
        own = {"optimizer": {"name": row.optimizer}} if row and row.optimizer else {}
        values = {**own, **values, "aggregator": {"name": name}}
    return as_fields(Config, values, where)


def read_fields(kind: type[T], text: str, where: str) -> T:
    """A dataclass of settings from YAML; ``where`` is what errors call the text.

    Raises:
        ConfigError: a key is unknown, or its value has not the type of its field.
    """
    found = OmegaConf.merge(OmegaConf.structured(kind), as_fields(kind, parse_yaml(text, where), where))
    return typing.cast(T, OmegaConf.to_object(found))


def to_yaml(config: Any) -> str:
    """A config, or a dict of settings, in full, reusable as a config file."""
    return OmegaConf.to_yaml(OmegaConf.create(config), resolve=True)


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
