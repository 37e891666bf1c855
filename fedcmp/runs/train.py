"""A federated run, from its config to its summary, and one that goes on after it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcmp.config import Config, differences, load_config
from fedcmp.distributed.launch import open_team, rank_of
from fedcmp.distributed.team import is_server
from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.evaluation.losses import Evaluation
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.forecast import first_groups
from fedcmp.federation.fusing import check_secure
from fedcmp.federation.loop import run as run_rounds
from fedcmp.federation.loop import start
from fedcmp.federation.settings import FAULTS
from fedcmp.lifetime import stop_on_signal
from fedcmp.report.files import read_object
from fedcmp.report.plan import describe_ranks
from fedcmp.runs.last_state import last_state
from fedcmp.runs.method import build_federation
from fedcmp.runs.models import pick_device
from fedcmp.runs.parts import Kept
from fedcmp.runs.run import Run, open_run
from fedcmp.tracking.progress import Progress

MAY_CHANGE = ("launch", "run.name", "run.dir", "run.device", "run.figures", "wandb", "data.max_pixels")
"""Parts of the config that may differ when a run goes on: they do not touch what is computed."""
TO_ACCURACY = ("federation.slots",)
"""Those that may differ, too, but send the same numbers through other kernels: results agree to float32 accuracy."""
PHASES = ("train", "aggregate", "evaluate", "save")
"""Phases of a round, by their seconds in a record."""


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
        with open_run(config, config.aggregator.name, label, progress, team, resume_from, keep) as run:
            _print_ranks(run)
            method, tracker, earlier = run.method, run.tracker, 0.0
            if method.attack:
                run.head["byzantine"] = sorted(method.attack.byzantine)
            state = start(run.parts.params, method.aggregator, method.privacy)
            if resume_from is not None:
                state, tracker.records = last_state(run, state)
                earlier = sum(phase_seconds(tracker.records).values())
                if method.privacy:
                    method = method._replace(privacy=method.privacy.continued(state.privacy))
            parts, folder = run.parts, run.folder
            federation = build_federation(
                config, run.data, method, parts, tracker, run.progress, team, checkpoints=folder.checkpoints, stop=stop
            )
            state = run_rounds(federation, state)
            for phase, seconds in phase_seconds(tracker.records).items():
                run.clock.add(phase, seconds)
            extra = {"privacy": method.privacy.summary(state.rounds_done)} if method.privacy else {}
            if state.rounds_done < len(federation.rounds):  # a short summary: little time is left after the signal
                summary = run.close({"rounds": state.rounds_done, **extra}, state.samples_seen, "stopped", earlier)
            else:
                planned = state.rounds_done == len(run.data.plan.rounds)
                begin = Evaluation.from_record(tracker.records[0]) if is_server(team) else Evaluation(0.0, {})
                kind = "finished" if planned else "budget"
                more = {"rounds": state.rounds_done, **(extra or count_faults(tracker.records))}
                seen = state.samples_seen
                summary = run.finish(
                    state.params, begin, state.best_loss, seen, exit_kind=kind, earlier=earlier, **more
                )
    return {**summary, "folder": str(folder.path)} if summary else {}


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
    try:
        summary = read_object(folder.summary) if folder.summary.is_file() else {}
    except RunFolderError as error:
        raise CheckpointError(f"{path} cannot go on: {error}") from error
    if summary.get("exit") in ("finished", "budget"):
        return {**summary, "folder": str(path)} if (rank_of() or (0, 0))[0] == 0 else {}
    return train(config, progress=progress, resume_from=path, keep=keep)


def reopen(path: Path, overrides: Sequence[str] = (), file: Path | None = None) -> Config:
    """The config with which a run goes on.

    Args:
        path: the run folder.
        overrides: of what may change, ``MAY_CHANGE`` and ``TO_ACCURACY``; others only if they say what the run has
            already.
        file: the config file that the run began with; None: what the run folder has.

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


def _print_ranks(run: Run) -> None:
    """Rank 0 prints to standard error which ranks train which clients."""
    if run.team.topology.world_size == 1:
        return
    devices = run.team.collect(str(run.team.device))
    if is_server(run.team):
        groups = first_groups(run.data.plan, run.config.federation.slots, run.team.topology)
        print(describe_ranks(groups, devices), file=sys.stderr, flush=True)


def phase_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the rounds, by phase."""
    return {phase: sum(record.get(f"seconds/{phase}", 0.0) for record in records) for phase in PHASES}


def count_faults(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Faults of clients over the whole run: in all, by kind, and those that cost nothing in the end."""
    keys = ("clients_left_out", "clients_retried", "clients_dropped", *(f"left_out/{kind}" for kind in FAULTS))
    total = {key: sum(record.get(key, 0) for record in records) for key in keys}
    return {
        "updates_left_out": total["clients_left_out"],
        "left_out": {kind: count for kind in FAULTS if (count := total[f"left_out/{kind}"])},
        "clients_retried": total["clients_retried"],
        "clients_dropped": total["clients_dropped"],
    }
