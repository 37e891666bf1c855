"""A federated run, from its config to its summary, and one that goes on after it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcmp.build import Kept, build_federation, pick_device
from fedcmp.config import Config, differences, load_config
from fedcmp.distributed.launch import open_team
from fedcmp.distributed.signals import stop_on_signal
from fedcmp.distributed.starter import rank_of
from fedcmp.distributed.team import is_server
from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.evaluation.losses import Evaluation
from fedcmp.experiment.base import Experiment
from fedcmp.experiment.last_state import last_state
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.forecast import first_groups
from fedcmp.federation.kinds import FAULTS
from fedcmp.federation.loop import run, start
from fedcmp.federation.secure import check_secure
from fedcmp.federation.state import FederationState
from fedcmp.report.files import read_object
from fedcmp.report.plan import describe_ranks
from fedcmp.tracking.progress import Progress

MAY_CHANGE = ("launch", "run.name", "run.dir", "run.device", "run.figures", "wandb", "data.max_pixels")
"""Parts of the config that may differ when a run goes on: they do not touch what is computed."""
TO_ACCURACY = ("federation.slots",)
"""Those that may differ, too, but send the same numbers through other kernels: results agree to float32 accuracy."""


def train(
    config: Config,
    label: str = "run",
    progress: Progress | None = None,
    *,
    resume_from: Path | None = None,
    keep: Kept | None = None,
) -> dict[str, Any]:
    """A federated run.

    Args:
        config: its settings.
        label: what its name begins with where the config gives none.
        progress: bars.
        resume_from: the folder of a run that goes on.
        keep: models and features that earlier runs of this process left; this one leaves its own.

    Returns:
        The content of summary.json, with the run folder under ``"folder"``; empty on ranks other than 0. A run that was
        asked to stop (SIGUSR1, SIGTERM) ends at the end of its round with ``"exit": "stopped"``; one whose budget of
        privacy allows fewer rounds than are planned ends with ``"exit": "budget"``.
    """
    with stop_on_signal() as stop, open_team(config.launch, pick_device(config.run.device)) as team:
        check_secure(config.federation, config.aggregator, team.topology.world_size)
        method = config.aggregator.name
        experiment = Experiment(config, method, label, progress or Progress(), team, resume_from, keep)

        if team.topology.world_size > 1:
            _tell_ranks(experiment)

        def rounds(self: Experiment) -> dict[str, Any]:
            tracker = self.tracker
            federation = build_federation(
                config, self.data, self.parts, tracker, self.progress, self.folder.checkpoints
            )
            federation = replace(federation, stop=stop, team=team)
            state = start(federation, self.parts.params)
            if resume_from is not None:
                state, tracker.records = last_state(federation, state, self.folder)
                self.earlier = sum(_spent(tracker.records).values())
                if federation.privacy:
                    federation = replace(federation, privacy=federation.privacy.continued(state.privacy))
            state = run(federation, state)
            protection = federation.privacy
            spent = {"privacy": protection.summary(state.rounds_done)} if protection else {}
            if state.rounds_done < len(federation.rounds):
                return _stopped(self, state, spent)
            for phase, seconds in _spent(tracker.records).items():
                self.seconds[phase] += seconds
            begin = Evaluation.from_record(tracker.records[0]) if is_server(team) else Evaluation(0.0, {})
            return self.finish(
                state.params,
                begin,
                state.best_loss,
                state.samples_seen,
                rounds=state.rounds_done,
                exit_kind="finished" if state.rounds_done == len(self.data.plan.rounds) else "budget",
                extra=spent or _counted(tracker.records),
            )

        summary = experiment.run(rounds)
        return {**summary, "folder": str(experiment.folder.path)} if summary else {}


def _spent(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of the rounds, by phase."""
    phases = ("train", "aggregate", "evaluate", "save")
    return {phase: sum(record.get(f"seconds/{phase}", 0.0) for record in records) for phase in phases}


def _counted(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What went wrong with clients over the whole run: all in all, by kind, and what cost nothing in the end."""

    def total(key: str) -> int:
        return sum(record.get(key, 0) for record in records)

    kinds = {kind: total(f"left_out/{kind}") for kind in FAULTS}
    return {
        "updates_left_out": total("clients_left_out"),
        "left_out": {kind: count for kind, count in kinds.items() if count},
        "clients_retried": total("clients_retried"),
        "clients_dropped": total("clients_dropped"),
    }


def reopen(path: Path, overrides: Sequence[str] = (), file: Path | None = None) -> Config:
    """The config with which a run goes on.

    Args:
        path: the run folder.
        overrides: of what may change, ``MAY_CHANGE`` and ``TO_ACCURACY``; others only if they say what the run has
            already.
        file: the config file that the run began with; None: what the run folder holds.

    Raises:
        RunFolderError: no such run.
        CheckpointError: the settings would change what is computed.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path} is no run: it has no {folder.config.name}")
    config = load_config(file or folder.config, overrides)
    changed = [
        change for change in differences(load_config(folder.config), config)
        if not any(f"{change.split(':')[0]}.".startswith(f"{part}.") for part in MAY_CHANGE + TO_ACCURACY)
    ]  # fmt: skip
    if changed:
        raise CheckpointError(f"{path} cannot go on with other settings: {'; '.join(changed)}; start a new run instead")
    return config


def resume(
    path: Path,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    file: Path | None = None,
    keep: Kept | None = None,
) -> dict[str, Any]:
    """Goes on with a run that was stopped or killed, from its last checkpoint, to the bits of an uninterrupted run.

    Args:
        path, overrides, file: as for ``reopen``.
        keep: as for ``train``.

    Returns:
        As ``train``; of a run that is finished already, its summary.

    Raises:
        RunFolderError: no such run.
        CheckpointError: other settings would change what is computed, or no checkpoint can be read.
    """
    config, folder = reopen(path, overrides, file), RunFolder(path)
    if folder.summary.is_file():
        summary = _summary(folder)
        if summary.get("exit") in ("finished", "budget"):
            return {**summary, "folder": str(path)} if (rank_of() or (0, 0))[0] == 0 else {}
    return train(config, progress=progress, resume_from=path, keep=keep)


def _summary(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_object(folder.summary)
    except RunFolderError as error:
        raise CheckpointError(f"{folder.path} cannot go on: {error}") from error


def _tell_ranks(self: Experiment) -> None:
    """Rank 0 says on standard error who trains whom."""
    devices = self.team.collect(str(self.team.device))
    if is_server(self.team):
        groups = first_groups(self.data.plan, self.config.federation.slots, self.team.topology)
        print(describe_ranks(groups, devices), file=sys.stderr, flush=True)


def _stopped(self: Experiment, state: FederationState, extra: dict[str, Any]) -> dict[str, Any]:
    """A short summary: whoever asked to stop gives little time."""
    if not is_server(self.team):
        return {}
    done = {"rounds": state.rounds_done, "samples_seen": state.samples_seen}
    summary = {**self.head(), **done, **extra, "exit": "stopped"}
    self.folder.write_json(self.folder.summary, summary)
    self.tracker.close(summary)
    return summary
