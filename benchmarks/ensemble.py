"""What fusing loses: Fed-CMP's projector after each round beside the mean of the clients' projectors, of their outputs.

    python benchmarks/ensemble.py                # two minutes on an idle core
    python benchmarks/ensemble.py --seeds 0 1 2

The study's demo in four rounds of 32 local steps, with the local optimizer that the study chose. A projector of eight
times the hidden width puts out what eight projectors do on average: the clients' first layers one under the other,
their second layers side by side, over eight. A fused projector whose loss is no higher has lost nothing by being fused;
what it lacks to centralized training is a matter of local training.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from record import Table, save
from torch import Tensor

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Cohort
from fedcmp.aggregation.parts import Aggregated, State
from fedcmp.config import load_config
from fedcmp.federation.loop import run as run_rounds
from fedcmp.federation.loop import start
from fedcmp.runs.method import build_federation
from fedcmp.runs.run import open_run
from fedcmp.tracking.progress import Progress
from fedcmp.types import Params

CONFIG = Path(__file__).parent.parent / "configs" / "study" / "long.yaml"
WORDS = ("federation.rounds=4", "optimizer.name=muon", "optimizer.lr=4e-2", "partition.clients=8")


class Losses(NamedTuple):
    """Validation losses after the local steps of a round, nats per token."""

    client: float
    """Of the clients' own projectors, the mean."""
    outputs: float
    """Of the mean of their outputs."""
    weights: float
    """Of the mean of their weights."""
    fused: float
    """Of what the method makes of them."""


@dataclasses.dataclass(frozen=True)
class Watched(Aggregator):
    """A method whose rounds are measured."""

    loss: Callable[[Params], float] = lambda params: 0.0
    found: list[Losses] = dataclasses.field(default_factory=list)

    @torch.no_grad()
    def aggregate(self, cohort: Cohort, params: Params, state: State) -> Aggregated:
        deltas = cohort.gather(lambda one: one.delta)
        own = {name: value + deltas[name] for name, value in params.items()}
        mean = {name: value.mean(0) for name, value in own.items()}
        clients = [{name: value[client] for name, value in own.items()} for client in range(len(cohort.clients))]
        done = super().aggregate(cohort, params, state)
        each = fmean(map(self.loss, clients))
        self.found.append(Losses(each, self.loss(side_by_side(own)), self.loss(mean), self.loss(done.params)))
        return done


def side_by_side(own: dict[str, Tensor]) -> Params:
    """One projector that puts out the mean of K: ``[K, h, N]``, ``[K, M, h]`` become ``[K h, N]``, ``[M, K h]``."""
    second = own["linear_2.weight"]
    return {
        "linear_1.weight": own["linear_1.weight"].flatten(0, 1),
        "linear_1.bias": own["linear_1.bias"].flatten(),
        "linear_2.weight": second.permute(1, 0, 2).flatten(1) / len(second),
        "linear_2.bias": own["linear_2.bias"].mean(0),
    }


def rounds_of(scenario: str, seed: int) -> list[Losses]:
    """A run's losses, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*WORDS, f"partition.scenario={scenario}", f"run.seed={seed}", f"run.dir={folder}/run"]
        config, progress = load_config(CONFIG, words), Progress(enabled=False)
        with open_run(config, "fedcmp", progress=progress) as run:
            parts = {one.name: getattr(run.method.aggregator, one.name) for one in dataclasses.fields(Aggregator)}
            watched = Watched(**parts, loss=lambda params: run.evaluate(params).loss)
            method = run.method._replace(aggregator=watched)
            federation = build_federation(config, run.data, method, run.parts, run.tracker, progress, run.team)
            run_rounds(federation, start(run.parts.params, watched))
    return watched.found


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all scenarios and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scenarios", nargs="+", default=["domain", "topic", "iid"])
    parsed = parser.parse_args(argv)
    found = {scenario: [rounds_of(scenario, seed) for seed in parsed.seeds] for scenario in parsed.scenarios}
    rows = [
        [scenario, number, *(fmean(run[number - 1][place] for run in runs) for place in range(len(Losses._fields)))]
        for scenario, runs in found.items()
        for number in range(1, len(runs[0]) + 1)
    ]
    header = ["scenario", "round", "one client", "outputs averaged", "weights averaged", "Fed-CMP"]
    seeds = f" --seeds {' '.join(map(str, parsed.seeds))}"
    save("ensemble", f"python benchmarks/ensemble.py{seeds}", found, {"losses": Table(header, rows)})


if __name__ == "__main__":
    main()
