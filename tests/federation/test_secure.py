"""`federation.secure=masks`: runs with the bits of plain ones, lost clients, and settings that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_federation import begin, federation, fetch, finish, flat, poisoned, without_seconds

from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator, sums_only_methods
from fedcmp.config import load_config
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.federation import fusing
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.federation import Federation
from fedcmp.federation.fusing import check_secure, draw_lost
from fedcmp.federation.loop import run_round
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel


def masked(llm: LanguageModel, method: str, secure: str = "masks", fetch=fetch, **settings) -> Federation:
    aggregator = build_aggregator(AggregatorConfig(method, pairwise=0))
    return federation(llm, settings={"secure": secure, **settings}, aggregator=aggregator, fetch=fetch)


@pytest.mark.parametrize("method", sums_only_methods())
def test_a_run_has_the_bits_of_the_plain_one(llm: LanguageModel, method: str) -> None:
    plain, secure = masked(llm, method, "none"), masked(llm, method)
    expected, found = finish(plain), finish(secure)
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert flat([found.aggregator, found.local]) == flat([expected.aggregator, expected.local])
    for one, other in zip(*(without_seconds(whole.tracker.records[1:]) for whole in (secure, plain)), strict=True):
        own = {key: one.pop(key) for key in list(one) if "secure" in key}
        assert own["bytes/secure_up"] > 2 * other["bytes/up"], "8 bytes for 4, keys and shares"
        assert own["secure/lost"] == 0 < 2 <= own["secure/sums"]
        assert one == other


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedcmp"])
def test_a_round_that_loses_a_client_is_one_in_which_it_never_was(
    llm: LanguageModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = masked(llm, method, "none", keep_local_state=True, fetch=poisoned)
    expected, other = run_round(plain, begin(plain), plain.plan.rounds[0])
    assert other["client/1/accepted"] is False, "the gate leaves client 1 out"
    secure = masked(llm, method, keep_local_state=True)
    lost = {1}
    monkeypatch.setattr(fusing, "draw_lost", lambda *args: frozenset(lost))
    found, record = run_round(secure, begin(secure), secure.plan.rounds[0])
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert flat([found.aggregator, found.local]) == flat([expected.aggregator, expected.local])
    assert found.local.keys() == {0, 2}, "it keeps nothing of a round that it was not in"
    assert (record["secure/lost"], record["client/1/accepted"], record["client/1/weight"]) == (1, False, 0.0)
    assert record["client/0/weight"] + record["client/2/weight"] == pytest.approx(1.0)
    assert record["bytes/up"] == other["bytes/up"]
    lost = {0, 2}
    with pytest.raises(AggregationError, match="only 1 of 3 clients"):
        run_round(secure, begin(secure), secure.plan.rounds[0])


def test_losses_are_drawn_from_seed_round_and_client() -> None:
    clients, ids = [tuple(range(40 * client, 40 * client + 40)) for client in range(9)], tuple(range(9))
    config = FederationConfig(rounds=20, batch_size=2, secure="masks", secure_dropout=0.2)
    rounds, other = (plan_run(clients, config, seed).rounds for seed in (0, 1))

    def drawn(rounds=rounds, **settings) -> list[frozenset[int]]:
        return [draw_lost(one, ids, dataclasses.replace(config, **settings)) for one in rounds]

    found = drawn()
    assert found == drawn() != drawn(other)
    assert 15 < sum(map(len, found)) < 50, "about a fifth of 180"
    assert max(map(len, found)) <= 3
    for one, lost in zip(rounds, found, strict=True):
        others = tuple(client for client in ids if client != min(set(ids) - lost))
        assert len(lost) == 3 or draw_lost(one, others, config) == lost, "whichever others are there"
    assert {len(one) for one in drawn(secure_dropout=0.99)} == {3}
    assert {len(one) for one in drawn(secure_dropout=0.99, min_clients=7)} == {2}
    assert not any(drawn(secure_dropout=0.0))


@pytest.mark.parametrize(("words", "key"), [
    (["federation.secure=masks"], "aggregator.pairwise=0"),
    (["federation.secure=masks", "aggregator.pairwise=0", "aggregator.fuse.kind=median"], "aggregator.fuse.kind"),
    (["federation.secure=masks", "aggregator.pairwise=0", "launch.devices=2"], "launch.devices=1"),
    (["federation.secure=masks", "federation.clients_per_round=1"], "federation.clients_per_round"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_named(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(None, words)


def test_methods_that_compare_clients_and_several_ranks_are_refused() -> None:
    refused = set(PRESETS) - set(sums_only_methods())
    assert refused == {"krum", "multi-krum", "median", "trimmed-mean"}
    for name, ranks, key in (*((name, 1, f"aggregator={name}") for name in refused), ("fedavg", 4, "4 ranks")):
        with pytest.raises(ConfigError, match=f"federation.secure=masks.*{key}"):
            check_secure(FederationConfig(secure="masks"), AggregatorConfig(name, pairwise=0), ranks)
        check_secure(FederationConfig(), AggregatorConfig(name), ranks)
