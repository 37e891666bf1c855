"""A federation on several ranks: any number of groups gives the bits of one process, groups of two its numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import begin, federation, fetch

from fedcmp.distributed.team import Solo
from fedcmp.errors import ClientError
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.federation import Federation
from fedcmp.federation.groups import coming_batches
from fedcmp.federation.loop import run
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm

METHODS = ("fedcmp", "scaffold", "median")


def build(llm: LanguageModel, method: str, **changes: Any) -> Federation:
    whole = federation(llm, method=method)
    config = dataclasses.replace(whole.config, slots=1, keep_local_state=True)
    return dataclasses.replace(whole, config=config, **changes)


def outcome(whole: Federation) -> dict[str, Any]:
    state = run(whole, begin(whole))
    records = [
        {key: value for key, value in record.items() if not key.startswith("seconds/")}
        for record in whole.tracker.records
    ]
    return {
        "sha": params_sha256(state.params),
        "params": state.params,
        "records": records,
        "local": sorted(state.local),
    }


def on_rank(llm: LanguageModel, group_size: int) -> dict[str, dict[str, Any]]:
    return {method: outcome(build(llm, method, team=Ranks(group_size))) for method in METHODS}


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_groups_gives_the_bits_of_one_process(llm: LanguageModel, world_size: int) -> None:
    alone = {method: outcome(build(llm, method)) for method in METHODS}
    server, *others = run_ranks(lambda: on_rank(llm, 1), world_size)
    for method in METHODS:
        assert server[method]["sha"] == alone[method]["sha"], method
        assert server[method]["records"] == alone[method]["records"], method
        assert server[method]["local"] == alone[method]["local"] == [0, 1, 2], "what clients keep is at the server"
        for other in others:
            assert other[method]["sha"] == alone[method]["sha"]
            assert other[method]["records"] == []
            assert other[method]["local"] == []


def test_two_ranks_train_one_client_as_one_does(llm: LanguageModel) -> None:
    alone = {method: outcome(build(llm, method)) for method in METHODS}
    server, other = run_ranks(lambda: on_rank(llm, 2), 2)
    for method in METHODS:
        assert server[method]["sha"] == other[method]["sha"], "both ranks hold the same projector"
        for name, value in alone[method]["params"].items():
            torch.testing.assert_close(server[method]["params"][name], value, rtol=2e-3, atol=1e-3)
        assert server[method]["records"][-1]["val/loss"] == pytest.approx(
            alone[method]["records"][-1]["val/loss"], rel=1e-3
        )


def test_a_llm_that_two_ranks_hold_together_trains_as_a_whole_one(llm: LanguageModel) -> None:
    def on_this_rank() -> dict[str, Any]:
        team, own = Ranks(2, in_step=True), load_llm(ModelConfig())
        whole = sum(value.numel() for value in own.layers.parameters())
        team.shard(own.layers)
        kept = sum(value.to_local().numel() for value in own.layers.parameters())
        return {**outcome(build(own, "fedcmp", team=team)), "share": kept / whole}

    alone = outcome(build(llm, "fedcmp"))
    server, other = run_ranks(on_this_rank, 2)
    assert server["sha"] == other["sha"]
    assert server["share"] == pytest.approx(0.5, abs=0.02)
    for name, value in alone["params"].items():
        torch.testing.assert_close(server["params"][name], value, rtol=2e-3, atol=1e-3)
    assert server["records"][-1]["val/loss"] == pytest.approx(alone["records"][-1]["val/loss"], rel=1e-3)


@pytest.mark.parametrize(("world_size", "group_size"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_each_rank_knows_what_it_will_fetch(llm: LanguageModel, world_size: int, group_size: int) -> None:
    """Also from a later round on, and where clients have steps of different numbers in a wave."""

    def on_this_rank() -> bool:
        asked: list[list[int]] = []

        def noting(positions: list[int]) -> dict[str, torch.Tensor]:
            asked.append(list(positions))
            return fetch(positions)

        team = Ranks(group_size) if world_size > 1 else Solo()
        whole = dataclasses.replace(federation(llm, method="fedavg"), team=team, fetch=noting)
        run(whole, begin(whole))
        coming, rest = coming_batches(whole, 0), coming_batches(whole, 1)
        return asked == coming and 0 < len(rest) < len(coming) and coming[-len(rest) :] == rest

    if world_size == 1:
        assert on_this_rank()
    else:
        assert all(run_ranks(on_this_rank, world_size))


def failing(positions: list[int]) -> dict[str, torch.Tensor]:
    if any(8 <= position < 20 for position in positions):
        raise OSError("the disk of client 1 is gone")
    return fetch(positions)


def test_a_failing_client_ends_the_run_on_every_rank(llm: LanguageModel) -> None:
    def on_this_rank() -> str:
        whole = build(llm, "fedavg", team=Ranks(1), fetch=failing)
        try:
            run(whole, begin(whole))
        except ClientError as error:
            return f"{error.client_id}: {error}"
        return "nothing happened"

    for told in run_ranks(on_this_rank, 2):
        assert told.startswith("1: ")
        assert "client 1 failed in train, round 1: OSError: the disk of client 1 is gone" in told
