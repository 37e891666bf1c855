"""Attacks on who took part succeed without privacy and do not with it; and no attack passes its ceiling."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fedcmp.runs.parts import Kept

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import membership

CLIENTS = 12
SMALL = membership.Setting(
    clients=CLIENTS, samples=8, rounds=2, batch_size=4, passes=1, words=("data.val_scenes_per_camera=2",)
)


def test_who_took_part_shows_without_privacy_and_not_with_it() -> None:
    keep = Kept()
    bare, private = (membership.attack(SMALL, 0, epsilon, keep) for epsilon in (None, 1.0))
    assert bare["by updates"] > 0.9, "what is released shows who was there"
    chance = math.sqrt((2 * CLIENTS + 1) / (12 * CLIENTS**2))  # deviation of an AUC where nothing can be told
    assert private["by updates"] <= private["ceiling"] + 3 * chance
    assert private["ceiling"] < 0.65
    assert bare["by updates"] - private["by updates"] > 0.2
    assert private["epsilon"] <= 1.0
    for one in (bare, private):
        assert one["by losses"] < 0.5 + 4 * chance, "samples that were used once hardly show in the losses"
    # with noise so low that it hides nothing the same attack succeeds
    words = (*SMALL.words, "privacy.noise=0.001")
    loud = membership.attack(membership.Setting(CLIENTS, 8, 2, 4, 1, 0.5, words), 0, 1e9, keep)
    assert loud["by updates"] > 0.9
    assert loud["ceiling"] == 1.0
