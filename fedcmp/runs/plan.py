"""What a run would do, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from fedcmp.config import Config
from fedcmp.distributed.team import make_topology
from fedcmp.errors import ConfigError
from fedcmp.export.hf import check_hf
from fedcmp.federation.forecast import Forecast, MemoryPart, forecast, training_memory
from fedcmp.federation.fusing import check_secure
from fedcmp.federation.privacy import Protection
from fedcmp.models.settings import describe_demo
from fedcmp.report.formatting import human
from fedcmp.report.plan import PlanPage
from fedcmp.runs.data import read_data
from fedcmp.runs.effort import estimate
from fedcmp.runs.method import build_method
from fedcmp.runs.models import Outline, check_models, foresee_cut


def plan(config: Config, ranks: int | None = None) -> PlanPage:
    """What ``train`` would do. Records are read and partitioned as there; no weight is loaded, unless topics are
    clusters.

    Args:
        config: the run's settings, checked.
        ranks: how many there would be; None: ``launch.devices``.

    Raises:
        ConfigError, DataError: such a run would be refused.
    """
    world, federation = config.launch.devices if ranks is None else ranks, config.federation
    if world < 1:
        raise ConfigError(f"--ranks must be at least 1, got {world}")
    check_secure(federation, config.aggregator, world)
    topology = make_topology(world, config.launch.group_size)
    data, outline = read_data(config), check_models(config)
    method, coming = build_method(config, data.plan), data.plan
    privacy, aggregator, params = method.privacy, method.aggregator, outline.params
    if privacy is not None:  # the budget may end the run before the plan does
        rounds = coming.rounds[: privacy.affordable]
        coming = coming._replace(rounds=rounds, num_samples=sum(one.num_samples for one in rounds))
    counted = int(privacy is not None and config.privacy.quantile > 0)
    found = forecast(data.split.clients, coming, federation.slots, topology, aggregator, params, counted)
    kept = len(data.val) + len(data.train) * (not config.data.stream) + len(data.test) * config.evaluation.test
    # bytes of float16 that every rank keeps
    features = 2 * kept * outline.tower.tokens * outline.tower.width if outline.tower else None
    effort = estimate(config, outline, data.train, coming, found, topology, kept)
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_cpu = config.run.device == "cpu" or (config.run.device == "auto" and not here)
    devices = ["cpu" if on_cpu else f"cuda:{rank % here}" if here else "cuda" for rank in range(world)]
    demo = "" if config.data.kind == "scenes" else describe_demo(config.model)
    notes = [demo, outline.warning, foresee_cut(config, data.splits, outline)]
    notes += [*_machine_notes(config, devices, found, features), *_model_notes(config, outline)]
    facts: tuple[tuple[str, str], ...] = ()
    if privacy is not None:
        facts = _describe_privacy(privacy, len(found.rounds))
        notes += _privacy_notes(privacy, len(found.rounds), len(found.clients), federation.secure)
    memory: list[MemoryPart] = []
    if params is not None:
        tower, llm = (part.num_bytes if part else None for part in (outline.tower, outline.llm))
        if outline.llm and config.launch.shard_llm:
            llm = outline.llm.num_bytes - outline.llm.layer_bytes * (topology.group_size - 1) // topology.group_size
        busiest = max(one.busiest for one in found.rounds)
        population = sum(one.rounds > 0 for one in found.clients)
        memory = [MemoryPart("vision tower", tower, tower), MemoryPart("language model", llm, llm)]
        memory += training_memory(
            params, aggregator, federation, config.optimizer, busiest=busiest, population=population
        )
        if effort:
            what = f"activations of {effort.at_once} rows of {effort.lengths.image + effort.lengths.longest} positions"
            memory.append(MemoryPart(what, effort.activations, effort.activations))
    shown = tuple(filter(None, notes))
    name = config.aggregator.name
    return PlanPage(found, name, aggregator, tuple(devices), tuple(memory), features, shown, facts, effort)


def _model_notes(config: Config, outline: Outline) -> Iterator[str]:
    if outline.params is not None:
        try:
            check_hf(config.model, outline.params)
        except ConfigError as error:
            takes = "docs/export.md has what it takes"
            yield f"fedcmp export --to hf will refuse this run, fedcmp caption will not: {error}; {takes}"


def _machine_notes(config: Config, devices: list[str], found: Forecast, features: int | None) -> Iterator[str]:
    world, here, on_cpu = len(devices), torch.cuda.device_count(), devices[0] == "cpu"
    if devices[0] == "cuda":
        yield "run.device is cuda, and this machine has no CUDA device: start the run elsewhere"
    elif not on_cpu and world > here and not config.launch.share_gpu:
        yield f"{world} ranks need {world} GPUs and this machine has {here}: use more nodes, or launch.share_gpu"
    if idle := sum(not group.waves for group in found.groups):
        yield (
            f"{idle} of {len(found.groups)} groups train no client in round 1: start fewer ranks, or lower "
            f"federation.slots (now {config.federation.slots})"
        )
    local = world if on_cpu else min(world, max(1, here))
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if features is not None and local * features > room:
        yield (
            f"image features take {human(features)} of main memory on each of {local} ranks, and this machine has "
            f"{human(room)}: set data.stream=true, or use fewer samples or image tokens (model.token_grid)"
        )


def _describe_privacy(protection: Protection, rounds: int) -> tuple[tuple[str, str], ...]:
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


def _privacy_notes(protection: Protection, rounds: int, clients: int, secure: str) -> Iterator[str]:
    config, planned = protection.config, len(protection.taking)
    if rounds < planned:
        yield (
            f"the budget privacy.epsilon={config.epsilon:g} ends the run after round {rounds} of {planned}, while the "
            "learning rate is still high: lower federation.rounds or raise privacy.noise"
        )
    if config.delta * clients >= 1:
        yield f"privacy.delta={config.delta:g} should be well below one over the number of clients, 1/{clients}"
    if config.kind == "distributed" and secure == "none":
        yield "without federation.secure=masks the server sees each update with its own share of noise only"
    if config.stream == "seeded":
        yield "noise is drawn from run.seed: a simulation of privacy, for tests and comparisons only"
