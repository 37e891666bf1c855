"""Byzantine clients: each attack against its formula, colluding ones over ranks, and runs that survive or do not."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import pytest
import torch
from tiny_federation import federation, finish

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.team import Solo
from fedcmp.federation.byzantine import ATTACKS, Attack, AttackConfig, attack_round, plan_attack
from fedcmp.federation.client import WaveResult
from fedcmp.models.backbones import LanguageModel

CLIENTS, BYZANTINE = 6, (1, 3, 4)


def honest(client: int) -> Contribution:
    rng = torch.Generator().manual_seed(client)
    delta = {"linear.weight": torch.randn(3, 4, generator=rng), "linear.bias": torch.randn(3, generator=rng)}
    inputs = torch.randn(9, 5, generator=rng)
    halfway = {name: 0.4 * value for name, value in delta.items()}
    return Contribution(client, delta, halfway, {"linear": inputs.T @ inputs / 9})


def attacked(kind: str, strength: float = 0.0, round_index: int = 0, before: Any = None) -> WaveResult:
    attack = plan_attack(AttackConfig(kind, 0.5, strength), CLIENTS, 0)
    assert attack is not None
    attack = dataclasses.replace(attack, byzantine=frozenset(BYZANTINE))
    trained = WaveResult([honest(k) for k in range(CLIENTS)], {}, [])
    return attack_round(attack, trained, before or {}, round_index, Solo(), CLIENTS)


def test_the_honest_are_untouched_and_attacks_repeat_by_seed() -> None:
    for kind in ATTACKS:
        one, again = attacked(kind).contributions, attacked(kind).contributions
        assert [c.client_id for c in one] == list(range(CLIENTS))
        for k in range(CLIENTS):
            expected = again[k] if k in BYZANTINE else honest(k)
            torch.testing.assert_close(one[k].delta, expected.delta, rtol=0, atol=0)
            half = {name: value / 2 for name, value in one[k].delta.items()} if k in BYZANTINE else expected.halfway
            torch.testing.assert_close(one[k].halfway, half, rtol=0, atol=0)
    assert plan_attack(AttackConfig(), 8, 0) is plan_attack(AttackConfig("sign", 0.0), 8, 0) is None


def test_attacks_are_what_they_are_called() -> None:
    def sent(kind: str, client: int = 3, **options: Any) -> dict[str, torch.Tensor]:
        return attacked(kind, **options).contributions[client].delta

    mine = honest(3).delta
    for kind, factor in (("scale", 10.0), ("sign", -1.0), ("evidence_zero", -1.0)):
        torch.testing.assert_close(sent(kind), {name: factor * value for name, value in mine.items()})
    noise, later = sent("noise", strength=2.0), sent("noise", strength=2.0, round_index=1)
    norms = [math.sqrt(sum(float(value.square().sum()) for value in part.values())) for part in (noise, mine)]
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-5)
    assert not torch.equal(noise["linear.bias"], later["linear.bias"])
    stack = torch.stack([honest(k).delta["linear.weight"] for k in BYZANTINE]).double()
    mean, std = stack.mean(0), stack.std(0, unbiased=False)
    # n = 6, m = 3: s = 4 - 3 = 1 supporter is needed; z = quantile of (3 - 1) / 3
    z = statistics.NormalDist().inv_cdf(2 / 3)
    for kind, expected in (("little", mean - z * std), ("inner", -0.5 * mean)):
        torch.testing.assert_close(sent(kind, 4)["linear.weight"].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sent("replay"), mine, rtol=0, atol=0)
    old = {3: {"attack": {name: torch.full_like(value, 7.0) for name, value in mine.items()}}}
    again = attacked("replay", before=old, round_index=1)
    assert again.contributions[3].delta["linear.bias"].eq(7.0).all()
    assert again.states[3]["attack"] is old[3]["attack"], "the first update stays the first"


def test_forged_evidence_has_the_faults_that_it_names() -> None:
    whole = honest(1).evidence["linear"]  # type: ignore[index]
    huge, zero, negative, one = (
        attacked(f"evidence_{kind}").contributions[1].evidence["linear"]  # type: ignore[index]
        for kind in ("huge", "zero", "negative", "rank_one")
    )
    assert huge.trace() == pytest.approx(1e6 * float(whole.trace()), rel=1e-5)
    assert not zero.any()
    assert torch.linalg.eigvalsh(negative)[0] < 0
    assert torch.linalg.matrix_rank(one, tol=1e-4) == 1
    assert one.trace() == pytest.approx(float(whole.trace()), rel=1e-5)


@pytest.mark.parametrize("method", ["fedcmp", "median"])
def test_what_is_malformed_never_enters(llm: LanguageModel, method: str) -> None:
    whole = federation(llm, method, attack=Attack("malformed", frozenset({1}), 1.0, 0))
    finish(whole)
    assert {one.get("client/1/left_out") for one in whole.tracker.records[1:]} <= {"malformed", None}
    assert not any(one.get("client/1/accepted") for one in whole.tracker.records)
