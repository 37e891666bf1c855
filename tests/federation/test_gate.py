"""What may enter a round."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.base import Contribution
from fedcmp.errors import AggregationError
from fedcmp.federation.config import FederationConfig
from fedcmp.federation.gate import gate, report


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


@pytest.mark.parametrize(("field", "reason"), [
    ("halfway", "its halfway update is not finite"),
    ("evidence", "its evidence is not finite"),
    ("message", "its message is not finite"),
])  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_all_that_a_client_sends_must_be_finite(field: str, reason: str, value: float) -> None:
    good = {name: {"w": torch.ones(2)} for name in ("halfway", "evidence", "message")}
    bad = {**good, field: {"v": torch.ones(1), "w": torch.tensor([1.0, value])}}
    updates = [update(0, 1.0)._replace(**good), update(1, 1.0)._replace(**bad)]
    assert [report(one, FederationConfig()).rejected for one in updates] == [None, reason]


def test_too_few_ends_the_run_and_names_them() -> None:
    config = FederationConfig(min_clients=2)
    reports = [report(one, config) for one in (update(0, 1.0), update(1, float("nan")))]
    with pytest.raises(
        AggregationError, match=r"only 1 of 2 .*federation\.min_clients=2.*client 1: its update is not finite"
    ):
        gate(reports, config)
