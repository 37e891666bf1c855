"""Ranks share the pictures: each looks at its part, and all have the features of one process, to the bit."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from ranks import Ranks, run_ranks
from small import SMALL

from fedcmp.config import load_config
from fedcmp.distributed.team import Solo, Team
from fedcmp.models.backbones import VisionTower
from fedcmp.runs.data import read_data
from fedcmp.runs.parts import build_parts
from fedcmp.tracking.progress import Progress

PICTURES = 8 * (20 + 2 + 2)


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_share_the_pictures_and_have_the_features_of_all(cached: bool, tmp_path: Path) -> None:
    cache = [f"data.cache_dir={tmp_path}"] if cached else []
    config = load_config(None, [*SMALL, "data.scenes_per_camera=20", *cache])
    data = read_data(config)

    def features(team: Team) -> tuple[int, list[torch.Tensor]]:
        """How many pictures this rank looked at, and what it has of all."""
        seen, real = [], VisionTower.look
        with mock.patch.object(
            VisionTower, "look", lambda tower, pixels: (seen.append(len(pixels)), real(tower, pixels))[1]
        ):
            parts = build_parts(config, data, Progress(enabled=False), team=team)
        tables = [part.features for part in (parts.fetch, parts.val_data.fetch, parts.test_data.fetch)]
        return sum(seen), [table[range(len(table))] for table in tables]

    counts, found = zip(*run_ranks(lambda: features(Ranks(1)), 2), strict=True)
    assert sum(counts) == PICTURES
    assert counts == (64 + 32 + 16 + 16, 64), "64 pictures in turn"
    config = load_config(None, [*SMALL, "data.scenes_per_camera=20"])
    count, expected = features(Solo())
    assert count == PICTURES
    for tables in found:
        assert all(torch.equal(one, two) for one, two in zip(tables, expected, strict=True))
