"""The table of rules: name -> (local, fuse, server) with its paper. A new rule is one file and one row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import WEIGHTINGS
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.clipped import Clipped
from fedcmp.aggregation.fuse.geometric_median import GeometricMedian
from fedcmp.aggregation.fuse.guarded import Guarded
from fedcmp.aggregation.fuse.krum import Krum
from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.fuse.median import Median
from fedcmp.aggregation.fuse.normalised import Normalised
from fedcmp.aggregation.fuse.ties import Ties
from fedcmp.aggregation.fuse.trimmed_mean import TrimmedMean
from fedcmp.aggregation.fuse.update_svd import UpdateSvd
from fedcmp.aggregation.local.control_variates import ControlVariates
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.local.server_momentum import ServerMomentum
from fedcmp.aggregation.server.adagrad import Adagrad
from fedcmp.aggregation.server.adam import Adam
from fedcmp.aggregation.server.fedexp import FedExp
from fedcmp.aggregation.server.momentum import Momentum
from fedcmp.aggregation.server.muon import Muon
from fedcmp.aggregation.server.nesterov import Nesterov
from fedcmp.aggregation.server.opm import Opm
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.aggregation.server.yogi import Yogi
from fedcmp.errors import ConfigError, nearest

LOCALS: dict[str, Any] = {
    "plain": Plain,
    "proximal": Proximal,
    "control_variates": ControlVariates,
    "server_momentum": ServerMomentum,
}
FUSES: dict[str, Any] = {
    "mean": Mean,
    "canonical": Canonical,
    "ties": Ties,
    "update_svd": UpdateSvd,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "geometric_median": GeometricMedian,
}
UNWEIGHTED = ("median", "trimmed_mean", "krum")
"""Fuses that do not ask for weights p_k."""
SERVERS: dict[str, Any] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "yogi": Yogi,
    "adagrad": Adagrad,
    "opm": Opm,
    "muon": Muon,
    "fedexp": FedExp,
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
    normalise: bool = False
    """Fuse updates per local step (FedNova)."""


PRESETS: dict[str, Preset] = {
    "fedcmp": Preset("canonical", "opm", "Fed-CMP, arXiv 2603.26786 (abstract only; the definition is ours)"),
    "regmean": Preset("canonical", "sgd", "Jin et al., ICLR 2023, arXiv 2212.09849", {"tau": 0.0, "basis": "none"}),
    "fedavg": Preset("mean", "sgd", "McMahan et al., AISTATS 2017, arXiv 1602.05629"),
    "fedavgm": Preset("mean", "momentum", "Hsu, Qi, Brown 2019, arXiv 1909.06335"),
    "diloco": Preset("mean", "nesterov", "Douillard et al. 2023, arXiv 2311.08105"),
    "fedadam": Preset("mean", "adam", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
    "fedyogi": Preset("mean", "yogi", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
    "fedadagrad": Preset("mean", "adagrad", "Reddi et al., ICLR 2021, arXiv 2003.00295"),
    "fedprox": Preset("mean", "sgd", "Li et al., MLSys 2020, arXiv 1812.06127", local="proximal"),
    "scaffold": Preset("mean", "sgd", "Karimireddy et al., ICML 2020, arXiv 1910.06378", local="control_variates"),
    "fedcm": Preset("mean", "sgd", "Xu et al. 2021, arXiv 2106.10874", local="server_momentum"),
    "fednova": Preset("mean", "sgd", "Wang et al., NeurIPS 2020, arXiv 2007.07481", normalise=True),
    "fedexp": Preset("mean", "fedexp", "Jhunjhunwala et al., ICLR 2023, arXiv 2301.09604"),
    "fedmuon": Preset("mean", "muon", "Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982"),
    "ties": Preset("ties", "sgd", "Yadav et al., NeurIPS 2023, arXiv 2306.01708"),
    "knots": Preset("update_svd", "sgd", "Stoica et al., ICLR 2025, arXiv 2410.19735"),
    "median": Preset("median", "sgd", "Yin et al., ICML 2018, arXiv 1803.01498"),
    "trimmed-mean": Preset("trimmed_mean", "sgd", "Yin et al., ICML 2018, arXiv 1803.01498"),
    "krum": Preset("krum", "sgd", "Blanchard et al., NeurIPS 2017, arXiv 1703.02757"),
    "multi-krum": Preset("krum", "sgd", "Blanchard et al., NeurIPS 2017, arXiv 1703.02757", {"keep": 0}),
    "geometric-median": Preset("geometric_median", "sgd", "Pillutla et al., IEEE TSP 2022, arXiv 1912.13445"),
}


@dataclass
class AggregatorConfig:
    """How clients train and how their updates are fused. `aggregator=NAME` is short for `aggregator.name=NAME`.

    `fuse`, `server` and `local` hold options of the method's parts that differ from its row, for example
    `aggregator.server.lr=0.5`; `rule` exchanges a part, for example `aggregator.fuse.rule=ties`.
    """

    name: str = "fedcmp"
    """A row of the table of rules (`fedcmp rules` shows it)."""
    weights: str = "samples"
    """What a client's weight counts in a round: `samples`, `tokens` or `uniform`."""
    pairwise: int = 64
    """Cosines between the updates of up to this many clients are measured each round; 0: none."""
    clip_norm: float = 0.0
    """Largest norm of a client's update, over all parameters; longer ones are scaled down to it; 0: no limit."""
    guard: bool = False
    """Weigh clients by how far most others agree with them, and bound norms and evidence by medians (`Guarded`)."""
    normalise: bool | None = None
    """Fuse updates per local step (FedNova), so that clients with more steps do not pull harder; unset: as the row."""
    fuse: dict[str, Any] = field(default_factory=dict)
    """Options of the fuse (many clients to one update)."""
    server: dict[str, Any] = field(default_factory=dict)
    """Options of the server step (one update to new parameters)."""
    local: dict[str, Any] = field(default_factory=dict)
    """Options of the local rule (what clients do differently in their steps)."""

    def validate(self, prefix: str = "aggregator") -> None:
        if self.pairwise < 0:
            raise ConfigError(f"{prefix}.pairwise must be 0 or more, got {self.pairwise}")
        if not 0 <= self.clip_norm < math.inf:
            raise ConfigError(f"{prefix}.clip_norm must be in [0, inf), got {self.clip_norm}")
        build_aggregator(self, prefix)


