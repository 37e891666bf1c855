"""Of many ranks that end with one error, one says so."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from fedcmp import cli
from fedcmp.cli import entry
from fedcmp.distributed.messages import raise_first, write_failure
from fedcmp.errors import ConfigError, DataError

RANKS = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, error: Exception) -> str:
    """What ``fedcmp train`` prints on a rank of four, two on each node, that ends with an error."""

    def fail(parsed: object) -> int:
        raise error

    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    monkeypatch.setitem(cli.COMMANDS, "train", replace(cli.COMMANDS["train"], run=fail))
    for name, value in {**RANKS, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert cli.main(["train"]) == 2
    printed = capsys.readouterr().err
    assert bool(waited) == (not printed), "who has nothing to say waits for those who have"
    return printed


def met(rank: int, ranks: tuple[int, ...]) -> Exception:
    """The error with which a rank ends after all have agreed on what some of them met."""
    error = DataError("no such picture")
    texts = [write_failure(error) if one in ranks else "" for one in range(4)]
    with pytest.raises(DataError) as caught:
        raise_first(texts, rank, error if rank in ranks else None)
    return caught.value


@pytest.mark.parametrize("rank", range(4))
def test_the_first_rank_that_met_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    printed = said(monkeypatch, capsys, rank, met(rank, (1, 3)))
    assert printed == ("ranks 1, 3: fedcmp: error: no such picture\n" if rank == 1 else "")


@pytest.mark.parametrize("rank", range(4))
def test_one_on_each_node_before_ranks_meet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    printed = said(monkeypatch, capsys, rank, ConfigError("unknown key"))
    assert printed == ("" if rank % 2 else f"rank {rank}: fedcmp: error: unknown key\n")


def test_each_that_fails_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(monkeypatch, capsys, 3, DataError("torn")) == "rank 3: fedcmp: error: torn\n"
