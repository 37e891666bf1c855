"""Runs without rounds: all data in one place (upper bound), each client alone (lower bound)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from fedcmp.build import Kept
from fedcmp.config import Config
from fedcmp.errors import ConfigError, label_client
from fedcmp.evaluation.assess import mean_measure
from fedcmp.evaluation.losses import Evaluation, evaluate, mean, progress_made
from fedcmp.experiment.base import Experiment, clock
from fedcmp.federation.baselines import client_batches, fit, union_batches
from fedcmp.federation.checkpoint import save_projector
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import lr_factor
from fedcmp.tracking.progress import Progress
from fedcmp.types import Params


def train_centralized(
    config: Config,
    label: str = "run",
    progress: Progress | None = None,
    *,
    tune: bool = False,
    keep: Kept | None = None,
) -> dict[str, Any]:
    """The same module and samples in one place: an upper bound, if its batch size and learning rate are tuned.

    Args:
        tune: try every pair of ``centralized.batch_sizes`` and ``centralized.lrs`` and keep the best.
        keep: models and features that earlier runs of this process left; this one leaves its own.
    """
    _require_no_privacy(config, "centralized")
    experiment = Experiment(config, "centralized", label, progress or Progress(), keep=keep)
    settings = config.centralized
    grid = [(settings.batch_sizes[0], config.optimizer.lr)]
    if tune:
        grid = [(size, lr) for size in settings.batch_sizes for lr in settings.lrs]

    def cells(self: Experiment) -> dict[str, Any]:
        begin = self.evaluate(self.parts.params)
        best, tuning = None, []
        for size, lr in grid:
            cell = _train_cell(self, begin, size, lr)
            tuning.append({"batch_size": size, "lr": lr, "val/loss": cell[0]})
            if best is None or cell[0] < best[0]:
                best = cell
        assert best is not None, "the grid holds at least one cell"
        _, params, records, chosen = best
        for record in records:
            self.tracker.log(record)
        samples = records[-1]["samples_seen"]
        lowest = min(record["val/loss"] for record in records)
        self.seconds["train"] /= len(grid)  # samples per second are those of one training
        return self.finish(params, begin, lowest, samples, extra={"chosen": chosen, "tuning": tuning})

    return {**experiment.run(cells), "folder": str(experiment.folder.path)}


def _train_cell(
    self: Experiment, begin: Evaluation, size: int, lr: float
) -> tuple[float, Params, list[dict[str, Any]], dict[str, float]]:
    config, parts = self.config, self.parts
    assert parts.fetch is not None, "these parts were built for training"
    optimizer = dataclasses.replace(config.optimizer, lr=lr)
    batches = union_batches(self.data.plan, size, config.run.seed)
    module = ProjectorAlignment(parts.module.tower, parts.module.llm, parts.params, optimizer, len(batches))
    module.to(next(parts.module.parameters()).device)
    records: list[dict[str, Any]] = [{"round": 0, "samples_seen": 0, **begin.scalars()}]
    t0 = time.perf_counter()

    def point(steps: int, params: Params, loss: float) -> None:
        t1 = time.perf_counter()
        scores = evaluate(module, params, parts.val_data)
        records.append(
            {
                "round": len(records),
                "samples_seen": steps * size,
                "lr": lr * lr_factor(steps / len(batches), optimizer),
                "train/loss": loss,
                **scores.scalars(),
                "seconds/evaluate": time.perf_counter() - t1,
            }
        )

    with self.progress.bar(len(batches), f"centralized: batch {size}, lr {lr:g}") as bar:
        params = fit(
            module,
            batches,
            parts.fetch,
            points=min(config.federation.rounds, len(batches)),
            on_point=point,
            on_step=bar,
            root=str(self.folder.path),
            checkpoint=str(self.folder.checkpoints / f"batch-{size}-lr-{lr:g}.ckpt"),
        )
    evaluating = sum(record.get("seconds/evaluate", 0.0) for record in records)
    self.seconds["evaluate"] += evaluating
    self.seconds["train"] += time.perf_counter() - t0 - evaluating
    return records[-1]["val/loss"], params, records, {"batch_size": size, "lr": lr}


def train_local(
    config: Config, label: str = "run", progress: Progress | None = None, *, keep: Kept | None = None
) -> dict[str, Any]:
    """Each client alone, on its own samples: the lower bound. Figures are means over the clients' projectors.

    Args:
        keep: models and features that earlier runs of this process left; this one leaves its own.
    """
    _require_no_privacy(config, "local")
    experiment = Experiment(config, "local", label, progress or Progress(), keep=keep)

    def clients(self: Experiment) -> dict[str, Any]:
        parts = self.parts
        assert parts.fetch is not None, "these parts were built for training"
        begin, own, samples, names = self.evaluate(parts.params), {}, 0, self.data.plan.names
        ends: list[Evaluation] = []
        tests: list[dict[str, Any]] = []
        for client in range(len(names)):
            batches = client_batches(self.data.plan, client)
            if not batches:
                continue
            module = ProjectorAlignment(
                parts.module.tower, parts.module.llm, parts.params, config.optimizer, len(batches)
            ).to(next(parts.module.parameters()).device)
            with (
                clock(self.seconds, "train"),
                self.progress.bar(len(batches), f"{label_client(client, names)} alone") as bar,
            ):
                params = fit(module, batches, parts.fetch, on_step=bar, root=str(self.folder.path))
            folder = self.folder.path / "clients" / str(client)
            folder.mkdir(parents=True)
            save_projector(folder / "projector.safetensors", params)
            ends.append(self.evaluate(params))
            if (tested := self.measured(params)) is not None:
                tests.append(tested)
            samples += sum(len(batch) for batch in batches)
            domains = {self.data.train[position].domain for batch in batches for position in batch}
            held = [loss for name, loss in ends[-1].by_domain.items() if name in domains]
            own[str(client)] = {"name": names[client], "domains": sorted(domains),
                                "own": sum(held) / max(1, len(held)), "all": ends[-1].loss}  # fmt: skip
            self.tracker.log({"round": client + 1, "samples_seen": samples, "client": client, **ends[-1].scalars()})
        end = _mean(ends)
        summary = {
            **self.head(),
            "rounds": 0,
            **progress_made(begin, end, end.loss),
            "test": mean_measure(tests) if tests else None,
            "clients": own,
            "samples_seen": samples,
            "seconds": {"total": round(time.perf_counter() - self.t0, 3), **self.seconds},
            "samples_per_second": round(samples / max(1e-9, self.seconds["train"]), 1),
            "exit": "finished",
        }
        self.folder.write_json(self.folder.summary, summary)
        self.tracker.close(summary, self.artefacts())
        return summary

    return {**experiment.run(clients), "folder": str(experiment.folder.path)}


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    names = evaluations[0].by_domain
    by_domain = {name: sum(one.by_domain[name] for one in evaluations) / len(evaluations) for name in names}
    return Evaluation(mean(by_domain), by_domain)


def _require_no_privacy(config: Config, what: str) -> None:
    if config.privacy.on:
        raise ConfigError(
            f"privacy.kind={config.privacy.kind} protects clients in rounds, and fedcmp {what} has none: it would be "
            "without privacy; say privacy.kind=none"
        )
