"""Clients that fail: left out or tried again, named with their traceback, and the others are untouched."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import federation, fetch, finish

from fedcmp.config import load_config
from fedcmp.errors import AggregationError, ClientError, ConfigError, DataError
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.federation import Federation
from fedcmp.models.backbones import LanguageModel
from fedcmp.runs.data import read_data


def build(llm: LanguageModel, how: str, slots: int = 1, error: Exception | None = None, times: int = 10**9,
          method: str = "fedavg", min_clients: int = 1, **changes: Any) -> Federation:  # fmt: skip
    """A federation in which client 1 cannot be fetched, so many times."""
    left = [times if error else 0]

    def try_to_fetch(positions: list[int]) -> dict[str, torch.Tensor]:
        if any(8 <= position < 20 for position in positions) and left[0] > 0:
            left[0] -= 1
            raise error or AssertionError
        return fetch(positions)

    settings = {"slots": slots, "on_client_error": how, "keep_local_state": True, "min_clients": min_clients}
    return federation(llm, method, settings, fetch=try_to_fetch, **changes)


@pytest.mark.parametrize(("slots", "how", "error"), [
    (1, "skip", OSError("the disk of client 1 is gone")), (3, "retry", DataError("a.jsonl:3: no picture")),
])  # fmt: skip
def test_a_client_that_fails_is_left_out_of_every_round(
    llm: LanguageModel, caplog: pytest.LogCaptureFixture, error: Exception, slots: int, how: str
) -> None:
    whole = build(llm, how, slots, error, method="fedcmp")
    with caplog.at_level(logging.WARNING):
        state = finish(whole)
    assert state.rounds_done == 3
    assert set(state.local) == {0, 2}, "it keeps nothing"
    asked = [record for record in whole.tracker.records[1:] if "client/1/accepted" in record]
    assert asked
    for record in asked:
        told = [record[f"client/1/{key}"] for key in ("accepted", "weight", "left_out")]
        assert told == [False, 0, "failed"]
        assert record["clients_left_out"] == record["left_out/failed"] == 1
        assert sum(record.get(f"client/{k}/weight", 0.0) for k in (0, 2)) == pytest.approx(1.0)
    assert "Traceback" in caplog.text
    assert "try_to_fetch" in caplog.text, "the traceback leads to the place"
    assert f"client 1 was left out: it failed: {type(error).__name__}: {error}" in caplog.text


def test_one_more_try_may_be_enough(llm: LanguageModel) -> None:
    expected = params_sha256(finish(build(llm, "raise")).params)
    for slots, retried in ((1, 1), (3, None)):  # in a stack the first error is nobody's
        whole = build(llm, "retry", slots, OSError("once"), times=1)
        found = params_sha256(finish(whole).params)
        assert slots == 3 or found == expected, "the same samples, the same bits"
        assert [record.get("clients_retried") for record in whole.tracker.records[1:]] == [retried, None, None]
        assert all(record.get("clients_left_out", 0) == 0 for record in whole.tracker.records)
    whole = build(llm, "skip", error=OSError("once"), times=1)
    finish(whole)
    assert [record["clients_left_out"] for record in whole.tracker.records[1:]] == [1, 0, 0]


def test_the_others_of_a_wave_lose_nothing(llm: LanguageModel) -> None:
    """A wave of three that fails is trained again one by one: as with one slot, to the bit."""
    single, stacked = (build(llm, "skip", slots, OSError("gone")) for slots in (1, 3))
    assert params_sha256(finish(stacked).params) == params_sha256(finish(single).params)
    one, other = ([r["clients_left_out"] for r in whole.tracker.records[1:]] for whole in (single, stacked))
    assert one == other


def test_too_few_that_are_left_end_the_run(llm: LanguageModel) -> None:
    with pytest.raises(AggregationError, match=r"only 2 of 3.*federation\.min_clients=3.*client 1: it failed: OSError"):
        finish(build(llm, "skip", error=OSError("gone"), min_clients=3))
    with pytest.raises(ConfigError, match=r"federation\.on_client_error=skip needs launch\.group_size=1"):
        read_data(load_config(None, ["federation.on_client_error=skip", "launch.group_size=2", "launch.devices=2"]))


@pytest.mark.parametrize("method", ["fedcmp", "median"])
def test_ranks_agree_on_who_is_left_out_and_end_together(llm: LanguageModel, method: str) -> None:
    def found(**team: Any) -> tuple[str, str]:
        state = finish(build(llm, "skip", error=OSError("gone"), method=method, **team))
        with pytest.raises(ClientError, match=r"^client 1 failed in train, round 1: OSError: gone") as caught:
            finish(build(llm, "raise", error=OSError("gone"), **team))
        return params_sha256(state.params), str(caught.value.client_id)

    assert run_ranks(lambda: found(team=Ranks(1)), 2) == [found()] * 2
