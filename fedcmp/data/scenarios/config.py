"""The knobs of the scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fedcmp.errors import ConfigError, nearest

DEALING = ("iid", "domain", "topic")
"""Words that say how samples are dealt; a scenario has one of them, or none, which is iid."""
ADDED = ("quality", "quantity")
"""Words that may stand beside it."""
TOPICS = ("label", "source", "cluster")
DAMAGES = ("shuffled", "truncated", "template", "foreign")
SIZES = ("lognormal", "zipf")
ALPHAS = (1e-6, 1e9)
"""Beyond them a client's distribution is one topic, or that of all data, to the last bit."""
MOST_UNEQUAL = 20.0
"""Of ``sigma`` and ``s``: far beyond it, shares are outside of a float's range; long before, one client has all."""


class Scenario(NamedTuple):
    """What the words of ``partition.scenario`` ask for."""

    dealing: str
    """One of DEALING."""
    quality: bool
    quantity: bool


def parse_scenario(text: str, key: str = "partition.scenario") -> Scenario:
    """Words joined by ``+``.

    Raises:
        ConfigError: a word is unknown or stands twice, or two of them deal.

    >>> parse_scenario("topic+quality")
    Scenario(dealing='topic', quality=True, quantity=False)
    >>> parse_scenario("quantity").dealing
    'iid'
    """
    words = text.split("+")
    for word in words:
        if word not in DEALING + ADDED:
            raise ConfigError(
                f"{key}: unknown word {word!r}; {nearest(word, DEALING + ADDED)}; words are joined by +, for example "
                "topic+quality"
            )
        if words.count(word) > 1:
            raise ConfigError(f"{key}: {word} stands twice in {text!r}")
    dealing = [word for word in words if word in DEALING]
    if len(dealing) > 1:
        raise ConfigError(
            f"{key}: {' and '.join(dealing)} both say how samples are dealt; expected one of {', '.join(DEALING)}, "
            f"alone or with {' and '.join(ADDED)}, got {text!r}"
        )
    return Scenario(dealing[0] if dealing else "iid", "quality" in words, "quantity" in words)


@dataclass
class TopicConfig:
    """For `topic`: what the pictures of a client show."""

    alpha: float = 1.0
    """Concentration of the Dirichlet distribution over all topics together, from 1e-6 to 1e9: near 0 a client sees
    few topics, at 100 all see the same. Where others say 0.5 for each of 10 classes, that is 5 here."""
    by: str = "label"
    """`label` (of its domain), `source` (the domain itself) or `cluster` (k-means over the frozen tower's features)."""
    clusters: int = 20
    """For `cluster`: how many, >= 2."""

    def validate(self, prefix: str) -> None:
        if not ALPHAS[0] <= self.alpha <= ALPHAS[1]:
            raise ConfigError(
                f"{prefix}.alpha must be a number above 0, from {ALPHAS[0]:g} to {ALPHAS[1]:g}, got {self.alpha}"
            )
        if self.by not in TOPICS:
            raise ConfigError(f"{prefix}.by: unknown kind {self.by!r}; {nearest(str(self.by), TOPICS)}")
        if self.clusters < 2:
            raise ConfigError(f"{prefix}.clusters must be at least 2, got {self.clusters}")


@dataclass
class QualityConfig:
    """For `quality`: whose captions are damaged, and how."""

    clients: float = 0.5
    """Share of the clients that hold damaged captions, in [0, 1]; above 0 at least one does."""
    captions: float = 1.0
    """Share of their captions that is damaged, in [0, 1]."""
    kind: str = "shuffled"
    """`shuffled` (another caption of the same client), `truncated` (its first third), `template` (the same sentence for
    all) or `foreign` (a caption of another client)."""

    def validate(self, prefix: str) -> None:
        for key in ("clients", "captions"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{prefix}.{key} must be in [0, 1], got {getattr(self, key)}")
        if self.kind not in DAMAGES:
            raise ConfigError(f"{prefix}.kind: unknown kind {self.kind!r}; {nearest(str(self.kind), DAMAGES)}")


@dataclass
class QuantityConfig:
    """For `quantity`: how much each client has."""

    kind: str = "lognormal"
    """`lognormal` (the logarithm of a share is normal with deviation `sigma`) or `zipf` (the r-th largest share is
    proportional to r^-s)."""
    sigma: float = 1.0
    """For `lognormal`, in [0, 20]; 0: all alike."""
    s: float = 1.0
    """For `zipf`, in [0, 20]; 0: all alike."""
    min_samples: int = 32
    """No client gets fewer, >= 1."""

    def validate(self, prefix: str) -> None:
        if self.kind not in SIZES:
            raise ConfigError(f"{prefix}.kind: unknown kind {self.kind!r}; {nearest(str(self.kind), SIZES)}")
        for key in ("sigma", "s"):
            if not 0 <= getattr(self, key) <= MOST_UNEQUAL:
                raise ConfigError(f"{prefix}.{key} must be in [0, {MOST_UNEQUAL:g}], got {getattr(self, key)}")
        if self.min_samples < 1:
            raise ConfigError(f"{prefix}.min_samples must be at least 1, got {self.min_samples}")


@dataclass
class PartitionConfig:
    """How records are dealt to clients."""

    scenario: str = "domain"
    """What clients differ by, words joined by `+`: one of `iid`, `domain`, `topic` says how samples are dealt (none of
    them: iid), `quality` and `quantity` may be added, for example `topic+quality`."""
    clients: int = 8
    """Number of clients, >= 1."""
    mix: float = 0.0
    """For `domain`: share of each client's samples that is exchanged at random with the others, in [0, 1]; 1 is iid."""
    topic: TopicConfig = field(default_factory=TopicConfig)
    """For `topic`."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """For `quality`."""
    quantity: QuantityConfig = field(default_factory=QuantityConfig)
    """For `quantity`."""

    def validate(self, prefix: str = "partition") -> None:
        scenario = parse_scenario(str(self.scenario), f"{prefix}.scenario")
        if self.clients < 1:
            raise ConfigError(f"{prefix}.clients must be at least 1, got {self.clients}")
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"{prefix}.mix must be in [0, 1], got {self.mix}")
        self.topic.validate(f"{prefix}.topic")
        self.quality.validate(f"{prefix}.quality")
        self.quantity.validate(f"{prefix}.quantity")
        if scenario.quality and self.quality.kind == "foreign" and self.clients == 1:
            raise ConfigError(f"{prefix}.quality.kind=foreign needs captions of others; {prefix}.clients is 1")

    def knobs(self) -> dict[str, object]:
        """The settings that act in this scenario, nested as in the config."""
        scenario = parse_scenario(self.scenario)
        found: dict[str, object] = {"clients": self.clients}
        if scenario.dealing == "domain":
            found["mix"] = self.mix
        if scenario.dealing == "topic":
            clusters = {"clusters": self.topic.clusters} if self.topic.by == "cluster" else {}
            found["topic"] = {"alpha": self.topic.alpha, "by": self.topic.by, **clusters}
        if scenario.quality:
            found["quality"] = dict(vars(self.quality))
        if scenario.quantity:
            sizes, name = self.quantity, "s" if self.quantity.kind == "zipf" else "sigma"
            found["quantity"] = {"kind": sizes.kind, name: getattr(sizes, name), "min_samples": sizes.min_samples}
        return found
