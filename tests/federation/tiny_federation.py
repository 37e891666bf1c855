"""A federation of three clients on random features, in memory; what many tests of the round loop share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.evaluation.losses import EvalData
from fedcmp.federation.checkpoint import FederationState, list_checkpoints, load_checkpoint
from fedcmp.federation.federation import Federation
from fedcmp.federation.here import Here
from fedcmp.federation.loop import run, start
from fedcmp.federation.privacy import make_protection
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig
from fedcmp.privacy.settings import PrivacyConfig
from fedcmp.tracking.progress import Progress

CLIENTS = [tuple(range(8)), tuple(range(8, 20)), tuple(range(20, 32))]
PARAMS = init_params(96, 96, ProjectorConfig(hidden=24), torch.Generator().manual_seed(0))


class Memory:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def log(self, record) -> None:
        self.records.append(dict(record))

    def close(self, summary, files=()) -> None: ...


def fetch(positions) -> dict[str, torch.Tensor]:
    rows = []
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(5, 300, (1, 5), generator=generator)
        rows.append((torch.randn(1, 4, 96, generator=generator), ids, ids.clone()))
    return dict(zip(("features", "input_ids", "labels"), map(torch.cat, zip(*rows, strict=True)), strict=True))


_fetch = fetch


def poisoned(positions) -> dict[str, torch.Tensor]:
    batch = fetch(positions)
    batch["features"][[8 <= position < 20 for position in positions]] = float("nan")
    return batch


def federation(
    llm: LanguageModel, method: str = "fedadam", settings: dict | None = None, fetch=fetch, attack=None, **changes
) -> Federation:
    """``settings`` are of the federation; ``changes`` are other parts."""
    module, held_out = ProjectorAlignment(None, llm, PARAMS), EvalData(_fetch, ("a", "a", "b", "b", "b"), batch_size=2)
    config = FederationConfig(**{"rounds": 3, "batch_size": 2, "slots": 2, **(settings or {})})
    whole = Federation(
        field=Here(module, fetch, held_out, attack),
        aggregator=build_aggregator(AggregatorConfig(method)),
        plan=plan_run(CLIENTS, config, seed=0),
        config=config,
        optimizer=OptimizerConfig(),
        tracker=Memory(),
        progress=Progress(enabled=False),
    )
    return dataclasses.replace(whole, **changes)


CENTRAL = PrivacyConfig(kind="central", noise=2.0, clip=0.5, accountant="rdp")


def private(llm: LanguageModel, method: str = "fedavg", change: dict | None = None, secure: str = "none",
            **changes: Any) -> Federation:  # fmt: skip
    """A federation under privacy; ``change`` is of CENTRAL."""
    aggregator = build_aggregator(AggregatorConfig(method, weights="uniform", pairwise=0))
    aggregator = dataclasses.replace(aggregator, measures=False)
    whole = federation(llm, settings={"secure": secure, "slots": 1}, aggregator=aggregator, **changes)
    config = dataclasses.replace(CENTRAL, **(change or {}))
    return dataclasses.replace(whole, privacy=make_protection(config, whole.plan, 0))


def finish(whole: Federation) -> FederationState:
    return run(whole, begin(whole))


def begin(whole: Federation) -> FederationState:
    return start(PARAMS, whole.aggregator, whole.privacy)


def stop_and_resume(whole: Federation, folder: Path) -> FederationState:
    """Stops after the second round, and goes on from the checkpoint."""
    calls = iter([False, True])
    stopped = dataclasses.replace(whole, checkpoints=folder, stop=lambda: next(calls), tracker=Memory())
    assert run(stopped, begin(stopped)).rounds_done == 2
    return run(whole, load_checkpoint(list_checkpoints(folder)[-1]))


def without_seconds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if not key.startswith("seconds/")} for one in records]


def flat(value) -> list[float]:
    """All numbers of nested containers."""
    if isinstance(value, dict | list):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in flat(one)]
    return torch.as_tensor(value).flatten().tolist()
