"""`federation.secure=masks`: runs with the bits of plain ones, lost clients, and settings that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import small
from test_loop import PARAMS, federation, flat, poisoned

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator, sums_only_rules
from fedcmp.config import load_config
from fedcmp.distributed.team import Solo
from fedcmp.distributed.topology import Topology
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.experiment import plan, train
from fedcmp.federation import fusing
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.federation import Federation
from fedcmp.federation.loop import run, run_round, start
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.secure import check_secure, draw_lost
from fedcmp.federation.state import params_sha256
from fedcmp.models.backbones import LanguageModel
from fedcmp.tracking.progress import Progress


def masked(llm: LanguageModel, rule: str, secure: str = "masks", **settings) -> Federation:
    whole = federation(llm, rule=rule, aggregator=build_aggregator(AggregatorConfig(rule, pairwise=0)))
    return dataclasses.replace(whole, config=dataclasses.replace(whole.config, secure=secure, **settings))


def lose(monkeypatch: pytest.MonkeyPatch, *clients: int) -> None:
    monkeypatch.setattr(fusing, "draw_lost", lambda *args: frozenset(clients))


@pytest.mark.parametrize("rule", sums_only_rules())
def test_a_run_has_the_bits_of_the_plain_one(llm: LanguageModel, rule: str) -> None:
    plain, secure = masked(llm, rule, "none"), masked(llm, rule)
    expected, found = run(plain, start(plain, PARAMS)), run(secure, start(secure, PARAMS))
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert flat([found.aggregator, found.local]) == flat([expected.aggregator, expected.local])
    for one, other in zip(secure.tracker.records[1:], plain.tracker.records[1:], strict=True):
        assert one["bytes/secure_up"] > 2 * other["bytes/up"], "8 bytes for 4, keys and shares"
        assert one["secure/lost"] == 0
        assert one["secure/sums"] >= 2
        own = {key for key in one if "secure" in key}
        assert own == {"secure/lost", "secure/sums"} | {
            f"{what}/secure_{who}" for what, who in
            (("bytes", "up"), ("bytes", "down"), ("seconds", "clients"), ("seconds", "server"))
        }  # fmt: skip
        assert {key: value for key, value in one.items() if not key.startswith("seconds/") and key not in own} == {
            key: value for key, value in other.items() if not key.startswith("seconds/")
        }


@pytest.mark.parametrize("rule", ["fedavg", "scaffold", "fedcmp", "fednova"])
def test_a_round_that_loses_a_client_is_one_in_which_it_never_was(
    llm: LanguageModel, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dataclasses.replace(masked(llm, rule, "none", keep_local_state=True), fetch=poisoned)
    expected, other = run_round(plain, start(plain, PARAMS), plain.plan.rounds[0])
    assert other["client/1/accepted"] is False, "the gate leaves client 1 out"
    secure = masked(llm, rule, keep_local_state=True)
    lose(monkeypatch, 1)
    found, record = run_round(secure, start(secure, PARAMS), secure.plan.rounds[0])
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert flat([found.aggregator, found.local]) == flat([expected.aggregator, expected.local])
    assert found.local.keys() == {0, 2}, "it keeps nothing of a round that it was not in"
    assert (record["secure/lost"], record["client/1/accepted"], record["client/1/weight"]) == (1, False, 0.0)
    assert record["client/0/weight"] + record["client/2/weight"] == pytest.approx(1.0)
    assert record["bytes/up"] == other["bytes/up"]


def test_more_than_a_third_ends_the_run(llm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, 0, 2)
    secure = masked(llm, "fedavg")
    with pytest.raises(AggregationError, match="only 1 of 3 clients sent their words"):
        run_round(secure, start(secure, PARAMS), secure.plan.rounds[0])


def test_several_ranks_are_refused(llm: LanguageModel) -> None:
    class Two(Solo):
        def __init__(self) -> None:
            super().__init__()
            self.topology = Topology(world_size=2)

        def collect(self, value):
            return [value, []]

    secure = dataclasses.replace(masked(llm, "fedavg"), team=Two())
    state = start(secure, PARAMS)
    with pytest.raises(ConfigError, match=r"federation\.secure=masks runs all clients in one process"):
        fusing.fuse_round(secure, [], secure.plan.rounds[0], state)


def test_losses_are_drawn_from_seed_round_and_client() -> None:
    clients = [tuple(range(40 * client, 40 * client + 40)) for client in range(9)]
    config = FederationConfig(rounds=20, batch_size=2, secure="masks", secure_dropout=0.2)
    rounds = plan_run(clients, config, seed=0).rounds
    ids = tuple(range(9))
    found = [draw_lost(one, ids, config) for one in rounds]
    assert found == [draw_lost(one, ids, config) for one in plan_run(clients, config, seed=0).rounds]
    assert found != [draw_lost(one, ids, config) for one in plan_run(clients, config, seed=1).rounds]
    assert 15 < sum(map(len, found)) < 50, "about a fifth of 180"
    assert max(map(len, found)) <= 3
    for one, lost in zip(rounds, found, strict=True):
        others = tuple(client for client in ids if client != min(set(ids) - lost))
        assert len(lost) == 3 or draw_lost(one, others, config) == lost, "whoever else is there"
    many = dataclasses.replace(config, secure_dropout=0.99)
    assert {len(draw_lost(one, ids, many)) for one in rounds} == {3}
    assert {len(draw_lost(one, ids, dataclasses.replace(many, min_clients=7))) for one in rounds} == {2}
    assert draw_lost(rounds[0], ids, dataclasses.replace(config, secure_dropout=0.0)) == frozenset()


@pytest.mark.parametrize(("words", "message"), [
    (["federation.secure=mask"], r'federation.secure: unknown word .mask.; did you mean "masks"'),
    (["federation.secure=masks"], r"aggregator.pairwise=64 asks for compare just that; set aggregator.pairwise=0"),
    (["federation.secure=masks", "aggregator.pairwise=0", "aggregator=krum"],
     r"aggregator=krum compares just that; rules that work, as they see sums only: diloco, .*, ties"),
    (["federation.secure=masks", "aggregator.pairwise=0", "aggregator=fedavg", "aggregator.fuse.rule=median"],
     r"aggregator=fedavg with aggregator.fuse.rule=median compares"),
    (["federation.secure=masks", "aggregator.pairwise=0", "launch.devices=2"], r"this run has 2 ranks; .*devices=1"),
    (["federation.secure=masks", "aggregator.pairwise=0", "federation.clients_per_round=1"],
     r"needs at least 2 clients in a round, and federation.clients_per_round is 1"),
    (["federation.secure_dropout=0.1"], r"federation.secure_dropout=0.1 loses clients in secure sums, and there are"),
    (["federation.secure_dropout=1", "federation.secure=masks"], r"secure_dropout must be in \[0, 1\), got 1"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_every_rule_is_judged_by_its_name() -> None:
    masks = FederationConfig(secure="masks")
    for name in PRESETS:
        if name in sums_only_rules():
            check_secure(masks, AggregatorConfig(name, pairwise=0))
        else:
            with pytest.raises(ConfigError, match=f"hides what single clients send, and aggregator={name} compares"):
                check_secure(masks, AggregatorConfig(name, pairwise=0))
            check_secure(FederationConfig(), AggregatorConfig(name), ranks=2)


def test_a_plan_for_several_ranks_is_refused_too() -> None:
    config = load_config(None, ["federation.secure=masks", "aggregator.pairwise=0"])
    with pytest.raises(ConfigError, match="this run has 4 ranks"):
        plan(config, ranks=4)


def test_a_whole_run_by_its_command_words(tmp_path: Path) -> None:
    words = [*small.SMALL, "evaluation.test=false", "run.figures=false", "aggregator.pairwise=0"]
    hashes = []
    for secure in ("none", "masks"):
        config = load_config(None, [*words, f"federation.secure={secure}", f"run.dir={tmp_path / secure}"])
        hashes.append(train(config, progress=Progress(enabled=False))["projector_sha256"])
    assert hashes[0] == hashes[1]
    lossy = [*words, "federation.secure=masks", "federation.secure_dropout=0.9", f"run.dir={tmp_path / 'lossy'}"]
    summary = train(load_config(None, lossy), progress=Progress(enabled=False))
    assert summary["exit"] == "finished"
    assert summary["projector_sha256"] != hashes[0]
