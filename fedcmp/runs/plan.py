"""What a run would do, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.config import Config
from fedcmp.distributed.team import Topology, make_topology
from fedcmp.errors import ConfigError
from fedcmp.export.hf import check_hf
from fedcmp.federation.forecast import Forecast, MemoryPart, forecast, training_memory
from fedcmp.federation.fusing import check_secure
from fedcmp.federation.privacy import Protection
from fedcmp.report.formatting import human
from fedcmp.report.plan import PlanPage
from fedcmp.runs.data import Data, read_data
from fedcmp.runs.method import build_method
from fedcmp.runs.models import Outline, check_models, count_cut, describe_cut


def plan(config: Config, ranks: int | None = None) -> PlanPage:
    """What ``train`` would do. Records are read and partitioned as there; no weight is loaded, unless topics are
    clusters.

    Args:
        config: the run's settings, checked.
        ranks: how many there would be; None: ``launch.devices``.

    Raises:
        ConfigError, DataError: such a run would be refused.
    """
    world = config.launch.devices if ranks is None else ranks
    if world < 1:
        raise ConfigError(f"--ranks must be at least 1, got {world}")
    check_secure(config.federation, config.aggregator, world)
    topology = make_topology(world, config.launch.group_size)
    data, outline = read_data(config), check_models(config)
    method, coming = build_method(config, data.plan), data.plan
    if method.privacy is not None:  # the budget may end the run before the plan does
        rounds = coming.rounds[: method.privacy.affordable]
        coming = coming._replace(rounds=rounds, num_samples=sum(one.num_samples for one in rounds))
    counted = int(method.privacy is not None and config.privacy.quantile > 0)
    slots = config.federation.slots
    found = forecast(data.split.clients, coming, slots, topology, method.aggregator, outline.params, counted)
    devices = _devices(config, world)
    features = _features(config, data, outline)
    notes = [*_model_notes(config, data, outline), *_machine_notes(config, devices, found, features)]
    facts: tuple[tuple[str, str], ...] = ()
    if method.privacy is not None:
        facts = _privacy(method.privacy, len(found.rounds))
        notes += _privacy_notes(method.privacy, len(found.rounds), len(found.clients), config.federation.secure)
    memory = _memory(config, outline, topology, method.aggregator, found)
    name = config.aggregator.name
    return PlanPage(found, name, method.aggregator, devices, memory, features, tuple(notes), facts)


def _features(config: Config, data: Data, outline: Outline) -> int | None:
    """Bytes of the image features that every rank keeps, float16."""
    kept = len(data.val) + len(data.train) * (not config.data.stream) + len(data.test) * config.evaluation.test
    return 2 * kept * outline.tower.tokens * outline.tower.width if outline.tower else None


def _model_notes(config: Config, data: Data, outline: Outline) -> list[str]:
    notes = [outline.warning]
    if outline.encoder is not None:
        notes.append(describe_cut(count_cut(data.splits, outline.encoder), outline.encoder))
    if outline.params is not None:
        try:
            check_hf(config.model, outline.params)
        except ConfigError as error:
            notes.append(f"fedcmp export --to hf will refuse this run, fedcmp caption will not: {error}")
    return [note for note in notes if note]


def _machine_notes(config: Config, devices: Sequence[str], found: Forecast, features: int | None) -> list[str]:
    notes, world, here = [], len(devices), torch.cuda.device_count()
    if devices[0] == "cuda":
        notes.append("run.device is cuda, and this machine has no CUDA device: start the run elsewhere")
    elif devices[0] != "cpu" and world > here and not config.launch.share_gpu:
        notes.append(
            f"{world} ranks need {world} GPUs and this machine has {here}: use more nodes, or launch.share_gpu"
        )
    idle = sum(not group.waves for group in found.groups)
    if idle:
        notes.append(
            f"{idle} of {len(found.groups)} groups train no client in round 1: start fewer ranks, or lower "
            f"federation.slots (now {config.federation.slots})"
        )
    local = min(world, max(1, here)) if devices[0] != "cpu" else world
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if features is not None and local * features > room:
        notes.append(
            f"image features take {human(features)} of main memory on each of {local} ranks, and this machine has "
            f"{human(room)}: set data.stream=true, or use fewer samples (data.max_train_per_domain) or image tokens "
            "(model.token_grid, model.pixel_shuffle)"
        )
    return notes


def _privacy(protection: Protection, rounds: int) -> tuple[tuple[str, str], ...]:
    config, times = protection.config, protection.taking[rounds - 1]
    budget = f"; budget {config.epsilon:g}" if config.epsilon else ""
    start = " in round 1, then adapted" if config.quantile else ""
    who = "the server" if config.kind == "central" else "the clients, each its share"
    spent = f"{protection.epsilon(rounds):.4g} at delta {config.delta:g} ({config.accountant}){budget}"
    return (
        ("epsilon of the run", spent),
        ("protected", f"each client, whether it takes part or is silent; asked in at most {times:,} rounds"),
        ("noise multiplier of a round", f"{protection.noise:.4g}, added by {who}"),
        ("norm of a client's update", f"at most {config.clip:g}{start}"),
    )


def _privacy_notes(protection: Protection, rounds: int, clients: int, secure: str) -> list[str]:
    config, planned, notes = protection.config, len(protection.taking), []
    if rounds < planned:
        notes.append(
            f"the budget privacy.epsilon={config.epsilon:g} ends the run after round {rounds} of {planned}, while the "
            "learning rate is still high: lower federation.rounds or raise privacy.noise"
        )
    if config.delta * clients >= 1:
        notes.append(f"privacy.delta={config.delta:g} should be well below one over the number of clients, 1/{clients}")
    if config.kind == "distributed" and secure == "none":
        notes.append("without federation.secure=masks the server sees each update with its own share of noise only")
    if config.stream == "seeded":
        notes.append("noise is drawn from run.seed: a simulation of privacy, for tests and comparisons only")
    return notes


def _devices(config: Config, world: int) -> tuple[str, ...]:
    """Where each rank computes, if every node is like this machine."""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.run.device == "cpu" or (config.run.device == "auto" and not here):
        return ("cpu",) * world
    return tuple(f"cuda:{rank % here}" for rank in range(world)) if here else ("cuda",) * world


def _memory(
    config: Config, outline: Outline, topology: Topology, method: Aggregator, found: Forecast
) -> tuple[MemoryPart, ...]:
    if outline.params is None:
        return ()
    tower = outline.tower.num_bytes if outline.tower else None
    llm = outline.llm.num_bytes if outline.llm else None
    if outline.llm and config.launch.shard_llm:
        llm = outline.llm.num_bytes - outline.llm.layer_bytes * (topology.group_size - 1) // topology.group_size
    training = training_memory(
        outline.params,
        method,
        config.federation,
        config.optimizer,
        busiest=max(one.busiest for one in found.rounds),
        population=sum(one.rounds > 0 for one in found.clients),
    )
    return (MemoryPart("vision tower", tower, tower), MemoryPart("language model", llm, llm), *training)
