"""What several rooms ask of an update is measured once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcmp.aggregation import contribution
from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.federation.gate import report
from fedcmp.federation.settings import FederationConfig


def test_a_norm_is_measured_once_and_again_where_the_delta_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    real = contribution.squared_norm
    monkeypatch.setattr(contribution, "squared_norm", lambda params: measured.append(params) or real(params))
    clients = [Contribution(number, {"bias": torch.full((4,), 1.0 + number)}) for number in range(3)]
    norms = [report(one, FederationConfig()).norm for one in clients]
    method = build_aggregator(AggregatorConfig("fedavg", clip_norm=3.0, pairwise=0))
    params = {"bias": torch.zeros(4)}
    method.aggregate(LocalCohort(clients), params, method.init(params))
    assert norms == [2.0, 4.0, 6.0]
    assert len(measured) == 3
    assert replace(clients[0], delta={"bias": torch.ones(1)}).square == 1.0
    assert len(measured) == 4
