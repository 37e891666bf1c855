"""The table of methods, and from a config to a method. A new method is one file and one row."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.checks import require_count, require_number
from fedcmp.aggregation.contribution import WEIGHTINGS
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.coordinate_wise import Mean, Median, TrimmedMean
from fedcmp.aggregation.fuse.geometric_median import GeometricMedian
from fedcmp.aggregation.fuse.guarded import Guarded
from fedcmp.aggregation.fuse.image_use import ImageUse
from fedcmp.aggregation.fuse.krum import Krum
from fedcmp.aggregation.fuse.ties import Ties
from fedcmp.aggregation.fuse.update_svd import UpdateSvd
from fedcmp.aggregation.fuse.wrappers import Clipped, Normalised
from fedcmp.aggregation.local.control_variates import ControlVariates
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.local.server_momentum import ServerMomentum
from fedcmp.aggregation.parts import Plain
from fedcmp.aggregation.server.adaptive import Adagrad, Adam, Yogi
from fedcmp.aggregation.server.fedexp import Fedexp
from fedcmp.aggregation.server.muon import Muon
from fedcmp.aggregation.server.opm import Opm
from fedcmp.aggregation.server.sgd import Momentum, Nesterov, Sgd
from fedcmp.errors import ConfigError, check_choice, nearest


@dataclass(frozen=True)
class Preset:
    """One row: a method, where it comes from, the classes of its parts, and what a comparison tunes."""

    title: str
    paper: str
    fuse: type[Any] = Mean
    _: KW_ONLY
    server: type[Any] = Sgd
    local: type[Any] = Plain
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that differ from a part's defaults, as ``fuse.tau``."""
    normalise: bool = False
    """Fuse updates per local step (FedNova)."""
    image_use: bool = False
    """Weigh clients by image use."""
    optimizer: str | None = None
    """The local optimizer (`optimizer.name`) that is part of the method; None: any."""
    tuned: tuple[str, tuple[float, ...]] | None = None
    """What is tuned beside the local learning rate: option, as ``local.mu``, and its values, the default first; None:
    what its server step says."""

    @property
    def grid(self) -> tuple[str, tuple[float, ...]]:
        """``tuned``, or that of the server step."""
        name, values = self.server.tuned
        return self.tuned or (f"server.{name}", values)


_REDDI, _YIN, _KRUM = (
    "Reddi et al., ICLR 2021, arXiv 2003.00295",
    "Yin et al., ICML 2018, arXiv 1803.01498",
    "Blanchard et al., NeurIPS 2017, arXiv 1703.02757",
)
PRESETS: dict[str, Preset] = {
    "fedcmp": Preset(
        "Fed-CMP",
        "Fed-CMP, arXiv 2603.26786 (abstract only; the definition is ours)",
        Canonical,
        server=Opm,
        image_use=True,
    ),
    "regmean": Preset(
        "RegMean",
        "Jin et al., ICLR 2023, arXiv 2212.09849",
        Canonical,
        options={"fuse.tau": 0.0, "fuse.basis": "none", "fuse.correlation": 0.9, "fuse.refit": False},
        tuned=("server.lr", (1.0, 1.5, 0.7)),
    ),
    "fedavg": Preset("FedAvg", "McMahan et al., AISTATS 2017, arXiv 1602.05629"),
    "fedavgm": Preset("FedAvgM", "Hsu, Qi, Brown 2019, arXiv 1909.06335", server=Momentum),
    "diloco": Preset("DiLoCo", "Douillard et al. 2023, arXiv 2311.08105", server=Nesterov),
    "muloco": Preset("MuLoCo", "Thérien et al. 2025, arXiv 2505.23725", server=Nesterov, optimizer="muon"),
    "fedadam": Preset("FedAdam", _REDDI, server=Adam),
    "fedyogi": Preset("FedYogi", _REDDI, server=Yogi),
    "fedadagrad": Preset("FedAdagrad", _REDDI, server=Adagrad),
    "fedprox": Preset(
        "FedProx", "Li et al., MLSys 2020, arXiv 1812.06127", local=Proximal, tuned=("local.mu", (0.01, 0.1, 1.0))
    ),
    "scaffold": Preset("SCAFFOLD", "Karimireddy et al., ICML 2020, arXiv 1910.06378", local=ControlVariates),
    "fedcm": Preset(
        "FedCM", "Xu et al. 2021, arXiv 2106.10874", local=ServerMomentum, tuned=("local.alpha", (0.1, 0.3, 0.9))
    ),
    "fednova": Preset("FedNova", "Wang et al., NeurIPS 2020, arXiv 2007.07481", normalise=True),
    "fedexp": Preset("FedExP", "Jhunjhunwala et al., ICLR 2023, arXiv 2301.09604", server=Fedexp),
    "fedmuon": Preset("FedMuon", "Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982", server=Muon),
    "ties": Preset("TIES", "Yadav et al., NeurIPS 2023, arXiv 2306.01708", Ties),
    "knots": Preset("KnOTS", "Stoica et al., ICLR 2025, arXiv 2410.19735", UpdateSvd),
    "median": Preset("Median", _YIN, Median),
    "trimmed-mean": Preset("Trimmed mean", _YIN, TrimmedMean),
    "krum": Preset("Krum", _KRUM, Krum),
    "multi-krum": Preset("Multi-Krum", _KRUM, Krum, options={"fuse.keep": 0}),
    "geometric-median": Preset("Geometric median", "Pillutla et al., IEEE TSP 2022, arXiv 1912.13445", GeometricMedian),
}
"""The methods. To add one, write its file and its row."""


