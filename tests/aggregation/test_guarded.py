"""The guard: who it hears, that it changes nothing where all agree, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.guarded import Guarded, judge
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.types import Params

SHAPES = {"linear.weight": (6, 9), "linear.bias": (6,)}
PARAMS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
ROW = {"linear.weight": torch.zeros(5)}
GUARD = Guarded(Mean())


def honest(number: int, noise: float = 1.0) -> Contribution:
    """A client that says what all say, with noise of its own."""
    shared, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(number)
    delta = {
        name: torch.randn(shape, generator=shared) + noise * torch.randn(shape, generator=own)
        for name, shape in SHAPES.items()
    }
    rows = torch.cat([torch.randn(40, 9, generator=own), torch.ones(40, 1)], dim=1)
    half = {name: 0.5 * value for name, value in delta.items()}
    return Contribution(number, delta, half, {"linear": rows.T @ rows / 40}, num_samples=10, num_steps=4)


def fused(method, clients: list[Contribution]) -> Params:
    return method.fuse(LocalCohort(clients), PARAMS, method.init(PARAMS)).delta


def distance(one: Params, other: Params) -> float:
    square = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (square / sum(float(value.square().sum()) for value in other.values())) ** 0.5


@pytest.mark.parametrize("inner", [Mean(), Canonical(), Canonical(tau=0.0), Canonical(tau=1.0)], ids=str)
@pytest.mark.parametrize("factor", [-1.0, -9.0], ids=["flipped", "flipped and scaled"])
def test_clients_that_say_the_opposite_are_not_heard(inner, factor: float) -> None:
    cohort = [honest(number) for number in range(8)]
    byzantine = [one.scaled(factor) if one.client_id in (1, 4, 6) else one for one in cohort]
    expected = fused(inner, [one for one in cohort if one.client_id not in (1, 4, 6)])
    assert distance(fused(Guarded(inner), byzantine), expected) < 0.12  # trust of honest clients may differ a little
    assert distance(fused(inner, byzantine), expected) > 0.5


@pytest.mark.parametrize("num", [3, 5, 7, 8, 9])
def test_attackers_just_short_of_half_are_not_heard(num: int) -> None:
    """In odd cohorts an honest client faces as many Byzantine as honest ones."""
    byzantine = (num - 1) // 2
    for draw in range(10):
        own = torch.Generator().manual_seed(100 * num + draw)
        deltas = torch.randn(500, generator=own).double() + torch.randn(num, 500, generator=own).double()
        deltas[:byzantine] *= -1
        assert judge(deltas @ deltas.T).trust.tolist() == [0.0] * byzantine + [1.0] * (num - byzantine)


@pytest.mark.parametrize("length", [0.5, 3.0])
def test_noise_is_heard_as_far_as_chance_goes(length: float) -> None:
    """Cosines with noise are chance, of order 1 / sqrt(size), whatever its length; the usual one is a half here."""
    size, own = 1_000, torch.Generator().manual_seed(0)
    deltas = torch.randn(size, generator=own).double() + torch.randn(8, size, generator=own).double()
    deltas[:3] = length * 2**0.5 * torch.randn(3, size, generator=own).double()
    trust = judge(deltas @ deltas.T).trust
    assert float(trust[:3].max()) < 8 / size**0.5
    assert trust[3:].tolist() == [1.0] * 5
    clients = [Contribution(number, {"linear.weight": delta.float()}) for number, delta in enumerate(deltas)]
    result = GUARD.fuse(LocalCohort(clients), {"linear.weight": torch.zeros(size)}, {})
    assert 5.0 <= result.metrics["aggregator/trusted"] < 5.5
    assert distance(result.delta, {"linear.weight": deltas[3:].mean(dim=0)}) < 10 / size**0.5


@pytest.mark.parametrize("inner", [Mean(), Canonical()], ids=str)
def test_clients_that_agree_are_passed_on_as_they_are(inner) -> None:
    cohort = [honest(number, noise=0.3) for number in range(6)]
    plain, guarded = inner.fuse(LocalCohort(cohort), PARAMS, {}), Guarded(inner).fuse(LocalCohort(cohort), PARAMS, {})
    assert guarded.metrics["aggregator/trust"] == [1.0] * 6
    assert guarded.metrics["aggregator/trusted"] == pytest.approx(6.0)
    assert distance(guarded.delta, plain.delta) < 1e-6


def test_the_larger_an_update_or_evidence_is_the_less_it_counts() -> None:
    cohort = [honest(number, noise=0.2) for number in range(5)]
    loud = [replace(cohort[0].scaled(50.0), evidence={"linear": 1e4 * cohort[0].evidence["linear"]}), *cohort[1:]]
    method = Guarded(Canonical(tau=0.0))
    assert distance(fused(method, loud), fused(method, cohort)) < 1.0
    assert distance(fused(Canonical(tau=0.0), loud), fused(method, cohort)) > 10.0
    deltas = torch.stack([torch.cat([value.flatten() for value in one.delta.values()]) for one in loud]).double()
    sizes = torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0])
    verdict = judge(deltas @ deltas.T, sizes)
    norms = deltas.norm(dim=1) * verdict.update
    most = 2 * float(deltas.norm(dim=1).median())
    assert float(norms[0]) == pytest.approx(most**2 / float(deltas.norm(dim=1)[0]))
    assert verdict.evidence.tolist() == pytest.approx([0.4**2, 1.0, 1.0, 1.0, 1.0])


def apart(*ids: int) -> LocalCohort:
    """Clients of whom every two say the opposite."""
    rows = torch.eye(len(ids)) * 1.2 - 0.2
    clients = [replace(honest(number), delta={"linear.weight": row}) for number, row in zip(ids, rows, strict=True)]
    return LocalCohort(clients)


def after_an_attack() -> dict[str, Any]:
    """The guard's state after five clients, the fourth of them Byzantine."""
    cohort = [honest(number, noise=0.3).scaled(-1.0 if number == 3 else 1.0) for number in range(5)]
    return GUARD.fuse(LocalCohort(cohort), PARAMS, {}).state


def test_where_clients_agree_no_longer_an_attacker_is_known(caplog: pytest.LogCaptureFixture) -> None:
    before = after_an_attack()
    fused = GUARD.fuse(apart(1, 2, 3, 4, 7), ROW, before)
    assert fused.metrics["aggregator/trust"] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert fused.state == before == {"trust": {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0}}
    assert "aggregator.guard" in caplog.text


@pytest.mark.parametrize("known", [dict.fromkeys(range(5), 0.0) | {9: 1.0}, {9: 1.0, 11: 0.0}, {}])
def test_where_memory_does_not_help_all_are_trusted(known: dict) -> None:
    fused = GUARD.fuse(apart(*range(5)), ROW, {"trust": known})
    assert fused.metrics["aggregator/trust"] == [1.0] * 5
    assert fused.state == {"trust": known}


def test_a_round_of_two_changes_no_trust() -> None:
    before = after_an_attack()
    clients = [honest(0), honest(3).scaled(-1.0)]
    pair = GUARD.fuse(LocalCohort(clients), PARAMS, before)
    assert distance(pair.delta, fused(Mean(), clients)) == 0.0, "two cannot outvote each other"
    assert pair.state == before
    assert GUARD.fuse(apart(*range(5)), ROW, pair.state).metrics["aggregator/trust"] == [1.0, 1.0, 1.0, 0.0, 1.0]
