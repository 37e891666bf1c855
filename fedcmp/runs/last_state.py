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
    spent, records = team.share((state.privacy, records))
    params, local = team.share((state.params, state.aggregator["local"]))
    kept = state.aggregator if is_server(team) else fresh.aggregator

    def here(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: here(one) for key, one in value.items()}
        return value.to(team.device) if hasattr(value, "to") else value

    aggregator, own = here({**kept, "local": local}), here(state.local)
    return FederationState(here(params), aggregator, *counts, local=own, privacy=spent), records


def last_kept(fresh: FederationState, folder: RunFolder, again: bool) -> tuple[FederationState, list[dict[str, Any]]]:
    """The same for one process.

    A process that is killed may leave a checkpoint that was not logged yet; a disk may lose or alter one.

    Args:
        fresh: the state before the first round.
        folder: the run's.
        again: whether a round that has a record may run a second time.
    """
    try:
        recorded = read_records(folder.metrics)
        if not all(isinstance(one["round"], int) for one in recorded):
            raise TypeError("a round is no number")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {folder.metrics}: {error!r}") from error
    done = max((one["round"] for one in recorded), default=0)
    first: CheckpointError | None = None
    checkpoints = list_checkpoints(folder.checkpoints)
    for path in [*reversed(checkpoints), None]:
        try:
            state = fresh if path is None else load_checkpoint(path)
        except CheckpointError as error:
            first = first or error
            continue
        number = state.rounds_done
        records = [one for one in recorded if one["round"] <= number]
        if len(recorded) > len(records) and not again:
            raise RunFolderError(
                f"{folder.path} cannot go on from round {number}: round {number + 1} was released, and with "
                "privacy.stream=system its noise cannot be drawn again; a second release would not be counted"
            )
        if path is None and (done or (first is not None and round_of(checkpoints[-1]) > 1)):
            raise first or CheckpointError(
                f"{folder.path} cannot go on: it has records of {done} rounds, but no checkpoint in "
                f"{folder.checkpoints}; bring the checkpoints back, or start a new run"
            )
        if number and (not records or records[-1]["round"] < number):
            first = first or CheckpointError(f"{folder.metrics} has no record of round {number}, of which {path} is")
            continue
        if first is not None:
            log.warning("%s; the run goes on from the one before, round %d", first, number)
        # of a run that ended before its first round was recorded, the records begin again, too
        kept = records if path is not None else []
        folder.write_text(folder.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        return state, kept
    raise AssertionError("the last turn returns or raises")
