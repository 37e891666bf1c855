"""Records to clients: a pure function of records, settings and seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedcmp.data.records import Sample
from fedcmp.data.scenarios.domain import find_owners, mix_clients, name_clients, partition_domains
from fedcmp.data.scenarios.quality import QualityConfig
from fedcmp.data.scenarios.quantity import QuantityConfig, client_shares, even_sizes, sizes_from
from fedcmp.data.scenarios.topic import TopicConfig, partition_topics, topics_of
from fedcmp.errors import ConfigError, DataError, nearest
from fedcmp.seeding import numpy_rng

NUM_CLIENTS = 8
"""Of scenarios that no setting gives a number of clients."""


class Partition(NamedTuple):
    """The samples of each client."""

    clients: tuple[tuple[int, ...], ...]
    """Positions in the list of samples, by client; disjoint."""
    seed: int
    topics: tuple[str, ...] = ()
    """The topic of each sample; empty where samples were not assigned by topic."""
    corrupted: tuple[tuple[int, ...], ...] = ()
    """Positions of samples whose caption is not their own, by client; empty where none is."""
    names: tuple[str, ...] = ()
    """What each client is called; empty: by its number."""


@dataclass
class PartitionConfig:
    """How records are assigned to clients."""

    scenario: str = "domain"
    """What clients differ by: one of `iid`, `domain`, `topic`, and with `+` `quality`, `quantity`, as in
    `topic+quality`."""
    clients: Any = None
    """How many, >= 1; for `domain` also `domains` (one for each), `given` (one for each name in the records' field
    `client`), or a map of names to domains, as in `{north: [xray, ct], south: [photos]}`. Unset: `domains` for
    `domain`, else 8."""
    mix: float = 0.0
    """For `domain`: share of the samples that is exchanged at random, in [0, 1]; 1 is iid."""
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
        split_by = parse_scenario(str(self.scenario), f"{prefix}.scenario").split_by
        clients, key = self.clients, f"{prefix}.clients"
        if isinstance(clients, Mapping):
            if not all(isinstance(domains, list) and domains for domains in clients.values()):
                raise ConfigError(f"{key}: each client has a list of domains, as in {{north: [xray]}}, got {clients}")
            check_names(list(clients), key)
            check_names([domain for domains in clients.values() for domain in domains], key)
        elif clients not in (None, "domains", "given") and not (type(clients) is int and clients >= 1):
            raise ConfigError(f"{key} must be a number of at least 1, a map, `domains` or `given`, got {clients!r}")
        if isinstance(clients, Mapping | str) and (split_by != "domain" or not clients):
            raise ConfigError(f"{key}={clients} needs the scenario `domain`, and partition.scenario is {self.scenario}")
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"{prefix}.mix must be in [0, 1], got {self.mix}")
        for name in (name for name, row in SCENARIOS.items() if row.options):
            getattr(self, name).validate(f"{prefix}.{name}")

    def knobs(self) -> dict[str, object]:
        """The settings that act in this scenario, nested as in the config."""
        split_by, *added = parse_scenario(self.scenario)
        words = [split_by, *(word for word, acts in zip(("quality", "quantity"), added, strict=True) if acts)]
        found = {"clients": self.clients} | ({"mix": self.mix} if split_by == "domain" else {})
        return found | {word: getattr(self, word).knobs() for word in words if SCENARIOS[word].options is not None}


def check_names(names: Sequence[object], key: str) -> None:
    """Names are printable texts, none empty, none twice.

    Raises:
        ConfigError: one is not; the message has ``key``.
    """
    for name, times in Counter(names).items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or times > 1:
            raise ConfigError(f"{key}: a name must be a printable text that is not empty and used once, got {name!r}")


Assign = Callable[
    [list[str], np.ndarray, "np.ndarray | None", PartitionConfig, np.random.Generator], Sequence[Sequence[int]]
]
"""Samples in random order to clients.

Gets the label of each (for `domain` its owner, for `topic` its topic, else its class or, without one, its domain);
samples of each client, ``[K]``; how much each should have, ``[K]``, None: as much as the others; the settings; and what
draws. Returns places in that order by client, each once at most.
"""


def assign_iid(labels: Any, sizes: np.ndarray, shares: Any, config: Any, rng: Any) -> Sequence[Sequence[int]]:
    total = int(sizes.sum())
    if shares is None:
        return [range(client, total, len(sizes)) for client in range(len(sizes))]
    return [part.tolist() for part in np.split(np.arange(total), np.cumsum(sizes)[:-1])]


def assign_domains(labels: Any, sizes: Any, shares: Any, config: PartitionConfig, rng: Any) -> Sequence[Sequence[int]]:
    clients = partition_domains(labels, len(sizes), shares, config.quantity.min_samples)
    return mix_clients(clients, config.mix, rng) if config.mix else clients


def assign_topics(labels: Any, sizes: Any, shares: Any, config: PartitionConfig, rng: Any) -> Sequence[Sequence[int]]:
    return partition_topics(labels, sizes, config.topic.alpha, rng)


class Options(Protocol):
    """A scenario's settings: a dataclass."""

    def validate(self, prefix: str) -> None:
        """Raises a ConfigError that names ``prefix`` and the field."""

    def knobs(self) -> dict[str, object]:
        """The settings that act, as split.json has them."""


