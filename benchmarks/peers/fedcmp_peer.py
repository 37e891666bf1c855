"""The task in fedcmp: its round loop as it is, clients stacked by twos, as is its default; one process.

python benchmarks/peers/fedcmp_peer.py TASK OUT

With PEER_PARTS set, rounds are taken apart: seconds of a later round, and by how much each part raised the peak.
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from task import Clock, Task

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.data.collate import Batches
from fedcmp.distributed.team import Solo
from fedcmp.evaluation.losses import EvalData
from fedcmp.federation import here, loop
from fedcmp.federation.client import WaveResult
from fedcmp.federation.federation import Federation
from fedcmp.federation.sampling import ClientTask, RoundPlan, RunPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import ModelConfig, load_llm
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers

CPU = torch.device("cpu")
MOVED = "clients move, and take the difference"
PARTS = {
    "fedcmp.federation.here:train_round": MOVED,
    "fedcmp.federation.gate:report": "gate",
    "fedcmp.aggregation.contribution:squared_norm": "norms of updates",
    "fedcmp.aggregation.fuse.coordinate_wise:single": "back to floating point",
}
"""Beside those of an aggregation."""


def plan_of(task: Task) -> RunPlan:
    """The task's rows, and a round more, for the last one is always evaluated and is not run."""
    rounds, seen = [], 0
    for number in range(task.rounds + 1):
        by_client = task.batches[number % task.rounds] if task.trains else [[[0]]] * task.clients
        tasks = tuple(
            ClientTask(number, client, 0, tuple(tuple(batch) for batch in batches))
            for client, batches in enumerate(by_client)
        )
        rounds.append(RoundPlan(number, tasks, seen))
        seen += rounds[-1].num_samples
    return RunPlan(tuple(rounds), seen, task.clients)


def moved(field: here.Here, federation: Federation, state: Any, plan: RoundPlan) -> WaveResult:
    """In place of training: each client's projector moves a little, and its difference is taken, as after training."""
    found = []
    for one in plan.tasks:
        local = {name: value + 1e-3 * (one.client_id + 1) for name, value in state.params.items()}
        delta = {name: value.sub_(state.params[name]) for name, value in local.items()}
        found.append(Contribution(one.client_id, delta, num_samples=1, num_tokens=1, num_steps=1))
    return WaveResult(found, {}, [])


def main(folder: str, out: str) -> None:
    """Trains, and writes what it took."""
    task, clock = Task(folder), Clock()
    if task.trains:
        llm, data = load_llm(ModelConfig()), task.data()
        lengths = [row[row != -100] for row in data["labels"]]
        fetch = Batches(data["features"], lengths, llm.pad_id, CPU)
    else:
        llm = SimpleNamespace(model=torch.nn.Identity())
        fetch, here.train_round = Batches(None, [], 0, CPU), moved
    optimizer = OptimizerConfig(lr=task.lr, clip_norm=task.clip, schedule="constant", warmup=0.0)
    module = ProjectorAlignment(None, llm, task.start(), optimizer)  # type: ignore[arg-type]
    federation = Federation(
        field=here.Here(module, fetch, EvalData(fetch, ())),
        aggregator=build_aggregator(AggregatorConfig("fedavg", pairwise=0)),
        plan=plan_of(task),
        config=FederationConfig(rounds=task.rounds + 1, evaluate_every=task.rounds + 2),
        optimizer=optimizer,
        tracker=Trackers(),
        progress=Progress(enabled=False),
        team=Solo(CPU),
    )
    state = loop.start(task.start(), federation.aggregator)
    clock.mark()
    if "PEER_PARTS" in os.environ:
        take_apart(federation, state, clock, out)
        return
    for plan in federation.plan.rounds[: task.rounds]:
        state, _ = loop.run_round(federation, state, plan)
        clock.mark()
    clock.write(out, state.params)


def take_apart(federation: Federation, state: Any, clock: Clock, out: str) -> None:
    """The same rounds, by their parts."""
    from phases import AGGREGATING, watched

    plans, found = federation.plan.rounds[:-1], []
    for some in (plans[:1], plans[1:]):  # the first warms up, and raises the peak
        with watched({**PARTS, **AGGREGATING}, time.perf_counter) as parts:
            for plan in some:
                state, _ = loop.run_round(federation, state, plan)
                clock.mark()
        found.append(parts)
    first, later = found
    seconds = {part: taken / max(1, len(plans) - 1) for part, taken in later.seconds.items()}
    mib = {part: first.mib[part] + later.mib[part] for part in seconds}
    clock.write(out, state.params, {"seconds": seconds, "mib": mib})


if __name__ == "__main__":
    main(*sys.argv[1:])
