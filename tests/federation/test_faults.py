"""Clients that fail: left out or tried again, named with their traceback, and the others are untouched."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import begin, federation, fetch

from fedcmp.config import load_config
from fedcmp.errors import AggregationError, ConfigError, DataError
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.federation import Federation
from fedcmp.federation.loop import run
from fedcmp.models.backbones import LanguageModel
from fedcmp.runs.data import read_data

Fetch = Callable[[list[int]], dict[str, torch.Tensor]]


def is_of_client_1(positions: list[int]) -> bool:
    return any(8 <= position < 20 for position in positions)


def failing(error: Exception, times: int = 10**9) -> Fetch:
    """Client 1 cannot be fetched, so many times."""
    left = [times]

    def try_to_fetch(positions: list[int]) -> dict[str, torch.Tensor]:
        if is_of_client_1(positions) and left[0] > 0:
            left[0] -= 1
            raise error
        return fetch(positions)

    return try_to_fetch


def build(llm: LanguageModel, how: str, slots: int = 1, method: str = "fedavg", **changes: Any) -> Federation:
    whole = federation(llm, method=method)
    config = dataclasses.replace(whole.config, slots=slots, on_client_error=how, keep_local_state=True)
    return dataclasses.replace(whole, config=config, **changes)


@pytest.mark.parametrize("error", [OSError("the disk of client 1 is gone"), DataError("a.jsonl:3: no picture")])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("how", ["skip", "retry"])
def test_a_client_that_fails_is_left_out_of_every_round(
    llm: LanguageModel, caplog: pytest.LogCaptureFixture, error: Exception, slots: int, how: str
) -> None:
    whole = build(llm, how, slots, method="fedcmp", fetch=failing(error))
    with caplog.at_level(logging.WARNING):
        state = run(whole, begin(whole))
    assert state.rounds_done == 3
    assert set(state.local) == {0, 2}, "it keeps nothing"
    for record in whole.tracker.records[1:]:
        if "client/1/accepted" not in record:
            continue  # its samples were used up
        assert record["clients_left_out"] == 1
        assert record["client/1/accepted"] is False
        assert record["client/1/weight"] == 0
        assert (record["client/1/left_out"], record["left_out/failed"]) == ("failed", 1)
        weights = [record[f"client/{k}/weight"] for k in (0, 2) if f"client/{k}/weight" in record]
        assert sum(weights) == pytest.approx(1.0)
    assert "round 1: client 1 is left out" in caplog.text
    assert "Traceback" in caplog.text
    assert "try_to_fetch" in caplog.text, "the traceback leads to the place"
    assert f"client 1 was left out: it failed: {type(error).__name__}: {error}" in caplog.text


def test_one_more_try_may_be_enough(llm: LanguageModel) -> None:
    expected = build(llm, "raise")
    sha = params_sha256(run(expected, begin(expected)).params)
    whole = build(llm, "retry", fetch=failing(OSError("once"), times=1))
    assert params_sha256(run(whole, begin(whole)).params) == sha, "the same samples, the same bits"
    assert all(record.get("clients_left_out", 0) == 0 for record in whole.tracker.records)
    assert [record.get("clients_retried") for record in whole.tracker.records[1:]] == [1, None, None], "it is counted"
    whole = build(llm, "skip", fetch=failing(OSError("once"), times=1))
    run(whole, begin(whole))
    assert [record["clients_left_out"] for record in whole.tracker.records[1:]] == [1, 0, 0]


def test_the_others_of_a_wave_lose_nothing(llm: LanguageModel) -> None:
    """A wave of three that fails is trained again one by one: as with one slot, to the bit."""
    single = build(llm, "skip", slots=1, fetch=failing(OSError("gone")))
    stacked = build(llm, "skip", slots=3, fetch=failing(OSError("gone")))
    alone, together = (run(one, begin(one)) for one in (single, stacked))
    assert params_sha256(together.params) == params_sha256(alone.params)
    assert [record["val/loss"] for record in stacked.tracker.records] == [
        record["val/loss"] for record in single.tracker.records
    ]
    counts = Counter(record["clients_left_out"] for record in stacked.tracker.records[1:])
    assert counts == Counter(record["clients_left_out"] for record in single.tracker.records[1:])


def test_too_few_that_are_left_end_the_run(llm: LanguageModel) -> None:
    whole = build(llm, "skip", fetch=failing(OSError("gone")))
    whole = dataclasses.replace(whole, config=dataclasses.replace(whole.config, min_clients=3))
    with pytest.raises(AggregationError, match=r"only 2 of 3 clients.*client 1: it failed: OSError: gone"):
        run(whole, begin(whole))


@pytest.mark.parametrize("method", ["fedcmp", "median"])
def test_ranks_agree_on_who_is_left_out(llm: LanguageModel, method: str) -> None:
    alone = build(llm, "skip", method=method, fetch=failing(OSError("gone")))
    expected = params_sha256(run(alone, begin(alone)).params)

    def on_this_rank() -> str:
        whole = build(llm, "skip", method=method, team=Ranks(1), fetch=failing(OSError("gone")))
        return params_sha256(run(whole, begin(whole)).params)

    assert run_ranks(on_this_rank, 2) == [expected, expected]


def test_ranks_that_share_a_client_cannot_leave_it_out() -> None:
    words = ["federation.on_client_error=skip", "launch.group_size=2", "launch.devices=2"]
    with pytest.raises(ConfigError, match=r"federation\.on_client_error=skip needs launch\.group_size=1"):
        read_data(load_config(None, words))
