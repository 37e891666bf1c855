"""The table of rules: name -> (fuse, server) with its paper. A new rule is one file and one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedcmp.aggregation.base import Aggregator
from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.server.adagrad import Adagrad
from fedcmp.aggregation.server.adam import Adam
from fedcmp.aggregation.server.momentum import Momentum
from fedcmp.aggregation.server.nesterov import Nesterov
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.aggregation.server.yogi import Yogi
from fedcmp.errors import ConfigError, nearest

FUSES: dict[str, Any] = {"mean": Mean}
SERVERS: dict[str, Any] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "yogi": Yogi,
    "adagrad": Adagrad,
}


class Preset(NamedTuple):
    """One row: which parts a method is made of, and where it comes from."""

    fuse: str
    server: str
    paper: str
    fuse_options: Mapping[str, Any] = {}
    server_options: Mapping[str, Any] = {}


PRESETS: dict[str, Preset] = {
    "fedavg": Preset("mean", "sgd", "McMahan et al., AISTATS 2017, arXiv 1602.05629"),
    "fedavgm": Preset("mean", "momentum", "Hsu, Qi, Brown 2019, arXiv 1909.06335"),
    "diloco": Preset("mean", "nesterov", "Douillard et al. 2023, arXiv 2311.08105"),
    "fedadam": Preset("mean", "adam", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
    "fedyogi": Preset("mean", "yogi", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
    "fedadagrad": Preset("mean", "adagrad", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
}


@dataclass
class AggregatorConfig:
    """Which rule fuses the clients' updates. `aggregator=NAME` is short for `aggregator.name=NAME`."""

    name: str = "fedavg"
    """A row of the table of rules."""
    fuse: dict[str, Any] = field(default_factory=dict)
    """Options of the rule's fuse that differ from its defaults."""
    server: dict[str, Any] = field(default_factory=dict)
    """Options of the rule's server step that differ from its defaults, for example `aggregator.server.lr=0.5`."""

    def validate(self, prefix: str = "aggregator") -> None:
        build_aggregator(self, prefix)


def build_aggregator(config: AggregatorConfig, prefix: str = "aggregator") -> Aggregator:
    """The rule that the config names.

    Raises:
        ConfigError: no such rule or option, or an option out of its range.

    >>> build_aggregator(AggregatorConfig("fedavgm", server={"beta": 0.7})).server
    Momentum(lr=1.0, beta=0.7)
    """
    if config.name not in PRESETS:
        raise ConfigError(f"{prefix}.name: unknown rule {config.name!r}; {nearest(str(config.name), PRESETS)}")
    row = PRESETS[config.name]
    fuse = _build(FUSES[row.fuse], {**row.fuse_options, **config.fuse}, f"{prefix}.fuse", row.fuse)
    server = _build(SERVERS[row.server], {**row.server_options, **config.server}, f"{prefix}.server", row.server)
    return Aggregator(fuse, server)


def _build(kind: Any, options: Mapping[str, Any], prefix: str, name: str) -> Any:
    known = [one.name for one in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            hint = nearest(str(option), known) if known else "it has none"
            raise ConfigError(f"{prefix}.{option}: unknown option of {name}; {hint}")
    return kind(**options)
