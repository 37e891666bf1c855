"""Samples, the clients that have them, and the rounds that use them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fedcmp.config import Config
from fedcmp.data.held_out import subsample
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, corrupt, partition_conversations
from fedcmp.data.scenarios.partition import parse_scenario
from fedcmp.data.settings import DataConfig, expand
from fedcmp.data.sources import Source, build_source
from fedcmp.distributed.team import Solo, Team, is_server, together
from fedcmp.errors import ConfigError, DataError
from fedcmp.federation.sampling import RunPlan, plan_run
from fedcmp.pictures import find_clusters
from fedcmp.runs.models import pick_device
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)
Samples: TypeAlias = tuple[Source, list[Sample], list[Sample], list[Sample]]
"""A source, and the training, validation and test samples that are used."""
Load = Callable[[DataConfig, int], Samples]
"""Settings of data and the run's seed to samples."""


@dataclass(frozen=True)
class Data:
    """Samples, their clients and their rounds; no model is needed for it, unless topics are clusters."""

    source: Source
    train: list[Sample]
    """With the captions that their owners have, corrupted or not."""
    val: list[Sample]
    test: list[Sample]
    split: Partition
    plan: RunPlan

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The samples by the name of their split."""
        return {"train": self.train, "val": self.val, "test": self.test}


def read_data(
    config: Config, team: Team | None = None, progress: Progress | None = None, load: Load | None = None
) -> Data:
    """Records to samples, samples to clients, clients to a plan.

    Args:
        config: the run's settings, checked.
        team: the ranks of this run, which share what clusters need. None: this one alone, wherever the run will be.
        progress: bars.
        load: in place of ``load_samples``, for example one that remembers.

    Raises:
        ConfigError, DataError: the records are wrong or do not suffice for the plan or for the cohorts; or the
            privacy that is asked for cannot be had with this plan.
    """
    team = team or Solo(pick_device("cpu" if config.run.device == "cpu" else "auto"))
    source, train, val, test = together(team, lambda: read_samples(config, load or load_samples))
    if source.left_out and is_server(team):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in source.left_out.items())
        log.warning("data: not used: %s (data.on_bad_record, data.turns, data.on_overlap)", kinds)
    topics = None
    if _by_cluster(config):
        cache, clusters = expand(config.data.cache_dir or ""), config.partition.topic.clusters
        bars = progress or Progress()
        topics = find_clusters(source, train, config.model, cache, clusters, config.run.seed, team, bars)

    def assign() -> Data:
        split = partition_conversations(train, config.partition, config.run.seed, topics)
        samples = train
        if parse_scenario(config.partition.scenario).quality:
            samples, positions = corrupt(train, split.clients, config.partition.quality, config.run.seed)
            split = split._replace(corrupted=positions)
        lengths = [len(sample.caption) for sample in samples] if config.federation.group_by_length else None
        plan = plan_run(split.clients, config.federation, config.run.seed, lengths, split.names)
        return Data(source, samples, val, test, split, plan)

    return together(team, assign)


def load_samples(data: DataConfig, seed: int) -> Samples:
    """The source that ``data`` describes, and of its samples those that are used.

    Raises:
        ConfigError, DataError: the records are wrong or none.
    """
    source = build_source(data, seed)
    kept = []
    for split, limit in (
        ("train", data.max_train_per_domain),
        ("val", data.max_val_per_domain),
        ("test", data.max_test_per_domain),
    ):
        kept.append(subsample(source.samples(split), limit, seed))
        if not kept[-1]:
            raise DataError(f"data: there is no {split} sample")
    return source, kept[0], kept[1], kept[2]


def read_samples(config: Config, load: Load = load_samples) -> Samples:
    """The source, and the training, validation and test samples that are used.

    Raises:
        ConfigError, DataError: settings do not fit together, or the records are wrong or none.
    """
    data, federation, ranks = config.data, config.federation, config.launch.group_size
    if federation.batch_size < ranks:
        raise ConfigError(f"federation.batch_size={federation.batch_size} is below launch.group_size={ranks}")
    if federation.on_client_error != "raise" and ranks > 1:
        raise ConfigError(
            f"federation.on_client_error={federation.on_client_error} needs launch.group_size=1, got {ranks}: where "
            "ranks train a client together, one that fails leaves the others in its step"
        )
    if _by_cluster(config) and not data.cache_dir:
        raise ConfigError("partition.topic.by=cluster needs data.cache_dir, so that resuming finds the features")
    return load(data, config.run.seed)


def _by_cluster(config: Config) -> bool:
    return parse_scenario(config.partition.scenario).split_by == "topic" and config.partition.topic.by == "cluster"
