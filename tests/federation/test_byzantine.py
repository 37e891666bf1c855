"""Byzantine clients: each lie against its formula, colluding ones over ranks, and runs that survive or do not."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from tiny_federation import PARAMS, begin, federation, stop_and_resume

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.team import Solo
from fedcmp.errors import ConfigError
from fedcmp.federation.byzantine import ATTACKS, Attack, AttackConfig, attack_round, plan_attack
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.client import WaveResult
from fedcmp.federation.federation import Federation
from fedcmp.federation.loop import run
from fedcmp.models.backbones import LanguageModel

CLIENTS = 6


def honest(client: int) -> Contribution:
    rng = torch.Generator().manual_seed(client)
    delta = {"linear.weight": torch.randn(3, 4, generator=rng), "linear.bias": torch.randn(3, generator=rng)}
    inputs = torch.randn(9, 5, generator=rng)
    halfway = {name: 0.4 * value for name, value in delta.items()}
    return Contribution(client, delta, halfway, {"linear": inputs.T @ inputs / 9})


def sent(kind: str, strength: float = 0.0, round_index: int = 0, before: Any = None) -> WaveResult:
    attack = plan_attack(AttackConfig(kind, 0.5, strength), CLIENTS, 0)
    assert attack is not None
    trained = WaveResult([honest(k) for k in range(CLIENTS)], {}, [])
    return attack_round(
        dataclasses.replace(attack, byzantine=frozenset({1, 3, 4})), trained, before or {}, round_index, Solo(), 6
    )


def test_the_honest_are_left_as_they_are_and_lies_repeat_by_seed() -> None:
    for kind in ATTACKS:
        one, again = sent(kind).contributions, sent(kind).contributions
        assert [c.client_id for c in one] == list(range(CLIENTS))
        for k in (0, 2, 5):
            assert all(torch.equal(one[k].delta[n], honest(k).delta[n]) for n in one[k].delta), kind
        for k in (1, 3, 4):
            assert all(torch.equal(one[k].delta[n], again[k].delta[n]) for n in one[k].delta), kind


def test_lies_are_what_they_are_called() -> None:
    mine = honest(3)
    for kind, factor in (("scale", 10.0), ("sign", -1.0)):
        lied = sent(kind).contributions[3]
        for name, value in mine.delta.items():
            torch.testing.assert_close(lied.delta[name], factor * value)
            torch.testing.assert_close(lied.halfway[name], factor * value / 2)  # type: ignore[index]
    noise = sent("noise", 2.0).contributions[3].delta
    norms = [math.sqrt(sum(float(v.square().sum()) for v in part.values())) for part in (noise, mine.delta)]
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-5)
    later = sent("noise", 2.0, round_index=1).contributions[3].delta
    assert not torch.equal(noise["linear.bias"], later["linear.bias"])


def test_a_little_and_inner_against_their_formulas() -> None:
    stack = torch.stack([honest(k).delta["linear.weight"] for k in (1, 3, 4)]).double()
    mean, std = stack.mean(0), stack.std(0, unbiased=False)
    # n = 6, m = 3: s = 4 - 3 = 1 supporter is needed; z = quantile of (3 - 1) / 3
    z = statistics.NormalDist().inv_cdf(2 / 3)
    lied = sent("little").contributions[4].delta["linear.weight"]
    torch.testing.assert_close(lied.double(), mean - z * std, rtol=1e-4, atol=1e-5)
    lied = sent("inner").contributions[1].delta["linear.weight"]
    torch.testing.assert_close(lied.double(), -0.5 * mean, rtol=1e-4, atol=1e-5)


def test_forged_evidence_has_the_faults_that_it_names() -> None:
    whole = honest(1).evidence["linear"]  # type: ignore[index]
    found = {kind: sent(kind).contributions[1].evidence["linear"] for kind in ATTACKS if kind.startswith("evidence")}  # type: ignore[index]
    assert found["evidence_huge"].trace() == pytest.approx(1e6 * float(whole.trace()), rel=1e-5)
    assert not found["evidence_zero"].any()
    assert torch.linalg.eigvalsh(found["evidence_negative"])[0] < 0
    assert torch.linalg.matrix_rank(found["evidence_rank_one"], tol=1e-4) == 1
    assert found["evidence_rank_one"].trace() == pytest.approx(float(whole.trace()), rel=1e-5)


def test_what_is_replayed_is_the_first_update() -> None:
    first = sent("replay")
    assert torch.equal(first.contributions[3].delta["linear.bias"], honest(3).delta["linear.bias"])
    old = {3: {"attack": {name: torch.full_like(value, 7.0) for name, value in honest(3).delta.items()}}}
    again = sent("replay", before=old, round_index=1)
    assert again.contributions[3].delta["linear.bias"].eq(7.0).all()
    assert again.states[3]["attack"] is old[3]["attack"], "and stays the first"


def attacked(llm: LanguageModel, method: str, attack: Attack | None, **changes: Any) -> Federation:
    whole = federation(llm, method=method)
    return dataclasses.replace(whole, attack=attack, **changes)


@pytest.mark.parametrize("kind", list(ATTACKS))
def test_any_number_of_ranks_gives_the_same_bits_under_attack(llm: LanguageModel, kind: str) -> None:
    attack = Attack(kind, frozenset({0, 2}), 1.0, 0)

    def sha(team: Any) -> str:
        whole = attacked(llm, "fedavg", attack, team=team)
        whole = dataclasses.replace(whole, config=dataclasses.replace(whole.config, slots=1))
        return params_sha256(run(whole, begin(whole)).params)

    alone = sha(Solo())
    assert run_ranks(lambda: sha(Ranks(1)), 2) == [alone, alone]
    assert alone != params_sha256(PARAMS)


def test_a_run_under_attack_goes_on_to_the_same_bits(llm: LanguageModel, tmp_path: Any) -> None:
    attack = Attack("replay", frozenset({0}), 1.0, 0)
    whole = attacked(llm, "fedavg", attack)
    expected = run(whole, begin(whole))
    assert params_sha256(stop_and_resume(whole, tmp_path).params) == params_sha256(expected.params)


@pytest.mark.parametrize("method", ["fedavg", "fedcmp", "median"])
def test_what_is_malformed_never_enters(llm: LanguageModel, method: str) -> None:
    whole = attacked(llm, method, Attack("malformed", frozenset({1}), 1.0, 0))
    run(whole, begin(whole))
    records = [one for one in whole.tracker.records[1:] if "client/1/accepted" in one]
    assert records
    assert all(one["client/1/accepted"] is False for one in records)


def test_settings_are_checked() -> None:
    assert plan_attack(AttackConfig(), 8, 0) is None
    assert plan_attack(AttackConfig("sign", 0.0), 8, 0) is None
    with pytest.raises(ConfigError, match=r'attack\.kind: unknown kind \'sing\'; did you mean "sign"'):
        AttackConfig("sing").validate()
    with pytest.raises(ConfigError, match=r"attack\.share must be in \[0, 1\), got 1"):
        AttackConfig("sign", 1.0).validate()
    with pytest.raises(ConfigError, match=r"attack\.strength must be 0"):
        AttackConfig("sign", 0.3, -1.0).validate()
