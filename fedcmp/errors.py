"""What can go wrong in ways a user can mend. Every message names what was wrong, what was expected and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FedcmpError(Exception):
    """Base of all errors that the command line prints without a traceback."""


class ConfigError(FedcmpError, ValueError):
    """A key, name or value of the configuration is wrong."""


class DataError(FedcmpError, ValueError):
    """A record, picture or cache is wrong; ``kind`` is what it counts as where records are skipped."""

    def __init__(self, message: str, kind: str = "bad records") -> None:
        super().__init__(message)
        self.kind = kind


class RunFolderError(FedcmpError, OSError):
    """The run folder exists already, is not a run, or cannot be written."""


class PlanError(DataError):
    """The samples do not suffice for the rounds; with ``overrides``, if there are any, they do."""

    def __init__(self, message: str, overrides: str) -> None:
        super().__init__(message)
        self.overrides = overrides


class CheckpointError(FedcmpError):
    """A checkpoint is missing, corrupted or belongs to another run."""


class ExportError(FedcmpError):
    """A projector is not worth exporting, or what was written does not do what the run does."""


class AggregationError(FedcmpError):
    """A round cannot be aggregated, for example because too few clients remain."""


class ClientError(FedcmpError):
    """Something failed inside one client.

    Args:
        client_id: the client in which it failed; of clients that train together, the first.
        stage: what the client was doing: ``"train"``, ``"evaluate"``, ...
        message: what went wrong.
        together: labels of all clients that trained in one computation, of which any may have failed.

    >>> print(ClientError(2, "train", "out of memory", together=["client 2", "client 3 (xray)"]))
    one of client 2, client 3 (xray), trained together, failed in train: out of memory
    """

    def __init__(self, client_id: int, stage: str, message: str, together: Sequence[str] = ()) -> None:
        who = ", ".join(together) or f"client {client_id}"
        who = f"one of {who}, trained together," if len(together) > 1 else who
        super().__init__(f"{who} failed in {stage}: {message}")
        self.client_id = client_id
        self.stage = stage


class RankLost(FedcmpError, RuntimeError):
    """A process of the run died or hangs; the others cannot go on without it.

    Args:
        lost: rank -> what is known of it.
        cause: how the others noticed.
    """

    def __init__(self, lost: dict[int, str], cause: str) -> None:
        ranks = ", ".join(map(str, sorted(lost)))
        known = "; ".join(dict.fromkeys(lost[rank] for rank in sorted(lost)))
        were = "ranks {} were lost" if len(lost) > 1 else "rank {} was lost"
        super().__init__(
            f"{were.format(ranks)}: {known} (noticed by: {cause}); the run goes on from its last checkpoint with: "
            "fedcmp train --resume RUN"
        )
        self.lost = tuple(sorted(lost))


def label_client(client_id: int, names: Sequence[str] = ()) -> str:
    """What messages call a client.

    >>> label_client(3), label_client(1, ["photos", "xray"])
    ('client 3', 'client 1 (xray)')
    """
    name = names[client_id] if names else str(client_id)
    return f"client {client_id}" if name == str(client_id) else f"client {client_id} ({name})"


def nearest(name: str, choices: Iterable[str], listed: str | None = None) -> str:
    """A hint for a misspelt name, or the list of choices.

    Args:
        name: as typed.
        choices: what would have been right.
        listed: what stands in place of the list where it is long.

    >>> nearest("fedavgM", ["fedavg", "fedavgm", "fedadam"])
    'did you mean "fedavgm"? (choices: fedadam, fedavg, fedavgm)'
    """
    known = sorted(choices)
    listed = listed or f"choices: {', '.join(known)}"
    by_lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.5)
    alike = [one for one in near if sorted(one) == sorted(name.lower())]  # two letters were exchanged
    match = alike or near
    return f'did you mean "{by_lower[match[0]]}"? ({listed})' if match else listed


def check_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises ConfigError if a setting is none of its choices."""
    if value not in set(choices):
        raise ConfigError(f"{key}: unknown choice {value!r}; {nearest(str(value), choices)}")
