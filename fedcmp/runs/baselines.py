"""Runs without rounds: all data in one place (upper bound), each client alone (lower bound)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from fedcmp.config import Config
from fedcmp.errors import ConfigError, label_client
from fedcmp.evaluation.assess import mean_measure
from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.evaluation.losses import Evaluation, Scored, evaluate, mean, own_and_all, progress_made
from fedcmp.federation.checkpoint import save_projector
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig, lr_factor
from fedcmp.runs.fit import client_batches, fit, union_batches
from fedcmp.runs.parts import Kept
from fedcmp.runs.run import Run, open_run
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
    _refuse_privacy(config, "centralized")
    settings = config.centralized
    grid = [(settings.batch_sizes[0], config.optimizer.lr)]
    if tune:
        grid = [(size, lr) for size in settings.batch_sizes for lr in settings.lrs]
    with open_run(config, "centralized", label, progress, keep=keep) as run:
        begin = run.evaluate(run.parts.params)
        cells, best = [], None
        for size, lr in grid:
            params, records = _train_all(run, begin, size, lr)
            cells.append({"batch_size": size, "lr": lr, "val/loss": records[-1]["val/loss"]})
            if best is None or cells[-1]["val/loss"] < best[0]["val/loss"]:
                best = cells[-1], params, records
        assert best is not None, "the grid has at least one cell"
        cell, params, records = best
        for record in records:
            run.tracker.log(record)
        run.clock.seconds["train"] /= len(grid)  # samples per second are those of one training
        lowest, seen = min(record["val/loss"] for record in records), records[-1]["samples_seen"]
        chosen = {key: cell[key] for key in ("batch_size", "lr")}
        summary = run.finish(params, begin, lowest, seen, chosen=chosen, tuning=cells)
    return {**summary, "folder": str(run.folder.path)}


def train_local(
    config: Config, label: str = "run", progress: Progress | None = None, *, keep: Kept | None = None
) -> dict[str, Any]:
    """Each client alone, on its own samples: the lower bound. Figures are means over the clients' projectors.

    Args:
        keep: models and features that earlier runs of this process left; this one leaves its own.
    """
    _refuse_privacy(config, "local")
    with open_run(config, "local", label, progress, keep=keep) as run:
        parts, names, samples = run.parts, run.data.plan.names, 0
        begin, own = run.evaluate(parts.params), dict[str, dict[str, Any]]()
        ends: list[Evaluation] = []
        tests: list[dict[str, Any]] = []
        work = {client: batches for client in range(len(names)) if (batches := client_batches(run.data.plan, client))}
        with run.progress.bar(sum(map(len, work.values())), "clients alone, steps") as bar:
            for client, batches in work.items():
                step = partial(bar, 1, {"now": label_client(client, names)})
                params = _fit(run, config.optimizer, batches, step)
                folder = run.folder.path / "clients" / str(client)
                folder.mkdir(parents=True)
                save_projector(folder / "projector.safetensors", params)
                end = run.evaluate(params)
                ends.append(end)
                domains = {run.data.train[position].domain for batch in batches for position in batch}
                own[str(client)] = {"name": names[client], "domains": sorted(domains)}
                own[str(client)] |= own_and_all(end.by_domain, domains)
                if (measured := run.measure(params, folder)) is not None:
                    tests.append(measured[0])
                    own[str(client)] |= _on_test(*measured, domains)
                samples += sum(len(batch) for batch in batches)
                record = {"round": client + 1, "samples_seen": samples, "client": client, **end.scalars()}
                run.tracker.log(record)
        end = _mean(ends)
        whole = mean_measure(tests) if tests else None
        if whole:  # of their own pictures: what they do with strange ones says nothing
            uses = [(one["test"]["own"], *one["image_use"].values()) for one in own.values()]
            keys = ("loss", "image_use", "image_use_se")
            whole["ignores_pictures"] = all(ignores_pictures(dict(zip(keys, use, strict=True))) for use in uses)
        content = {"rounds": 0, **progress_made(begin, end, end.loss), "test": whole, "clients": own}
        summary = run.close(content, samples)
    return {**summary, "folder": str(run.folder.path)}


def _on_test(tested: Mapping[str, Any], scored: Scored, domains: Collection[str]) -> dict[str, Any]:
    """What the summary says of a client alone on the test samples: losses, and image use on its own domains."""
    rises = [other - loss for other, loss in zip(scored.shuffled, scored.loss, strict=True)]
    use, error = scored.per_token(rises, domains)
    return {"test": own_and_all(tested["domains"], domains), "image_use": {"own": use, "own_se": error}}


def _train_all(run: Run, begin: Evaluation, size: int, lr: float) -> tuple[Params, list[dict[str, Any]]]:
    """A centralized training with one batch size and one learning rate: the end, and records as of rounds."""
    optimizer = dataclasses.replace(run.config.optimizer, lr=lr)
    batches = union_batches(run.data.plan, size, run.config.run.seed)
    records: list[dict[str, Any]] = [{"round": 0, "samples_seen": 0, **begin.scalars()}]

    def point(steps: int, params: Params, loss: float) -> None:
        t0 = time.perf_counter()
        scores = evaluate(run.parts.module, params, run.parts.val_data)
        seconds = time.perf_counter() - t0
        run.clock.add("evaluate", seconds)
        run.clock.add("train", -seconds)
        records.append(
            {
                "round": len(records),
                "samples_seen": steps * size,
                "lr": lr * lr_factor(steps / len(batches), optimizer),
                "train/loss": loss,
                **scores.scalars(),
                "seconds/evaluate": seconds,
            }
        )

    path = run.folder.checkpoints / f"batch-{size}-lr-{lr:g}.ckpt"
    points = min(run.config.federation.rounds, len(batches))
    what = f"centralized: batch {size}, lr {lr:g}"
    with run.progress.bar(len(batches), what) as bar:
        return _fit(run, optimizer, batches, bar, points=points, on_point=point, checkpoint=str(path)), records


def _fit(
    run: Run, optimizer: OptimizerConfig, batches: list[list[int]], on_step: Callable[[], None], **options: Any
) -> Params:
    """Trains a projector of its own between the frozen models of a run; ``options`` go to ``fit``."""
    frozen, fetch = run.parts.module, run.parts.fetch
    assert fetch is not None, "these parts were built for training"
    module = ProjectorAlignment(frozen.tower, frozen.llm, run.parts.params, optimizer, len(batches))
    with run.clock("train"):
        return fit(module.to(run.team.device), batches, fetch, on_step=on_step, root=str(run.folder.path), **options)


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    names = evaluations[0].by_domain
    by_domain = {name: sum(one.by_domain[name] for one in evaluations) / len(evaluations) for name in names}
    return Evaluation(mean(by_domain), by_domain)


def _refuse_privacy(config: Config, what: str) -> None:
    if config.privacy.on:
        raise ConfigError(f"privacy.kind={config.privacy.kind} protects clients in rounds; fedcmp {what} has none")
