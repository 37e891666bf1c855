"""Whole runs: federated, centralized, local, and the evaluation of what they left. Each returns its summary."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fedcmp.build import (
    Data,
    Parts,
    build_federation,
    build_parts,
    build_tracker,
    check_models,
    pick_device,
    read_data,
)
from fedcmp.config import Config, load_config, to_yaml
from fedcmp.data.partition import manifest
from fedcmp.federation.baselines import client_batches, fit, union_batches
from fedcmp.federation.checkpoint import load_projector, save_projector
from fedcmp.federation.evaluate import Evaluation, caption, evaluate, quality
from fedcmp.federation.folder import RunFolder, claim, open_run
from fedcmp.federation.loop import run, start
from fedcmp.federation.state import params_sha256
from fedcmp.module import ProjectorAlignment, lr_factor
from fedcmp.report.captions import Example, draw_captions
from fedcmp.report.summary import versions
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Tracker
from fedcmp.types import Params, Scalars


class Experiment:
    """What all kinds of runs share: the folder, the data, the clock and the end.

    Args:
        config: the run's settings, checked.
        method: ``fedavg``, ``centralized``, ``local``, ...
        label: what the run's name begins with where the config gives none.
        progress: bars.
    """

    def __init__(self, config: Config, method: str, label: str, progress: Progress) -> None:
        self.t0 = time.perf_counter()
        self.config, self.method, self.progress = config, method, progress
        self.seconds: dict[str, float] = defaultdict(float)
        check_models(config)
        self.data: Data = read_data(config)
        folder = Path(config.run.dir).expanduser() if config.run.dir else None
        named = config.run.name or f"{label}-{method}"
        self.folder: RunFolder = claim(folder, named, number=config.run.name is None)
        self.name = config.run.name or self.folder.path.name
        self.folder.write_text(self.folder.config, to_yaml(config))
        self.folder.write_json(self.folder.split, manifest(self.data.split, self.data.train))

    def run(self, train: Any) -> dict[str, Any]:
        """Prepares, trains with ``train(self)`` and finishes; a failure leaves a summary that says so."""
        try:
            with _clock(self.seconds, "prepare"):
                self.parts: Parts = build_parts(self.config, self.data, self.progress)
                self.tracker = build_tracker(self.config, self.folder, self.name)
            summary: dict[str, Any] = train(self)
        except BaseException as error:
            failed = {**self._head(), "exit": "failed", "error": f"{type(error).__name__}: {error}"}
            with suppress(OSError):  # the first error is the one to tell
                self.folder.write_json(self.folder.summary, failed)
            raise
        return summary

    def evaluate(self, params: Params, *, shuffle: bool = False) -> Evaluation:
        """Held-out losses of ``params``."""
        with _clock(self.seconds, "evaluate"):
            return evaluate(self.parts.module, params, self.parts.eval_data, shuffle_pictures=shuffle)

    def finish(
        self,
        params: Params,
        begin: Evaluation,
        best: float,
        samples: int,
        *,
        rounds: int = 0,
        exit_kind: str = "finished",
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Evaluates the end, writes projector, pictures and summary."""
        end, shuffled = self.evaluate(params), self.evaluate(params, shuffle=True)
        save_projector(self.folder.projector, params)
        with _clock(self.seconds, "captions"):
            scores = self._captions(params)
        seconds = {"total": time.perf_counter() - self.t0, **self.seconds}
        summary = {
            **self._head(),
            "rounds": rounds,
            **quality(begin, end, shuffled, best, scores),
            "samples_seen": samples,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "samples_per_second": round(samples / max(1e-9, self.seconds["train"]), 1),
            "projector_sha256": params_sha256(params),
            **(extra or {}),
            "exit": exit_kind,
        }
        self.folder.write_json(self.folder.summary, summary)
        self.tracker.close(summary, [path for path in (self.folder.captions,) if path.exists()])
        return summary

    def _head(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "seed": self.config.run.seed,
            "versions": versions(),
            "device": _device_name(pick_device(self.config.run.device)),
        }

    def _captions(self, params: Params) -> Scalars:
        settings, eval_data, val = self.config.evaluation, self.parts.eval_data, self.data.val
        positions = spread(eval_data.domains, max(settings.captions, settings.examples))
        if not positions:
            return {}
        texts = caption(self.parts.module, params, eval_data, positions, settings.max_tokens)
        shown = range(min(settings.examples, len(positions)))
        examples = [
            Example(self.data.source.image(val[p]), val[p].domain, val[p].caption, texts[place])
            for place, p in ((place, positions[place]) for place in shown)
        ]
        if examples:
            draw_captions(examples, self.folder.captions)
        scored = min(settings.captions, len(positions))
        return self.data.source.score(texts[:scored], [val[p] for p in positions[:scored]])


def train(config: Config, label: str = "run", progress: Progress | None = None) -> dict[str, Any]:
    """A federated run.

    Returns:
        The content of summary.json, with the run folder under ``"folder"``.
    """
    experiment = Experiment(config, config.aggregator.name, label, progress or Progress())

    def rounds(self: Experiment) -> dict[str, Any]:
        recorder = _Recorder(self.tracker)
        federation = build_federation(config, self.data, self.parts, recorder, self.progress, self.folder.checkpoints)
        state = run(federation, start(federation, self.parts.params))
        for phase in ("train", "aggregate", "evaluate", "save"):
            self.seconds[phase] += sum(record.get(f"seconds/{phase}", 0.0) for record in recorder.records)
        begin = Evaluation.from_record(recorder.records[0])
        done = "finished" if state.rounds_done == len(self.data.plan.rounds) else "stopped"
        return self.finish(
            state.params, begin, state.best_loss, state.samples_seen, rounds=state.rounds_done, exit_kind=done
        )

    return {**experiment.run(rounds), "folder": str(experiment.folder.path)}


