"""What may enter a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.federation.gate import compare_norms, gate
from fedcmp.federation.gate import report as judged
from fedcmp.federation.settings import FAULTS, FederationConfig


PARAMS = {"w": torch.zeros(2)}


def report(one: Contribution, config: FederationConfig):
    return judged(one, config, one.delta)


def update(client: int, value: float, loss: float = 1.0) -> Contribution:
    return Contribution(client, {"w": torch.tensor([value, 0.0])}, scalars={"loss": loss})


def test_the_unfit_are_left_out_with_a_reason() -> None:
    updates = [
        update(0, 1.0),
        update(1, float("nan")),
        update(2, 1.0, float("inf")),
        update(3, 50.0),
        update(4, float("inf")),
    ]
    config = FederationConfig(max_update_norm=10.0)
    reports = [report(one, config) for one in updates]
    assert gate(reports, config) == {0}
    reasons = {one.client_id: one.rejected for one in reports if one.rejected}
    assert set(reasons) == {1, 2, 3, 4}
    assert "not finite" in reasons[1]
    assert "loss is inf" in reasons[2]
    assert "federation.max_update_norm=10" in reasons[3]
    kinds = [one.fault for one in reports]
    assert kinds == [None, "not_finite", "not_finite", "norm", "not_finite"]
    assert set(kinds) - {None} <= set(FAULTS)


@pytest.mark.parametrize(("field", "reason"), [
    ("halfway", "its halfway update is not finite"),
    ("evidence", "its evidence is not finite"),
    ("message", "its message is not finite"),
])  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_all_that_a_client_sends_must_be_finite(field: str, reason: str, value: float) -> None:
    good = {name: {"w": torch.eye(2)} for name in ("halfway", "evidence", "message")}
    bad = {**good, field: {"v": torch.ones(1, 1), "w": torch.tensor([[1.0, value], [value, 1.0]])}}
    updates = [replace(update(0, 1.0), **good), replace(update(1, 1.0), **bad)]
    assert [report(one, FederationConfig()).rejected for one in updates] == [None, reason]


def test_too_few_ends_the_run_and_names_them() -> None:
    config = FederationConfig(min_clients=2)
    reports = [report(one, config) for one in (update(0, 1.0), update(1, float("nan")))]
    with pytest.raises(
        AggregationError, match=r"only 1 of 2 .*federation\.min_clients=2.*client 1: its update is not finite"
    ):
        gate(reports, config)


def test_norms_far_above_the_median_are_left_out() -> None:
    config = FederationConfig(norm_bound=3.0)

    def left(*values: float) -> list[int]:
        judged = compare_norms([report(update(k, value), config) for k, value in enumerate(values)], config)
        assert all("norm_bound=3 times the round's median" in one.rejected for one in judged if one.rejected)
        return [one.client_id for one in judged if one.rejected]

    assert left(1.0, 1.2, 0.9, 3.7) == [3]
    assert left(1.0, 1.2, 0.9, 3.1) == []
    assert left(1.0, 100.0) == [], "two do not tell who is wrong"
    assert left(1.0, 1.0, 1.0, 1e9, 1e9) == [3, 4], "a minority does not move the median"
    nan = report(update(9, float("nan")), config)
    judged = compare_norms([nan, *(report(update(k, 1.0), config) for k in range(3))], config)
    assert judged[0] == nan or "not finite" in str(judged[0].rejected), "what is no number is not in the median"
    off = [report(update(k, 10.0**k), FederationConfig()) for k in range(4)]
    assert compare_norms(off, FederationConfig()) == off


def seen(client: int, factor: float = 1.0) -> Contribution:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(client))
    return replace(update(client, 1.0), evidence={"linear": factor * inputs.T @ inputs / 40})


def test_evidence_that_no_data_give_is_left_out() -> None:
    config = FederationConfig()
    assert report(seen(0), config).rejected is None
    ones = replace(seen(0), evidence={"linear": torch.ones(6, 6)})
    assert report(ones, config).rejected is None, "the same input every time has rank one"
    assert report(seen(0, 0.0), config).rejected is None, "inputs may be zero"
    skew = seen(0).evidence["linear"].clone()  # type: ignore[index]
    skew[0, 1] += 1
    apart = skew.clone()
    apart[1, 0] = apart[0, 1] = 50.0
    for bad in (-seen(0).evidence["linear"], skew, apart):  # type: ignore[index]
        told = report(replace(seen(0), evidence={"linear": bad}), config).rejected
        assert told == "its evidence linear is no second moment: not symmetric, or not positive semi-definite"


def test_evidence_far_above_the_median_is_left_out() -> None:
    config = FederationConfig(norm_bound=3.0)
    reports = [report(seen(k, 1e3 if k == 2 else 1.0), config) for k in range(4)]
    judged = compare_norms(reports, config)
    assert [one.client_id for one in judged if one.rejected] == [2]
    assert "the size of its evidence is" in str(judged[2].rejected)


def test_a_client_beyond_the_deadline_is_left_out() -> None:
    slow = replace(update(0, 1.0), scalars={"loss": 1.0, "seconds": 2.5})
    told = report(slow, FederationConfig(slots=1, deadline=2.0)).rejected
    assert told == "it trained for 2.5 s, longer than federation.deadline=2"
    assert report(slow, FederationConfig(slots=1, deadline=2.0)).fault == "slow"
    assert report(slow, FederationConfig(slots=1, deadline=3.0)).rejected is None
    assert report(slow, FederationConfig()).rejected is None


@pytest.mark.parametrize(("field", "value", "message"), [
    ("on_client_error", "skipp", r'federation\.on_client_error: unknown word \'skipp\'; did you mean "skip"'),
    ("norm_bound", 1.0, r"federation\.norm_bound must be 0 \(no bound\) or above 1"),
    ("deadline", -1.0, r"federation\.deadline must be 0 or more"),
    ("deadline", 5.0, r"federation\.deadline needs federation\.slots=1"),
])  # fmt: skip
def test_settings_are_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FederationConfig(**{field: value}).validate()  # type: ignore[arg-type]
