"""The table of rules: name -> (local, fuse, server) with its paper. A new rule is one file and one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import WEIGHTINGS
from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.server.adagrad import Adagrad
from fedcmp.aggregation.server.adam import Adam
from fedcmp.aggregation.server.momentum import Momentum
from fedcmp.aggregation.server.nesterov import Nesterov
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.aggregation.server.yogi import Yogi
from fedcmp.errors import ConfigError, nearest

LOCALS: dict[str, Any] = {"plain": Plain}
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
    local: str = "plain"
    local_options: Mapping[str, Any] = {}


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
    """How clients train and how their updates are fused. `aggregator=NAME` is short for `aggregator.name=NAME`.

    `fuse`, `server` and `local` hold options of the method's parts that differ from its row, for example
    `aggregator.server.lr=0.5`; `rule` exchanges a part, for example `aggregator.fuse.rule=ties`.
    """

    name: str = "fedavg"
    """A row of the table of rules."""
    weights: str = "samples"
    """What a client's weight counts in a round: `samples`, `tokens` or `uniform`."""
    pairwise: int = 64
    """Cosines between the updates of up to this many clients are measured each round; 0: none."""
    fuse: dict[str, Any] = field(default_factory=dict)
    """Options of the fuse (many clients to one update)."""
    server: dict[str, Any] = field(default_factory=dict)
    """Options of the server step (one update to new parameters)."""
    local: dict[str, Any] = field(default_factory=dict)
    """Options of the local rule (what clients do differently in their steps)."""

    def validate(self, prefix: str = "aggregator") -> None:
        if self.pairwise < 0:
            raise ConfigError(f"{prefix}.pairwise must be 0 or more, got {self.pairwise}")
        build_aggregator(self, prefix)


def build_aggregator(config: AggregatorConfig, prefix: str = "aggregator") -> Aggregator:
    """The method that the config names.

    Raises:
        ConfigError: no such rule or option, an option out of its range, or parts that do not fit together.

    >>> build_aggregator(AggregatorConfig("fedavgm", server={"beta": 0.7})).server
    Momentum(lr=1.0, beta=0.7)
    """
    for key, value, choices in (("name", config.name, PRESETS), ("weights", config.weights, WEIGHTINGS)):
        if value not in choices:
            what = "rule" if key == "name" else "weights"
            raise ConfigError(f"{prefix}.{key}: unknown {what} {value!r}; {nearest(str(value), choices)}")
    row = PRESETS[config.name]
    fuse = _build(FUSES, row.fuse, row.fuse_options, config.fuse, f"{prefix}.fuse")
    server = _build(SERVERS, row.server, row.server_options, config.server, f"{prefix}.server")
    local = _build(LOCALS, row.local, row.local_options, config.local, f"{prefix}.local")
    return Aggregator(fuse, server, local, config.weights, config.pairwise)


def _build(
    table: Mapping[str, Any], name: str, defaults: Mapping[str, Any], options: Mapping[str, Any], prefix: str
) -> Any:
    """The part ``name`` of the row, or the one that ``options["rule"]`` puts in its place, with its options."""
    chosen = options.get("rule", name)
    if chosen not in table:
        raise ConfigError(f"{prefix}.rule: unknown rule {chosen!r}; {nearest(str(chosen), table)}")
    own = {key: value for key, value in options.items() if key != "rule"}
    kind = table[chosen]
    known = [one.name for one in dataclasses.fields(kind)]
    for option in own:
        if option not in known:
            hint = nearest(str(option), known) if known else "it has none"
            raise ConfigError(f"{prefix}.{option}: unknown option of {chosen}; {hint}")
    return kind(**{**(defaults if chosen == name else {}), **own})
