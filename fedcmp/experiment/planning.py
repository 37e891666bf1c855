"""What a run would do, before anything is loaded."""

from __future__ import annotations

import os

import torch

from fedcmp.build import (
    Outline,
    build_method,
    build_protection,
    count_cut,
    describe_cut,
    outline_encoder,
    outline_parts,
    read_data,
)
from fedcmp.config import Config
from fedcmp.distributed.topology import Topology, make_topology
from fedcmp.errors import ConfigError
from fedcmp.export.hf import check_hf
from fedcmp.federation.forecast import Forecast, forecast
from fedcmp.federation.memory import MemoryPart, training_memory
from fedcmp.federation.privacy import Protection
from fedcmp.federation.secure import check_secure
from fedcmp.report.formatting import human
from fedcmp.report.plan import PlanPage


def plan(config: Config, ranks: int | None = None) -> PlanPage:
    """What ``train`` would do. Records are read and assigned as there; no weight is opened, unless topics are clusters.

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
    data, outline, method = read_data(config), outline_parts(config), build_method(config)
    protection, coming = build_protection(config, data.plan), data.plan
    if protection is not None:  # the budget may end the run before the plan does
        rounds = coming.rounds[: protection.affordable]
        coming = coming._replace(rounds=rounds, num_samples=sum(one.num_samples for one in rounds))
    beside = int(protection is not None and config.privacy.quantile > 0)
    found = forecast(data.split.clients, coming, config.federation.slots, topology, method, outline.params, beside)
    features = None
    kept = len(data.val)
    kept += 0 if config.data.stream else len(data.train)
    kept += len(data.test) if config.evaluation.test else 0
    if outline.tower is not None:  # float16
        features = 2 * kept * outline.tower.tokens * outline.tower.width
    devices, notes = _devices(config, world)
    if (known := outline_encoder(config, outline)) is not None:
        encoder, warning = known
        notes += [note for note in (warning, describe_cut(count_cut(data.splits, encoder), encoder)) if note]
    if outline.params is not None:
        try:
            check_hf(config.model, outline.params)
        except ConfigError as error:
            notes.append(f"fedcmp export --to hf will refuse this run, fedcmp caption will not: {error}")
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
    told: tuple[tuple[str, str], ...] = ()
    if protection is not None:
        told = tuple(_privacy(protection, len(found.rounds)))
        notes += _privacy_notes(protection, len(found.rounds), len(found.clients), config.federation.secure)
    return PlanPage(found, config.aggregator.name, method, devices, memory, features, tuple(notes), told)


def _privacy(protection: Protection, rounds: int) -> list[tuple[str, str]]:
    config, times = protection.config, protection.taking[rounds - 1]
    budget = f"; budget {config.epsilon:g}" if config.epsilon else ""
    start = " in round 1, then adapted" if config.quantile else ""
    return [
        (
            "epsilon of the run",
            f"{protection.epsilon(rounds):.4g} at delta {config.delta:g} ({config.accountant}){budget}",
        ),
        ("protected", f"each client, whether it takes part or is silent; asked in at most {times:,} rounds"),
        ("noise multiplier of a round", f"{protection.noise:.4g}, added by {_WHO[config.kind]}"),
        ("norm of a client's update", f"at most {config.clip:g}{start}"),
    ]


_WHO = {"central": "the server", "distributed": "the clients, each its share"}


def _privacy_notes(protection: Protection, rounds: int, clients: int, secure: str) -> list[str]:
    config, planned, notes = protection.config, len(protection.taking), []
    if rounds < planned:
        notes.append(
            f"the budget privacy.epsilon={config.epsilon:g} ends the run after round {rounds} of {planned}, while the "
            "learning rate is still high: lower federation.rounds, raise privacy.noise, or leave it out"
        )
    if config.delta * clients >= 1:
        notes.append(f"privacy.delta={config.delta:g} should be well below one over the number of clients, 1/{clients}")
    if config.kind == "distributed" and secure == "none":
        notes.append(
            "whoever adds up what clients send sees each of them with its own share of noise only: with "
            "federation.secure=masks nobody does"
        )
    if config.stream == "seeded":
        notes.append("noise is drawn from run.seed: a simulation of privacy, which protects nobody who meets the seed")
    return notes


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
        build_method(config),
        config.federation,
        config.optimizer,
        busiest=max(one.busiest for one in found.rounds),
        population=sum(one.rounds > 0 for one in found.clients),
    )
    return (MemoryPart("vision tower", tower, tower), MemoryPart("language model", llm, llm), *training)
