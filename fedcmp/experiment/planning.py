"""What a run would do, before anything is loaded."""

from __future__ import annotations

import os

import torch

from fedcmp.aggregation.presets import build_aggregator
from fedcmp.build import Outline, outline_parts, read_data
from fedcmp.config import Config
from fedcmp.distributed.topology import Topology, make_topology
from fedcmp.errors import ConfigError
from fedcmp.federation.forecast import Forecast, forecast
from fedcmp.federation.memory import MemoryPart, training_memory
from fedcmp.federation.secure import check_secure
from fedcmp.report.plan import PlanPage
from fedcmp.report.words import human


def plan(config: Config, ranks: int | None = None) -> PlanPage:
    """What ``train`` would do. Records are read and dealt as there; no weight is opened, unless topics are clusters.

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
    data, outline, rule = read_data(config), outline_parts(config), build_aggregator(config.aggregator)
    found = forecast(data.split.clients, data.plan, config.federation.slots, topology, rule, outline.params)
    features = None
    kept = len(data.val)
    kept += 0 if config.data.stream else len(data.train)
    kept += len(data.test) if config.evaluation.test else 0
    if outline.tower is not None:  # float16
        features = 2 * kept * outline.tower.tokens * outline.tower.width
    devices, notes = _devices(config, world)
    idle = sum(not group.waves for group in found.groups)
    if idle:
        notes.append(
            f"{idle} of {topology.num_groups} groups have nobody to train in round 1: start fewer ranks, or lower "
            f"federation.slots (now {config.federation.slots})"
        )
    here = min(world, max(1, torch.cuda.device_count())) if devices[0] != "cpu" else world
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if features is not None and here * features > room:
        notes.append(
            f"image features take {human(features)} of main memory on each of {here} ranks, and this machine has "
            f"{human(room)}: read training pictures when they are needed (data.stream=true), or use fewer samples "
            "(data.max_train_per_domain) or image tokens (model.token_grid, model.pixel_shuffle)"
        )
    memory = _memory(config, outline, topology, found)
    return PlanPage(found, config.aggregator.name, rule, devices, memory, features, tuple(notes))


def _devices(config: Config, world: int) -> tuple[tuple[str, ...], list[str]]:
    """Where each rank computes, if every node is like this machine."""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.run.device == "cpu" or (config.run.device == "auto" and not here):
        return ("cpu",) * world, []
    if not here:
        return ("cuda",) * world, ["run.device is cuda, and this machine has no CUDA device: start the run elsewhere"]
    notes = []
    if world > here and not config.launch.share_gpu:
        notes.append(
            f"{world} ranks need {world} GPUs and this machine has {here}: start them on several nodes, or say "
            "launch.share_gpu=true"
        )
    return tuple(f"cuda:{rank % here}" for rank in range(world)), notes


def _memory(config: Config, outline: Outline, topology: Topology, found: Forecast) -> tuple[MemoryPart, ...]:
    if outline.params is None:
        return ()
    tower = outline.tower.num_bytes if outline.tower else None
    llm = outline.llm.num_bytes if outline.llm else None
    if outline.llm and config.launch.shard_llm:
        llm = outline.llm.num_bytes - outline.llm.layer_bytes * (topology.group_size - 1) // topology.group_size
    training = training_memory(
        outline.params,
        build_aggregator(config.aggregator),
        config.federation,
        config.optimizer,
        busiest=max(one.busiest for one in found.rounds),
        population=sum(one.rounds > 0 for one in found.clients),
    )
    return (MemoryPart("vision tower", tower, tower), MemoryPart("language model", llm, llm), *training)