def build_aggregator(config: AggregatorConfig, prefix: str = "aggregator", momentum: float = 0.0) -> Aggregator:
    """The method that the config names.

    Args:
        prefix: how the user reaches the config; errors begin with it.
        momentum: the momentum of the clients' SGD, which decides what a local step counts (``Normalised``).

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
    if server.needs_basis and not fuse.finds_basis:
        raise ConfigError(
            f"{prefix}.server.rule={config.server.get('rule', row.server)} carries its momentum by a shared basis, and "
            f"{prefix}.fuse.rule={config.fuse.get('rule', row.fuse)} finds none; use canonical with basis=updates or "
            f"evidence, or {prefix}.server.projected=false"
        )
    if row.normalise if config.normalise is None else config.normalise:
        fuse = Normalised(fuse, momentum)
    if config.clip_norm:
        fuse = Clipped(fuse, config.clip_norm)
    if config.guard:
        _check_guard(config.fuse.get("rule", row.fuse), config.local.get("rule", row.local), prefix)
        fuse = Guarded(fuse)
    return Aggregator(fuse, server, local, config.weights, config.pairwise)


def _check_guard(fuse: str, local: str, prefix: str) -> None:
    """A guard acts by weights, on updates and evidence; where those do not count it would promise too much."""
    if fuse in UNWEIGHTED:
        raise ConfigError(
            f"{prefix}.guard weighs clients, and {prefix}.fuse.rule={fuse} counts them alike; leave it off"
        )
    if local not in ("plain", "proximal"):
        raise ConfigError(
            f"{prefix}.guard does not cover what clients of {prefix}.local.rule={local} send beside their update"
        )


def sums_only_rules() -> list[str]:
    """The rules whose server sees sums over clients only, so that they work under a secure sum.

    >>> "fedcmp" in sums_only_rules(), "krum" in sums_only_rules()
    (True, False)
    """
    return [name for name in sorted(PRESETS) if build_aggregator(AggregatorConfig(name)).sums_only]


def _build(
    table: Mapping[str, Any], name: str, defaults: Mapping[str, Any], options: Mapping[str, Any], prefix: str
) -> Any:
    """The part ``name`` of the row, or the one that ``options["rule"]`` puts in its place, with its options."""
    chosen = options.get("rule", name)
    if not isinstance(chosen, str) or chosen not in table:
        raise ConfigError(f"{prefix}.rule: unknown rule {chosen!r}; {nearest(str(chosen), table)}")
    own = {key: value for key, value in options.items() if key != "rule"}
    kind = table[chosen]
    known = {one.name: one.type for one in dataclasses.fields(kind)}
    for option, value in own.items():
        if option not in known:
            hint = nearest(str(option), known) if known else "it has none"
            raise ConfigError(f"{prefix}.{option}: unknown option of {chosen}; {hint}")
        if known[option] in (bool, "bool") and not isinstance(value, bool):
            raise ConfigError(f"{prefix}.{option} must be true or false, got {value!r}")
    return kind(**{**(defaults if chosen == name else {}), **own})


def describe_rules(names: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """The table of rules for people: a header, and a row of each rule in ``names`` (empty: all), sorted by name.

    Raises:
        ConfigError: no such rule.

    >>> describe_rules(["fedavg"])[1]
    [['fedavg', 'plain', 'mean', 'sgd', '-', 'yes', 'McMahan et al., AISTATS 2017, arXiv 1602.05629']]
    """
    rows = []
    for name in sorted(names or PRESETS):
        rule, row = build_aggregator(AggregatorConfig(name)), PRESETS[name]
        fuse = f"normalised {row.fuse}" if row.normalise else row.fuse
        needs = ", ".join(sorted(rule.needs)) or "-"
        rows.append([name, row.local, fuse, row.server, needs, "yes" if rule.sums_only else "no", row.paper])
    return ["rule", "local steps", "fuse", "server", "clients record", "sums only", "paper"], rows
