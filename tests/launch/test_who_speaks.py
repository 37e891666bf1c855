"""Of many ranks that end with one error, one says so."""

from __future__ import annotations

import os

import pytest

from fedcmp import cli
from fedcmp.cli import entry
from fedcmp.distributed.messages import raise_first, write_failure
from fedcmp.errors import ConfigError, DataError


def met(rank: int, ranks: tuple[int, ...]) -> Exception:
    """The error with which a rank ends after all have agreed on what some of them met."""
    error = DataError("no such picture")
    texts = [write_failure(error) if one in ranks else "" for one in range(4)]
    with pytest.raises(DataError) as caught:
        raise_first(texts, rank, error if rank in ranks else None)
    return caught.value


@pytest.mark.parametrize(("kind", "speakers"), [("agreed", {1: "ranks 1, 3"}), ("before ranks meet", {0: "", 2: ""}),
                                                ("alone", dict.fromkeys(range(4), ""))])  # fmt: skip
def test_which_ranks_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, speakers: dict[int, str]
) -> None:
    """Of four ranks, two on each node: the first that met it; the first of each node; each that fails alone."""
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    for rank in range(4):
        error = {"agreed": met(rank, (1, 3)), "alone": DataError("torn")}.get(kind, ConfigError("unknown key"))

        def fail(parsed: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setitem(cli.COMMANDS, "train", fail)
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank % 2), ("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2)):
            monkeypatch.setitem(os.environ, name, str(value))
        assert cli.main(["train"]) == 2
        printed = capsys.readouterr().err
        said = f"{speakers[rank] or f'rank {rank}'}: fedcmp: error: " if rank in speakers else ""
        assert printed.startswith(said)
        assert bool(said) == bool(printed) == (not waited), "a rank with nothing to report waits for those that have"
        waited.clear()