def part_name(part: type[Any]) -> str:
    """A part's name in configs: that of its class, as ``update_svd``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part.__name__).lower()


def by_name(parts: Iterable[type[Any]]) -> dict[str, type[Any]]:
    """The parts by name.

    Raises:
        ConfigError: two classes have one name: a config could not tell them apart.
    """
    found: dict[str, type[Any]] = {}
    for part in parts:
        if (other := found.setdefault(part_name(part), part)) is not part:
            raise ConfigError(
                f"{part.__module__} and {other.__module__}: both have a class {part.__name__}; rename one"
            )
    return found


LOCALS, FUSES, SERVERS = (
    by_name(parts) for parts in zip(*((row.local, row.fuse, row.server) for row in PRESETS.values()), strict=True)
)


@dataclass
class AggregatorConfig:
    """How clients train and how their updates are fused. `aggregator=NAME` is short for `aggregator.name=NAME`. `fuse`,
    `server` and `local` hold options of the method's parts, as `aggregator.server.lr=0.5`; `kind` exchanges a part."""

    name: str = "fedcmp"
    """One of the [methods](methods.md)."""
    weights: str = "samples"
    """What a client's weight counts in a round: `samples`, `tokens` or `uniform`."""
    pairwise: int = 64
    """Cosines between the updates of up to this many clients are measured; 0: none."""
    clip_norm: float = 0.0
    """Longer updates of clients, over all parameters, are scaled down to this norm; 0: no limit."""
    guard: bool = False
    """Weigh clients by how far most others agree with them, and bound norms and evidence by medians (`Guarded`)."""
    image_use: bool | None = None
    """Weigh clients by [image use](method.md#reliability-by-image-use), for *sums only* methods; unset: as the row."""
    normalise: bool | None = None
    """Fuse updates per local step (FedNova); unset: as the row."""
    fuse: dict[str, Any] = field(default_factory=dict)
    """Options of the fuse (many clients to one update)."""
    server: dict[str, Any] = field(default_factory=dict)
    """Options of the server step (one update to new parameters)."""
    local: dict[str, Any] = field(default_factory=dict)
    """Options of the local step (what clients do differently in their steps)."""

    def validate(self, prefix: str = "aggregator") -> None:
        require_count(f"{prefix}.pairwise", self.pairwise, least=0)
        require_number(f"{prefix}.clip_norm", self.clip_norm, "[0, inf)")
        build_aggregator(self, prefix)