class Row(NamedTuple):
    """A scenario."""

    options: type[Options] | None
    """Its settings, in the field of ``PartitionConfig`` that has its name."""
    assign: Assign | None
    """None: it goes with another one, whose captions or sizes it changes."""


SCENARIOS = {
    "iid": Row(None, assign_iid),
    "domain": Row(None, assign_domains),
    "topic": Row(TopicConfig, assign_topics),
    "quality": Row(QualityConfig, None),
    "quantity": Row(QuantityConfig, None),
}


class Scenario(NamedTuple):
    """What the words of ``partition.scenario`` ask for."""

    split_by: str
    """The one that assigns."""
    quality: bool
    quantity: bool


def parse_scenario(text: str, key: str = "partition.scenario") -> Scenario:
    """Words joined by ``+``.

    Raises:
        ConfigError: a word is unknown or used twice, or two of them assign.

    >>> parse_scenario("topic+quality")
    Scenario(split_by='topic', quality=True, quantity=False)
    >>> parse_scenario("quantity").split_by
    'iid'
    """
    words = text.split("+")
    for word in words:
        if word not in SCENARIOS:
            raise ConfigError(f"{key}: unknown word {word!r}; {nearest(word, SCENARIOS)}")
    split_by = [word for word in words if SCENARIOS[word].assign]
    if len(split_by) > 1 or len(set(words)) < len(words):
        choices = ", ".join(word for word, row in SCENARIOS.items() if row.assign)
        raise ConfigError(f"{key}: expected each word once and at most one of {choices}, got {text!r}")
    return Scenario(split_by[0] if split_by else "iid", "quality" in words, "quantity" in words)


def partition(
    samples: Sequence[Sample], config: PartitionConfig, seed: int, topics: Sequence[str] | None = None
) -> Partition:
    """Assigns the samples to clients as ``config.clients`` says; the order of the samples does not matter.

    Every sample has one owner, except where a client that owns a domain alone keeps only its share of it
    (``domain+quantity``).

    Args:
        samples: the training samples.
        config: the scenario and its knobs.
        seed: the run's seed.
        topics: the topic of each sample, for ``topic``; None: as their labels or domains say.

    Raises:
        ConfigError: clients and domains do not fit, or the name of a client is not printable.
        DataError: there are fewer samples than clients, or fewer than the floor of their sizes needs; no client is
            given; or the scenario assigns a sample twice, or one that is not there.
    """
    scenario = parse_scenario(config.scenario)
    owners = find_owners(samples, config.clients) if scenario.split_by == "domain" else []
    labels = owners or [sample.label or sample.domain for sample in samples]
    num_clients = config.clients if isinstance(config.clients, int) else len(set(owners)) or NUM_CLIENTS
    if scenario.quality and config.quality.kind == "foreign" and num_clients == 1:
        raise ConfigError("partition.quality.kind=foreign needs captions of others, and there is 1 client")
    if len(samples) < num_clients:
        raise DataError(f"{len(samples)} samples cannot be assigned to partition.clients={num_clients} clients")
    if scenario.split_by == "topic":
        if topics is None and config.topic.by == "cluster":
            raise ValueError("clusters are found before samples are assigned by them")
        labels = topics_of(samples, config.topic.by) if topics is None else list(topics)
    by_id = sorted(range(len(samples)), key=lambda position: samples[position].id)
    rng = numpy_rng(seed, "partition")
    order = [by_id[place] for place in rng.permutation(len(by_id))]
    shares = client_shares(num_clients, config.quantity, seed) if scenario.quantity else None
    sizes = even_sizes(len(order), num_clients)
    if shares is not None and scenario.split_by != "domain":  # there each domain has its own
        sizes = sizes_from(len(order), shares, config.quantity.min_samples)
    assign = SCENARIOS[scenario.split_by].assign
    assert assign is not None, "parse_scenario names one that assigns"
    places = assign([labels[position] for position in order], sizes, shares, config, rng)
    if len(places) != num_clients:
        raise DataError(f"partition.scenario={config.scenario} made {len(places)} clients, expected {num_clients}")
    if any(not 0 <= place < len(order) for client in places for place in client):
        raise DataError(f"partition.scenario={config.scenario} assigns places beyond the {len(order)} samples")
    if len(taken := [place for client in places for place in client]) > len(set(taken)):
        raise DataError(f"partition.scenario={config.scenario} assigns {len(taken) - len(set(taken))} samples twice")
    clients = tuple(tuple(sorted(order[place] for place in client)) for client in places)
    exchanged = config.mix and isinstance(config.clients, int | None)  # then no client is one domain
    names = name_clients(owners, num_clients) if owners and not exchanged else ()
    check_names(names, "partition.clients")
    return Partition(clients, seed, tuple(labels) if scenario.split_by == "topic" else (), names=names)


def partition_conversations(
    samples: Sequence[Sample], config: PartitionConfig, seed: int, topics: Sequence[str] | None = None
) -> Partition:
    """As ``partition``, of conversations, each with all its samples; a sample without a group is one of its own."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        members[sample.group or sample.id].append(position)
    whole = list(members.values())
    heads = [positions[0] for positions in whole]
    found = partition([samples[head] for head in heads], config, seed, topics and [topics[head] for head in heads])
    clients = (tuple(sorted(position for place in client for position in whole[place])) for client in found.clients)
    named = {position: topic for place, topic in enumerate(found.topics) for position in whole[place]}
    return found._replace(clients=tuple(clients), topics=tuple(named[position] for position in sorted(named)))
