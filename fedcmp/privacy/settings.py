"""The settings of differential privacy, and the methods that it works with: those whose server sees one mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.parts import Plain
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.aggregation.server.fedexp import Fedexp
from fedcmp.errors import ConfigError, check_choice

KINDS = ("none", "central", "distributed")
ACCOUNTANTS = ("pld", "rdp")
STREAMS = ("seeded", "system")
SMALLEST_NOISE = 1e-6
"""Of a noise multiplier: with less, epsilon is a number with more than a dozen digits."""


@dataclass
class PrivacyConfig:
    """Differential privacy of clients ([page](privacy.md))."""

    kind: str = "none"
    """Who adds the noise: `none` (no noise, no privacy), `central` (the server, to the sum) or `distributed` (each
    client its share, before the sum)."""
    clip: float = 1.0
    """Longer updates, over all parameters, are scaled down to this norm. With `quantile`: the bound of the first
    round."""
    noise: float = 0.0
    """Noise multiplier of a round: standard deviation over sensitivity of all that it releases; 0: the least that keeps
    the whole plan within `epsilon`."""
    epsilon: float = 0.0
    """Budget of the run, which stops before the round that would exceed it; 0: none (set `noise`)."""
    delta: float = 1e-5
    """The delta of (epsilon, delta), in (0, 1): well below one over the number of clients."""
    accountant: str = "pld"
    """How rounds add up: `pld` (privacy loss distributions, tight) or `rdp` (Renyi, an upper bound, quicker)."""
    honest: int = 0
    """With `distributed`: how many clients of a round surely add their share; 0: all."""
    stream: str = "seeded"
    """Where noise comes from: `seeded` (from `run.seed`: a simulation) or `system` (the operating system; `central`
    only)."""
    quantile: float = 0.0
    """Adapt `clip` from round to round to this quantile of the clients' norms, in (0, 1); 0: `clip` is constant."""
    quantile_rate: float = 0.2
    """How quickly `clip` follows the quantile, > 0."""

    @property
    def on(self) -> bool:
        """Whether clients are protected."""
        return self.kind != "none"

    def validate(self, prefix: str = "privacy") -> None:
        for key, choices in (("kind", KINDS), ("accountant", ACCOUNTANTS), ("stream", STREAMS)):
            check_choice(f"{prefix}.{key}", getattr(self, key), choices)
        for key, fits, range_ in (
            ("clip", 0 < self.clip < math.inf, "in (0, inf)"),
            ("quantile_rate", 0 < self.quantile_rate < math.inf, "in (0, inf)"),
            ("noise", self.noise == 0 or SMALLEST_NOISE <= self.noise < math.inf, f"0 or at least {SMALLEST_NOISE}"),
            ("epsilon", 0 <= self.epsilon < math.inf, "in [0, inf)"),
            ("honest", self.honest >= 0, "at least 0"),
            ("delta", 0 < self.delta < 1, "in (0, 1)"),
            ("quantile", 0 <= self.quantile < 1, "0 (off) or in (0, 1)"),
        ):
            if not fits:
                raise ConfigError(f"{prefix}.{key} must be {range_}, got {getattr(self, key)}")
        if self.on and not self.noise and not self.epsilon:
            raise ConfigError(f"{prefix}.kind={self.kind} needs {prefix}.epsilon (a budget) or {prefix}.noise")
        if self.kind == "distributed" and self.stream == "system":
            raise ConfigError(f"{prefix}.stream must be seeded with {prefix}.kind=distributed: system is the server's")
        if self.honest and self.kind != "distributed":
            raise ConfigError(f"{prefix}.honest is for {prefix}.kind=distributed, and it is {self.kind}")


def sends_one_mean(method: Aggregator) -> bool:
    """Whether the mean of the clients' deltas is all that the server needs. Classes derived from ``Mean`` are not
    known to, nor are wrappers around it and local steps that send a message."""
    one_sum = type(method.fuse) is Mean and type(method.local) in (Plain, Proximal)
    return one_sum and not isinstance(method.server, Fedexp)  # it reads the mean square of the deltas, too


def private_methods() -> list[str]:
    """The methods that can be private, sorted.

    >>> "fedavg" in private_methods(), "fedcmp" in private_methods()
    (True, False)
    """
    return [name for name in sorted(PRESETS) if sends_one_mean(build_aggregator(AggregatorConfig(name)))]


def obstacles(config: AggregatorConfig) -> list[str]:
    """Why clients cannot be protected with these settings, one reason each; empty: they can."""
    found = []
    if not sends_one_mean(build_aggregator(config)):
        found.append(
            f"aggregator.name={config.name} with its options sends more than one mean: choose one of "
            f"{', '.join(private_methods())}, without other parts, clip_norm, guard, image_use or normalise"
        )
    if config.weights != "uniform":
        found.append("aggregator.weights must be uniform: other weights depend on the data")
    if config.pairwise:
        found.append("aggregator.pairwise must be 0: cosines are measured from single updates")
    return found
