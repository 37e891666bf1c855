"""A federation on several ranks: any number of groups gives the bits of one process, groups of two its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import federation, fetch, finish, flat, private, stop_and_resume, without_seconds

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.team import Solo
from fedcmp.federation.byzantine import Attack
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.federation import Federation
from fedcmp.federation.groups import coming_batches
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm


def cases(llm: LanguageModel, **changes: Any) -> dict[str, Federation]:
    """Methods whose clients keep something, attacks, and privacy whose clip adapts."""
    kept = {"slots": 1, "keep_local_state": True}
    found = {name: federation(llm, name, kept, **changes) for name in ("fedcmp", "scaffold", "median", "fedyogi")}
    for kind in ("noise", "little", "replay", "evidence_rank_one"):
        attack = Attack(kind, frozenset({0, 2}), 1.0, 0)
        found[kind] = federation(llm, "fedavg", {"slots": 1}, attack=attack, **changes)
    for kind, method in (("central", "fedadam"), ("distributed", "fedavg")):
        found[kind] = private(llm, method, {"kind": kind, "quantile": 0.3}, **changes)
    return found


def outcome(whole: Federation) -> dict[str, Any]:
    state = finish(whole)
    found = {"sha": params_sha256(state.params), "local": sorted(state.local), "privacy": state.privacy}
    return {**found, "records": without_seconds(whole.tracker.records)}


def outcomes(llm: LanguageModel, **changes: Any) -> dict[str, dict[str, Any]]:
    return {name: outcome(whole) for name, whole in cases(llm, **changes).items()}


def assert_same_numbers(one: Any, other: Any) -> None:
    torch.testing.assert_close(one["params"], other["params"], rtol=2e-3, atol=1e-3)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def numbers(whole: Federation) -> dict[str, Any]:
    params = finish(whole).params
    losses = [record.get("val/loss") for record in whole.tracker.records]
    return {"sha": params_sha256(params), "params": params, "loss": (losses or [None])[-1]}


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_groups_gives_the_bits_of_one_process(llm: LanguageModel, world_size: int) -> None:
    alone = outcomes(llm)
    assert len({one["sha"] for one in alone.values()}) == len(alone), "attacks and noise show"
    assert alone["fedcmp"]["local"] == [0, 1, 2], "what clients keep is at the server"
    server, *others = run_ranks(lambda: outcomes(llm, team=Ranks(1)), world_size)
    assert server == alone
    for other in others:
        assert other == {name: {**one, "records": [], "local": []} for name, one in alone.items()}


def test_going_on_gives_the_same_bits(llm: LanguageModel, tmp_path: Path) -> None:
    for name, whole in cases(llm).items():
        expected, resumed = finish(whole), stop_and_resume(whole, tmp_path / name)
        assert params_sha256(resumed.params) == params_sha256(expected.params), name
        assert flat([resumed.aggregator, resumed.local]) == flat([expected.aggregator, expected.local]), name
        assert resumed.privacy == expected.privacy
        assert name not in ("central", "distributed") or resumed.privacy["clip"] != 0.5, "the clip that has adapted"


@pytest.mark.parametrize("method", ["fedcmp", "scaffold", "median"])
def test_two_ranks_train_one_client_as_one_does(llm: LanguageModel, method: str) -> None:
    def trained(**team: Any) -> dict[str, Any]:
        return numbers(cases(llm, **team)[method])

    server, other = run_ranks(lambda: trained(team=Ranks(2)), 2)
    assert server["sha"] == other["sha"], "both ranks have the same projector"
    assert_same_numbers(server, trained())


def test_a_llm_that_two_ranks_hold_together_trains_as_a_whole_one(llm: LanguageModel) -> None:
    method = build_aggregator(AggregatorConfig("fedcmp", fuse={"explore": 1.0}))  # one rank cannot measure outcomes

    def on_this_rank() -> dict[str, Any]:
        team, own = Ranks(2, in_step=True), load_llm(ModelConfig())
        whole = sum(value.numel() for value in own.layers.parameters())
        team.shard(own.layers)
        kept = sum(value.to_local().numel() for value in own.layers.parameters())
        return {**numbers(federation(own, settings={"slots": 1}, team=team, aggregator=method)), "share": kept / whole}

    server, other = run_ranks(on_this_rank, 2)
    assert server["sha"] == other["sha"]
    assert server["share"] == pytest.approx(0.5, abs=0.02)
    assert_same_numbers(server, numbers(federation(llm, settings={"slots": 1}, aggregator=method)))


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