def build_aggregator(config: AggregatorConfig, prefix: str = "aggregator", momentum: float = 0.0) -> Aggregator:
    """The method that the config names.

    Args:
        prefix: how the user reaches the config; errors begin with it.
        momentum: the momentum of the clients' SGD, which decides what a local step counts (``Normalised``).

    Raises:
        ConfigError: no such method or option, an option out of its range, or parts that do not fit together.

    >>> build_aggregator(AggregatorConfig("fedavgm", server={"beta": 0.7})).server
    Momentum(lr=1.0, beta=0.7)
    """
    check_choice(f"{prefix}.name", config.name, PRESETS)
    check_choice(f"{prefix}.weights", config.weights, WEIGHTINGS)
    row = PRESETS[config.name]
    fuse = _build(FUSES, "fuse", row, config.fuse, prefix)
    server = _build(SERVERS, "server", row, config.server, prefix)
    local = _build(LOCALS, "local", row, config.local, prefix)
    fuse_kind, local_kind = (f"{prefix}.{part}" for part in (_kind("fuse", fuse), _kind("local", local)))
    if server.needs_basis and not fuse.finds_basis:
        raise ConfigError(
            f"{prefix}.{_kind('server', server)} carries its momentum by a shared basis, and {fuse_kind} finds none; "
            f"use canonical with basis=updates or evidence, or {prefix}.server.projected=false"
        )
    if not server.needs_basis:
        fuse = fuse.without_basis()
    if config.guard and not fuse.weighted:
        raise ConfigError(f"{prefix}.guard weighs clients, and {fuse_kind} counts them alike")
    if config.guard and not isinstance(local, Plain | Proximal):
        raise ConfigError(f"{prefix}.guard does not cover what clients of {local_kind} send beside their update")
    if row.image_use if config.image_use is None else config.image_use:
        if not fuse.sums_only:
            raise ConfigError(f"{prefix}.image_use weighs terms of sums, and {fuse_kind} compares single updates")
        fuse = ImageUse(fuse)
    if row.normalise if config.normalise is None else config.normalise:
        fuse = Normalised(fuse, momentum)
    if config.clip_norm:
        fuse = Clipped(fuse, config.clip_norm)
    if config.guard:
        fuse = Guarded(fuse)
    return Aggregator(fuse, server, local, config.weights, config.pairwise)


def _kind(name: str, part: Any) -> str:
    return f"{name}.kind={part_name(type(part))}"


def _build(table: Mapping[str, Any], part: str, row: Preset, options: Mapping[str, Any], prefix: str) -> Any:
    """The part of the row, or the one that ``options["kind"]`` puts in its place, with its options."""
    key, default = f"{prefix}.{part}", part_name(getattr(row, part))
    chosen = str(options.get("kind", default))
    check_choice(f"{key}.kind", chosen, table)
    given = {name.removeprefix(f"{part}."): value for name, value in row.options.items() if name.startswith(f"{part}.")}
    own = {**(given if chosen == default else {}), **{key: one for key, one in options.items() if key != "kind"}}
    known = {one.name: one.type for one in dataclasses.fields(table[chosen])}
    for option, value in own.items():
        if option not in known:
            hint = nearest(str(option), known) if known else "it has none"
            raise ConfigError(f"{key}.{option}: unknown option of {chosen}; {hint}")
        if known[option] in (bool, "bool") and not isinstance(value, bool):
            raise ConfigError(f"{key}.{option} must be true or false, got {value!r}")
    return table[chosen](**own)


def sums_only_methods() -> list[str]:
    """The methods whose server sees sums over clients only, so that they work under secure aggregation."""
    return [name for name in sorted(PRESETS) if build_aggregator(AggregatorConfig(name)).sums_only]


def describe_methods(names: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """The table of methods for people: a header, and a row of each method in ``names`` (empty: all), sorted by name.

    Raises:
        ConfigError: no such method.

    >>> describe_methods(["fedavg"])[1][0][3:]
    ['sgd', '-', 'yes', 'server.lr: 1, 2, 0.5', 'McMahan et al., AISTATS 2017, arXiv 1602.05629']
    """
    rows = []
    for name in sorted(names or PRESETS):
        method, row = build_aggregator(AggregatorConfig(name)), PRESETS[name]
        local, fuse, server = (part_name(part) for part in (row.local, row.fuse, row.server))
        fuse = f"normalised {fuse}" if row.normalise else fuse
        needs = ", ".join(sorted(method.needs)) or "-"
        sums, (option, values) = "yes" if method.sums_only else "no", row.grid
        tuned = f"{option}: {', '.join(f'{value:g}' for value in values)}"
        rows.append([name, local, fuse, server, needs, sums, tuned, row.paper])
    return ["method", "local steps", "fuse", "server", "clients record", "sums only", "tuned", "paper"], rows
