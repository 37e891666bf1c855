"""Who took part? Two attacks on runs of the embedded demo, with and without differential privacy.

    python benchmarks/membership.py                            # ten minutes or so on two cores
    python benchmarks/membership.py --epsilons 8 1 --seeds 0   # less of it

Clients are assigned at random to three groups of one size: members train, outsiders and a reference group do not.
Then, of each member and each outsider, an attacker who has its data asks whether it took part:

* *by updates*: it computes the update that this client would have sent in each round, takes away the mean update of
  the reference group, and looks how far what the server released points the same way. It needs the projector of every
  round, which all clients get, and no update of anyone else.
* *by losses*: how far the loss on the client's samples fell from the first projector to the last one.

AUC is the chance that a member scores above an outsider: 1/2 is guessing, 1 is certainty. No attack whatever can
exceed the ceiling, but by chance: two Gaussians, ``sqrt(T) / z`` apart for T rounds of noise multiplier z, are told
apart with AUC ``Phi(sqrt(T / 2) / z)``, and all that is released is such a pair at most (Dong, Roth and Su, JRSS B
2022). An attack that does not succeed proves nothing; one that exceeded the ceiling would prove a fault. Each row is
told as JSON, too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from fedcmp.config import load_config
from fedcmp.distributed.team import Solo
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.groups import train_round
from fedcmp.federation.loop import run, start
from fedcmp.federation.sampling import plan_run
from fedcmp.report.formatting import table
from fedcmp.runs.data import read_data
from fedcmp.runs.method import build_federation, build_method
from fedcmp.runs.models import pick_device
from fedcmp.runs.parts import Kept, build_parts
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Params

HEADER = ("epsilon", "noise", "val loss", "AUC by updates", "AUC by losses", "ceiling")


@dataclass(frozen=True)
class Setting:
    """What is trained; the defaults are those of the table in docs/privacy.md."""

    clients: int = 64
    """Of each of the three groups."""
    samples: int = 16
    """Of each client."""
    rounds: int = 4
    batch_size: int = 8
    passes: int = 2
    clip: float = 0.5
    words: Sequence[str] = field(default=())
    """More settings."""

    def config_words(self, seed: int, epsilon: float | None) -> list[str]:
        """Settings of a run; None: without privacy."""
        words = [
            f"partition.clients={3 * self.clients}",
            "partition.scenario=iid",
            f"data.scenes_per_camera={3 * self.clients * self.samples // 8}",  # eight cameras
            f"federation.rounds={self.rounds}",
            f"federation.batch_size={self.batch_size}",
            f"federation.passes={self.passes}",
            "federation.slots=16",
            "aggregator=fedavg",
            "aggregator.weights=uniform",
            "aggregator.pairwise=0",
            "evaluation.test=false",
            f"run.seed={seed}",
            *self.words,
        ]
        private = ["privacy.kind=central", f"privacy.epsilon={epsilon}", f"privacy.clip={self.clip}"]
        return words + (private if epsilon is not None else [])


def attack(setting: Setting, seed: int, epsilon: float | None, keep: Kept | None = None) -> dict[str, Any]:
    """Trains the members, then asks of each of them and of each outsider whether it took part."""
    config, progress = load_config(None, setting.config_words(seed, epsilon)), Progress(enabled=False)
    data, count = read_data(config), setting.clients
    parts = build_parts(config, data, progress, keep=keep)
    tracker = Trackers()
    everybody = plan_run(data.split.clients, config.federation, seed)
    members = replace(data, plan=plan_run(data.split.clients[:count], config.federation, seed))
    states: list[FederationState] = []

    def note(state: FederationState, record: Mapping[str, Any]) -> bool:
        states.append(state)
        return False

    method, team = build_method(config, members.plan), Solo(pick_device(config.run.device))
    federation = build_federation(config, members, method, parts, tracker, progress, team, on_round=note)
    states.append(start(parts.params, federation.aggregator, federation.privacy))
    run(federation, states[0])

    asked = replace(federation, plan=everybody)
    by_updates = torch.zeros(2 * count, dtype=torch.float64)
    for state, after in pairwise(states):
        by_updates += _likeness(asked, state, after.params, count)
    drops = [_mean_loss(asked, states[0].params, held) - _mean_loss(asked, states[-1].params, held)
             for held in data.split.clients[: 2 * count]]  # fmt: skip
    privacy = federation.privacy
    return {
        "epsilon": privacy.epsilon(setting.rounds) if privacy else None,
        "noise": privacy.noise if privacy else 0.0,
        "val loss": tracker.records[-1]["val/loss"],
        "by updates": auc(by_updates[:count].tolist(), by_updates[count:].tolist()),
        "by losses": auc(drops[:count], drops[count:]),
        "ceiling": ceiling(privacy.noise, setting.rounds) if privacy else 1.0,
    }


def _likeness(asked: Federation, state: FederationState, after: Params, count: int) -> torch.Tensor:
    """Of each member and outsider: how far the step of this round points where its own update does, ``[2 count]``."""
    found = train_round(asked.field, asked, state, asked.plan.rounds[state.rounds_done]).contributions
    updates = torch.stack([_flat(one.delta) for one in found])
    own = updates[: 2 * count] - updates[2 * count :].mean(0)
    released = _flat({name: after[name] - state.params[name] for name in after})
    return own @ released / own.norm(dim=1)


def _flat(params: Params) -> torch.Tensor:
    return torch.cat([params[name].double().flatten() for name in sorted(params)])


@torch.no_grad()
def _mean_loss(asked: Federation, params: Params, held: Sequence[int]) -> float:
    here = asked.field
    losses, tokens, _ = here.module.eval().scores(here.fetch(list(held)), params)
    return float(losses.sum() / tokens.sum())


def auc(members: Sequence[float], outsiders: Sequence[float]) -> float:
    """The chance that a member scores above an outsider; ties count half.

    >>> auc([2.0, 3.0], [1.0, 2.0])
    0.875
    """
    pairs = [(one > other) + 0.5 * (one == other) for one in members for other in outsiders]
    return sum(pairs) / len(pairs)


def ceiling(noise: float, rounds: int) -> float:
    """The AUC of the best attack on ``rounds`` rounds of noise multiplier ``noise``.

    >>> round(ceiling(math.sqrt(2.0), 1), 4), round(ceiling(1e9, 1), 4)
    (0.6915, 0.5)
    """
    return statistics.NormalDist().cdf(math.sqrt(rounds / 2) / noise)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[50.0, 8.0, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clients", type=int, default=Setting.clients, help="of each of the three groups")
    options = parser.parse_args()
    setting, rows, kept = Setting(clients=options.clients), [], {seed: Kept() for seed in options.seeds}
    for epsilon in [None, *options.epsilons]:
        runs = [attack(setting, seed, epsilon, kept[seed]) for seed in options.seeds]
        mean = {key: statistics.fmean(one[key] for one in runs) for key in runs[0] if key != "epsilon"}
        rows.append({"epsilon": "none" if epsilon is None else f"{epsilon:g}", **mean})
        print(json.dumps({"epsilon": epsilon, "runs": runs}), flush=True)
    print(f"\nmean over seeds {options.seeds}, {options.clients} members\n")
    print(table([[one if isinstance(one, str) else round(one, 3) for one in row.values()] for row in rows], HEADER))


if __name__ == "__main__":
    main()
