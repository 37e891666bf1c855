"""A federation on several ranks: any number of groups gives the bits of one process, groups of two its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import federation, fetch, finish, without_seconds

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.team import Solo
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.groups import coming_batches
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm

METHODS = ("fedcmp", "scaffold", "median")


def outcomes(llm: LanguageModel, methods: tuple[str, ...] = METHODS, **changes: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for method in methods:
        whole = federation(llm, method, {"slots": 1, "keep_local_state": True}, **changes)
        state = finish(whole)
        found[method] = {
            "sha": params_sha256(state.params),
            "params": state.params,
            "records": without_seconds(whole.tracker.records),
            "local": sorted(state.local),
        }
    return found


def assert_same_numbers(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["params"], other["params"], rtol=2e-3, atol=1e-3)
    assert one["records"][-1]["val/loss"] == pytest.approx(other["records"][-1]["val/loss"], rel=1e-3)


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_groups_gives_the_bits_of_one_process(llm: LanguageModel, world_size: int) -> None:
    alone = outcomes(llm)
    server, *others = run_ranks(lambda: outcomes(llm, team=Ranks(1)), world_size)
    for method in METHODS:
        for key in ("sha", "records", "local"):
            assert server[method][key] == alone[method][key], (method, key)
        assert server[method]["local"] == [0, 1, 2], "what clients keep is at the server"
        for other in others:
            assert (other[method]["sha"], other[method]["records"], other[method]["local"]) == (
                alone[method]["sha"], [], [],
            )  # fmt: skip


def test_two_ranks_train_one_client_as_one_does(llm: LanguageModel) -> None:
    alone = outcomes(llm)
    server, other = run_ranks(lambda: outcomes(llm, team=Ranks(2)), 2)
    for method in METHODS:
        assert server[method]["sha"] == other[method]["sha"], "both ranks have the same projector"
        assert_same_numbers(server[method], alone[method])


def test_a_llm_that_two_ranks_hold_together_trains_as_a_whole_one(llm: LanguageModel) -> None:
    method = build_aggregator(AggregatorConfig("fedcmp", fuse={"explore": 1.0}))  # one rank cannot measure outcomes

    def on_this_rank() -> dict[str, Any]:
        team, own = Ranks(2, in_step=True), load_llm(ModelConfig())
        whole = sum(value.numel() for value in own.layers.parameters())
        team.shard(own.layers)
        kept = sum(value.to_local().numel() for value in own.layers.parameters())
        return {**outcomes(own, ("fedcmp",), team=team, aggregator=method)["fedcmp"], "share": kept / whole}

    server, other = run_ranks(on_this_rank, 2)
    assert server["sha"] == other["sha"]
    assert server["share"] == pytest.approx(0.5, abs=0.02)
    assert_same_numbers(server, outcomes(llm, ("fedcmp",), aggregator=method)["fedcmp"])


@pytest.mark.parametrize(("world_size", "group_size"), [(1, 1), (2, 1), (4, 2)])
def test_each_rank_knows_what_it_will_fetch(llm: LanguageModel, world_size: int, group_size: int) -> None:
    """Also from a later round on, and where clients have steps of different numbers in a wave."""

    def on_this_rank() -> bool:
        asked: list[list[int]] = []

        def noting(positions: list[int]) -> dict[str, torch.Tensor]:
            asked.append(list(positions))
            return fetch(positions)

        team = Ranks(group_size) if world_size > 1 else Solo()
        whole = federation(llm, "fedavg", team=team, fetch=noting)
        finish(whole)
        coming, rest = coming_batches(whole, 0), coming_batches(whole, 1)
        return asked == coming and 0 < len(rest) < len(coming) and coming[-len(rest) :] == rest

    assert all(run_ranks(on_this_rank, world_size) if world_size > 1 else [on_this_rank()])
