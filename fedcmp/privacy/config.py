"""The settings of differential privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedcmp.errors import ConfigError, nearest

KINDS = ("none", "central", "distributed")
ACCOUNTANTS = ("pld", "rdp")
STREAMS = ("seeded", "system")
LEAST_NOISE = 1e-6
"""Of a noise multiplier: with less, epsilon is a number with more than a dozen digits."""


@dataclass
class PrivacyConfig:
    """Differential privacy of clients, see [the page about it](differential_privacy.md).

    `privacy.kind=central privacy.epsilon=8` is enough for rules that average, with `aggregator.weights=uniform` and
    `aggregator.pairwise=0`.
    """

    kind: str = "none"
    """Who adds the noise: `none` (nobody: no privacy), `central` (the server, to each sum) or `distributed` (each
    client its share, before the sum)."""
    clip: float = 1.0
    """Largest Euclidean norm of a client's update, over all parameters; longer ones are scaled down to it. With
    `quantile`: where it starts."""
    noise: float = 0.0
    """Noise multiplier of a round: standard deviation over sensitivity of all that is released in it together; 0: the
    least that keeps the whole plan within `epsilon`."""
    epsilon: float = 0.0
    """Budget of the run: it stops before the round that would exceed it; 0: none, for which `noise` must be set."""
    delta: float = 1e-5
    """The delta of (epsilon, delta), in (0, 1): well below one over the number of clients."""
    accountant: str = "pld"
    """How rounds add up: `pld` (privacy loss distributions, tight) or `rdp` (Renyi, an upper bound, quicker)."""
    honest: int = 0
    """With `distributed`: how many clients of a round surely add their share; 0: all, and a round in which one is
    missing ends the run."""
    stream: str = "seeded"
    """Where noise comes from: `seeded` (from `run.seed`: a simulation, since who knows the seed can take the noise
    away) or `system` (the operating system's random bytes: no run is repeated; `central` only)."""
    quantile: float = 0.0
    """Adapt `clip` from round to round to this quantile of the clients' norms, in (0, 1); 0: `clip` stays."""
    quantile_rate: float = 0.2
    """How quickly `clip` follows the quantile, > 0: the exponent of a round in which all norms are above or below."""
    evidence_clip: float = 0.0
    """Largest Euclidean norm of a client's evidence, over all layers; needed by rules that record evidence."""
    shares: dict[str, float] = field(default_factory=dict)
    """Shares of a round's budget for the parts of what is released in it, where they differ from the rule's; they are
    brought to sum 1."""

    @property
    def on(self) -> bool:
        """Whether anything is protected."""
        return self.kind != "none"

    def validate(self, prefix: str = "privacy") -> None:
        for key, choices in (("kind", KINDS), ("accountant", ACCOUNTANTS), ("stream", STREAMS)):
            value = getattr(self, key)
            if value not in choices:
                raise ConfigError(f"{prefix}.{key}: unknown word {value!r}; {nearest(str(value), choices)}")
        for key in ("clip", "quantile_rate"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{prefix}.{key} must be in (0, inf), got {getattr(self, key)}")
        for key in ("noise", "epsilon", "evidence_clip", "honest"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError(f"{prefix}.{key} must be in [0, inf), got {getattr(self, key)}")
        if 0 < self.noise < LEAST_NOISE:
            raise ConfigError(f"{prefix}.noise must be 0 (solved for) or at least {LEAST_NOISE}, got {self.noise}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"{prefix}.delta must be in (0, 1), got {self.delta}")
        if not 0 <= self.quantile < 1:
            raise ConfigError(f"{prefix}.quantile must be 0 (off) or in (0, 1), got {self.quantile}")
        for name, share in self.shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
                raise ConfigError(f"{prefix}.shares.{name} must be in (0, inf), got {share!r}")
        if self.on and not self.noise and not self.epsilon:
            raise ConfigError(f"{prefix}.kind={self.kind} needs {prefix}.epsilon (a budget) or {prefix}.noise")
        if self.kind == "distributed" and self.stream == "system":
            raise ConfigError(
                f"{prefix}.stream=system draws noise at the server, and {prefix}.kind=distributed does not: use seeded"
            )
        if self.honest and self.kind != "distributed":
            raise ConfigError(f"{prefix}.honest is for {prefix}.kind=distributed, and it is {self.kind}")