def train_centralized(
    config: Config, label: str = "run", progress: Progress | None = None, *, tune: bool = False
) -> dict[str, Any]:
    """The same module and samples in one place: an upper bound, if its batch size and learning rate are tuned.

    Args:
        tune: try every pair of ``centralized.batch_sizes`` and ``centralized.lrs`` and keep the best.
    """
    experiment = Experiment(config, "centralized", label, progress or Progress())
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
        scores = evaluate(module, params, parts.eval_data)
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


def train_local(config: Config, label: str = "run", progress: Progress | None = None) -> dict[str, Any]:
    """Each client alone, on its own samples: the lower bound. Losses are means over the clients' projectors."""
    experiment = Experiment(config, "local", label, progress or Progress())

    def clients(self: Experiment) -> dict[str, Any]:
        parts = self.parts
        assert parts.fetch is not None, "these parts were built for training"
        begin, shuffled, ends, own, samples = self.evaluate(parts.params), [], [], {}, 0
        for client in range(config.partition.clients):
            batches = client_batches(self.data.plan, client)
            if not batches:
                continue
            module = ProjectorAlignment(
                parts.module.tower, parts.module.llm, parts.params, config.optimizer, len(batches)
            ).to(next(parts.module.parameters()).device)
            with _clock(self.seconds, "train"), self.progress.bar(len(batches), f"client {client} alone") as bar:
                params = fit(module, batches, parts.fetch, on_step=bar, root=str(self.folder.path))
            folder = self.folder.path / "clients" / str(client)
            folder.mkdir(parents=True)
            save_projector(folder / "projector.safetensors", params)
            ends.append(self.evaluate(params))
            shuffled.append(self.evaluate(params, shuffle=True))
            samples += sum(len(batch) for batch in batches)
            domains = {self.data.train[position].domain for batch in batches for position in batch}
            held = [loss for name, loss in ends[-1].by_domain.items() if name in domains]
            own[str(client)] = {"domains": sorted(domains), "own": sum(held) / max(1, len(held)), "all": ends[-1].loss}
            self.tracker.log({"round": client + 1, "samples_seen": samples, "client": client, **ends[-1].scalars()})
        end = _mean(ends)
        summary = {
            **self._head(),
            "rounds": 0,
            **quality(begin, end, _mean(shuffled), end.loss, {}),
            "clients": own,
            "samples_seen": samples,
            "seconds": {"total": round(time.perf_counter() - self.t0, 3), **self.seconds},
            "samples_per_second": round(samples / max(1e-9, self.seconds["train"]), 1),
            "exit": "finished",
        }
        self.folder.write_json(self.folder.summary, summary)
        self.tracker.close(summary)
        return summary

    return {**experiment.run(clients), "folder": str(experiment.folder.path)}


def evaluate_run(path: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates the projector of a run on the held-out samples of its config; writes evaluation.json."""
    folder = open_run(path)
    config = load_config(folder.config, [*overrides, f"model.projector.init={json.dumps(str(folder.projector))}"])
    check_models(config)
    data = read_data(config)
    parts = build_parts(config, data, progress or Progress(), training=False)
    params = {name: value.to(next(iter(parts.params.values())).device) for name, value in parts.params.items()}
    end = evaluate(parts.module, params, parts.eval_data)
    shuffled = evaluate(parts.module, params, parts.eval_data, shuffle_pictures=True)
    positions = spread(parts.eval_data.domains, config.evaluation.captions)
    texts = caption(parts.module, params, parts.eval_data, positions, config.evaluation.max_tokens)
    result = {
        "val/loss": end.loss,
        "val/domains": end.by_domain,
        "worst_domain": {"name": end.worst[0], "loss": end.worst[1]},
        "val/loss_shuffled": shuffled.loss,
        "image_use": shuffled.loss - end.loss,
        **data.source.score(texts, [data.val[p] for p in positions]),
        "projector_sha256": params_sha256(load_projector(folder.projector)),
    }
    folder.write_json(folder.path / "evaluation.json", result)
    return result


def spread(domains: Sequence[str], count: int) -> list[int]:
    """``count`` positions, one domain after the other in turn.

    >>> spread(["a", "a", "a", "b", "b"], 4)
    [0, 3, 1, 4]
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, domain in enumerate(domains):
        members[domain].append(position)
    longest = max((len(group) for group in members.values()), default=0)
    turns = [group[turn] for turn in range(longest) for group in members.values() if turn < len(group)]
    return turns[:count]


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    names = evaluations[0].by_domain
    by_domain = {name: sum(one.by_domain[name] for one in evaluations) / len(evaluations) for name in names}
    return Evaluation(sum(by_domain.values()) / len(by_domain), by_domain)


class _Recorder:
    """A tracker that remembers."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.records: list[dict[str, Any]] = []

    def log(self, record: Any) -> None:
        self.records.append(dict(record))
        self.tracker.log(record)

    def close(self, summary: Any, files: Sequence[Path] = ()) -> None:
        self.tracker.close(summary, files)


class _clock:  # noqa: N801 - reads as a verb
    """Adds the seconds of a block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.t0 = time.perf_counter()

    def __exit__(self, *args: object) -> None:
        self.seconds[self.phase] += time.perf_counter() - self.t0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
