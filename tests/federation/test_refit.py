"""What a client says of its second layer behind a fused first one, by hand."""

from __future__ import annotations

import pytest
import torch
from samples_of_clients import contribution, features, random_params
from torch.nn import functional as F

import fedcmp.federation.refit as room


@pytest.mark.parametrize(("tokens", "seen"), [(128, [1, 2, 3]), (8, [1, 2])])
def test_moments_are_means_over_the_tokens_of_the_round(
    monkeypatch: pytest.MonkeyPatch, tokens: int, seen: list[int]
) -> None:
    """Over all of its samples, or, with five columns and 20 tokens a sample, over 40 tokens or more."""
    monkeypatch.setattr(room, "TOKENS", tokens)
    own, fused = random_params(1), random_params(2)
    found = room.refit_on(lambda: [torch.cat([features(1), features(2)]), features(3)])("linear_2", own, fused)
    inputs, gaps = torch.zeros(5, 5), torch.zeros(2, 5)
    rows = torch.cat([features(seed) for seed in seen])
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
    for part, whole in zip(halved(*asked)[:2], one.refit(*asked)[:2], strict=True):
        torch.testing.assert_close(2 * part, whole)


def test_features_are_kept_until_they_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TOKENS", 7)  # 35 tokens of a layer with five columns
    seen = room.Seen(random_params(0), 2)
    for step in range(3):
        seen.add([0, 1][: 2 - step // 2], torch.stack([features(10 * step + slot) for slot in range(2 - step // 2)]))
    for slot in (0, 1):
        kept = torch.cat(seen.of(slot)).float()
        torch.testing.assert_close(kept, torch.cat([features(slot), features(10 + slot)]), rtol=1e-3, atol=1e-3)
