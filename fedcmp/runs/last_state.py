"""Where a run that was stopped or killed goes on: its last checkpoint that is whole and has its record."""

from __future__ import annotations

import json
import logging
from typing import Any

from fedcmp.distributed.team import is_server
from fedcmp.errors import CheckpointError, RunFolderError
from fedcmp.federation.checkpoint import FederationState, list_checkpoints, load_checkpoint, round_of
from fedcmp.federation.folder import RunFolder
from fedcmp.runs.run import Run, on_server
from fedcmp.tracking.tracker import read_records

log = logging.getLogger(__name__)


def last_state(run: Run, fresh: FederationState) -> tuple[FederationState, list[dict[str, Any]]]:
    """The state after the last round that can be read, and the records up to it, on every rank.

    metrics.jsonl is cut back to them. Of a run that ended before its first round was saved and recorded: ``fresh``,
    and no records.

    Raises:
        CheckpointError: rounds were done, and no checkpoint of them can be used.
        RunFolderError: rounds would be released twice, see ``privacy.stream``.
    """
    team, privacy = run.team, run.method.privacy
    again = privacy is None or privacy.repeatable
    found = on_server(team, lambda: last_kept(fresh, run.folder, again))
    state, records = found or (fresh, [])
    counts = team.share((state.rounds_done, state.samples_seen, state.best_loss))
    params, local = team.share((state.params, state.aggregator["local"]))
    spent, records = team.share(state.privacy), team.share(records)
    device = team.device
    params = {name: value.to(device) for name, value in params.items()}
    kept = _to(state.aggregator, device) if is_server(team) else fresh.aggregator
    whole = FederationState(
        params, {**kept, "local": _to(local, device)}, *counts, local=_to(state.local, device), privacy=spent
    )
    return whole, records


def last_kept(fresh: FederationState, folder: RunFolder, again: bool) -> tuple[FederationState, list[dict[str, Any]]]:
    """The same for one process.

    A process that is killed may leave a checkpoint that was not logged yet; a disk may lose or alter one.

    Args:
        fresh: the state before the first round.
        folder: the run's.
        again: whether a round that has a record may run a second time.
    """
    first: CheckpointError | None = None
    recorded, checkpoints = _recorded(folder), list_checkpoints(folder.checkpoints)
    for path in reversed(checkpoints):
        try:
            state = load_checkpoint(path)
            records = _up_to(state.rounds_done, recorded, folder, again)
        except CheckpointError as error:
            first = first or error
            continue
        if first is not None:
            log.warning("%s; the run goes on from the one before, round %d", first, state.rounds_done)
        folder.write_text(folder.metrics, "".join(json.dumps(record) + "\n" for record in records))
        return state, records
    _up_to(0, recorded, folder, again)
    done = max((one["round"] for one in recorded), default=0)
    if first is not None and (done or round_of(checkpoints[-1]) > 1):
        raise first
    if done:
        raise CheckpointError(
            f"{folder.path} cannot go on: it has records of {done} rounds, but no checkpoint in {folder.checkpoints}; "
            "bring the checkpoints back, or start a new run"
        )
    if first is not None:  # the kill came between the first checkpoint and its record
        log.warning("%s; the run begins again, of which no round was recorded", first)
    folder.write_text(folder.metrics, "")  # the first round begins again, and so do the records
    return fresh, []


def _recorded(folder: RunFolder) -> list[dict[str, Any]]:
    """All records that are whole."""
    try:
        records = read_records(folder.metrics)
        if not all(isinstance(one["round"], int) for one in records):
            raise TypeError("a round is no number")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {folder.metrics}: {error!r}") from error
    return records


def _up_to(rounds_done: int, recorded: list[dict[str, Any]], folder: RunFolder, again: bool) -> list[dict[str, Any]]:
    """The records up to a round; later ones will be made again."""
    records = [one for one in recorded if one["round"] <= rounds_done]
    if len(recorded) > len(records) and not again:
        raise RunFolderError(
            f"{folder.path} cannot go on from round {rounds_done}: round {rounds_done + 1} was released, and with "
            "privacy.stream=system its noise cannot be drawn again; a second release would not be counted"
        )
    if rounds_done and (not records or records[-1]["round"] < rounds_done):
        raise CheckpointError(f"{folder.metrics} has no record of round {rounds_done}, which a checkpoint has")
    return records


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to(one, device) for key, one in value.items()}
    return value.to(device) if hasattr(value, "to") else value
