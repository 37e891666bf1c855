"""What a client says of its second layer behind a fused first one, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from samples_of_clients import contribution, fetch, random_params
from torch.nn import functional as F

import fedcmp.federation.refit as room
from fedcmp.federation.sampling import ClientTask

MODULE = cast(Any, SimpleNamespace(seen=dict))
TASK = ClientTask(0, 0, 0, ((1, 2), (3,)))


@pytest.mark.parametrize(("tokens", "seen"), [(128, [1, 2, 3]), (8, [1, 2])])
def test_moments_are_means_over_the_tokens_of_the_round(
    monkeypatch: pytest.MonkeyPatch, tokens: int, seen: list[int]
) -> None:
    """Over all of its samples, or, with five columns and 20 tokens a sample, over 40 tokens or more."""
    monkeypatch.setattr(room, "TOKENS", tokens)
    own, fused = random_params(1), random_params(2)
    found = room.refit_on(MODULE, fetch, TASK)("linear_2", own, fused)
    inputs, gaps = torch.zeros(5, 5), torch.zeros(2, 5)
    rows = fetch(seen)["features"].flatten(0, 1)
    for row in rows:
        mine, theirs = (F.gelu(one["linear_1.weight"] @ row + one["linear_1.bias"]) for one in (own, fused))
        gap = own["linear_2.weight"] @ mine + own["linear_2.bias"]
        gap = gap - fused["linear_2.weight"] @ theirs - fused["linear_2.bias"]
        x = torch.cat([theirs, torch.ones(1)])
        inputs, gaps = inputs + torch.outer(x, x) / len(rows), gaps + torch.outer(gap, x) / len(rows)
    torch.testing.assert_close(found.inputs, inputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.gaps, gaps, rtol=1e-5, atol=1e-6)


def test_evidence_that_is_scaled_scales_the_moments_too() -> None:
    one, asked = contribution(0), ("linear_2", random_params(1), random_params(2))
    assert one.refit is not None
    halved = one.scaled(3.0, evidence=0.5).refit
    assert halved is not None
    for part, whole in zip(halved(*asked), one.refit(*asked), strict=True):
        torch.testing.assert_close(2 * part, whole)
