"""The knobs of the scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedcmp.errors import ConfigError, nearest

SPLIT_BY = ("iid", "domain", "topic")
"""Words that say how samples are assigned; a scenario has one of them, or none, which is iid."""
ADDED = ("quality", "quantity")
"""Words that may stand beside it."""
CLIENTS = ("domains", "given")
NUM_CLIENTS = 8
"""Where nothing says how many."""
TOPICS = ("label", "source", "cluster")
CORRUPTIONS = ("shuffled", "truncated", "template", "foreign")
SIZES = ("lognormal", "zipf")
ALPHAS = (1e-6, 1e9)
"""Beyond them a client's distribution is one topic, or that of all data, to the last bit."""
MOST_UNEQUAL = 20.0
"""Of ``sigma`` and ``s``: far beyond it, shares are outside of a float's range; long before, one client has all."""


class Scenario(NamedTuple):
    """What the words of ``partition.scenario`` ask for."""

    split_by: str
    """One of SPLIT_BY."""
    quality: bool
    quantity: bool


def parse_scenario(text: str, key: str = "partition.scenario") -> Scenario:
    """Words joined by ``+``.

    Raises:
        ConfigError: a word is unknown or stands twice, or two of them assign.

    >>> parse_scenario("topic+quality")
    Scenario(split_by='topic', quality=True, quantity=False)
    >>> parse_scenario("quantity").split_by
    'iid'
    """
    words = text.split("+")
    for word in words:
        if word not in SPLIT_BY + ADDED:
            raise ConfigError(
                f"{key}: unknown word {word!r}; {nearest(word, SPLIT_BY + ADDED)}; words are joined by +, for example "
                "topic+quality"
            )
        if words.count(word) > 1:
            raise ConfigError(f"{key}: {word} stands twice in {text!r}")
    split_by = [word for word in words if word in SPLIT_BY]
    if len(split_by) > 1:
        raise ConfigError(
            f"{key}: {' and '.join(split_by)} both partition the samples; expected one of {', '.join(SPLIT_BY)}, "
            f"alone or with {' and '.join(ADDED)}, got {text!r}"
        )
    return Scenario(split_by[0] if split_by else "iid", "quality" in words, "quantity" in words)


def check_names(names: Sequence[object], key: str) -> None:
    """Names are printable texts, none empty, none twice.

    Raises:
        ConfigError: one is not; the message has ``key``.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ConfigError(f"{key}: a name must be a printable text that is not empty, got {name!r}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ConfigError(f"{key}: the name {twice[0]!r} is used twice")


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
    """For `quality`: whose captions are corrupted, and how."""

    clients: float = 0.5
    """Share of the clients that hold corrupted captions, in [0, 1]; above 0 at least one does."""
    captions: float = 1.0
    """Share of their captions that is corrupted, in [0, 1]."""
    kind: str = "shuffled"
    """`shuffled` (another caption of the same client), `truncated` (its first third), `template` (the same sentence for
    all) or `foreign` (a caption of another client)."""

    def validate(self, prefix: str) -> None:
        for key in ("clients", "captions"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{prefix}.{key} must be in [0, 1], got {getattr(self, key)}")
        if self.kind not in CORRUPTIONS:
            raise ConfigError(f"{prefix}.kind: unknown kind {self.kind!r}; {nearest(str(self.kind), CORRUPTIONS)}")


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
    """How records are assigned to clients."""

    scenario: str = "domain"
    """What clients differ by, words joined by `+`: one of `iid`, `domain`, `topic` partitions the samples (none of
    them: iid), `quality` and `quantity` may be added, for example `topic+quality`."""
    clients: Any = None
    """How many, >= 1. Or, for `domain`: `domains`, a client for each domain; `given`, a client for each name in the
    field `client` of the records; or a map of names to domains, as in `{north: [xray, ct], south: [photos]}`. Unset:
    `domains` for `domain`, else 8."""
    mix: float = 0.0
    """For `domain`: share of each client's samples that is exchanged at random with the others, in [0, 1]; 1 is iid."""
    topic: TopicConfig = field(default_factory=TopicConfig)
    """For `topic`."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """For `quality`."""
    quantity: QuantityConfig = field(default_factory=QuantityConfig)
    """For `quantity`."""

    def __post_init__(self) -> None:
        if isinstance(self.clients, str) and self.clients.isdecimal():  # of an environment variable
            self.clients = int(self.clients)

    def validate(self, prefix: str = "partition") -> None:
        self._check_clients(f"{prefix}.clients", parse_scenario(str(self.scenario), f"{prefix}.scenario").split_by)
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"{prefix}.mix must be in [0, 1], got {self.mix}")
        self.topic.validate(f"{prefix}.topic")
        self.quality.validate(f"{prefix}.quality")
        self.quantity.validate(f"{prefix}.quantity")

    def _check_clients(self, key: str, split_by: str) -> None:
        clients = self.clients
        if type(clients) is int and clients < 1:
            raise ConfigError(f"{key} must be at least 1, got {clients}")
        if clients is None or type(clients) is int:
            return
        if isinstance(clients, Mapping):
            lists = list(clients.values())
            if not lists or not all(isinstance(domains, list) and domains for domains in lists):
                raise ConfigError(f"{key}: each client has a list of domains, as in {{north: [xray]}}, got {clients}")
            check_names(list(clients), key)
            check_names([domain for domains in lists for domain in domains], key)
        elif clients not in CLIENTS:
            raise ConfigError(f"{key} must be a whole number, a map, or one of {', '.join(CLIENTS)}, got {clients!r}")
        if split_by != "domain":
            raise ConfigError(f"{key}={clients} needs the scenario `domain`, and partition.scenario is {self.scenario}")

    def knobs(self) -> dict[str, object]:
        """The settings that act in this scenario, nested as in the config."""
        scenario = parse_scenario(self.scenario)
        found: dict[str, object] = {"clients": self.clients}
        if scenario.split_by == "domain":
            found["mix"] = self.mix
        if scenario.split_by == "topic":
            clusters = {"clusters": self.topic.clusters} if self.topic.by == "cluster" else {}
            found["topic"] = {"alpha": self.topic.alpha, "by": self.topic.by, **clusters}
        if scenario.quality:
            found["quality"] = dict(vars(self.quality))
        if scenario.quantity:
            sizes, name = self.quantity, "s" if self.quantity.kind == "zipf" else "sigma"
            found["quantity"] = {"kind": sizes.kind, name: getattr(sizes, name), "min_samples": sizes.min_samples}
        return found
