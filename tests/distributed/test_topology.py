"""Ranks to groups, waves to groups: pure, balanced, and every wave exactly once."""

from __future__ import annotations

import pytest

from fedcmp.distributed.team import Topology, assign, make_topology
from fedcmp.errors import ConfigError


def test_groups_are_neighbours_and_fill_the_ranks() -> None:
    topology = make_topology(6, 2)
    assert topology.num_groups == 3
    assert [topology.group(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [topology.place(rank) for rank in range(6)] == [0, 1] * 3
    assert [topology.members(group) for group in range(3)] == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ConfigError, match=r"launch\.group_size=4 does not divide the 6 ranks"):
        make_topology(6, 4)
    assert Topology().num_groups == 1


@pytest.mark.parametrize("num_groups", [1, 2, 3, 5])
def test_every_wave_is_dealt_once_and_no_group_waits_long(num_groups: int) -> None:
    costs = [9, 8, 7, 7, 5, 3, 2, 2, 1]
    assigned = assign(costs, num_groups)
    assert sorted(wave for waves in assigned for wave in waves) == list(range(len(costs)))
    loads = [sum(costs[wave] for wave in waves) for waves in assigned]
    assert max(loads) - min(loads) <= max(costs)
    assert all(waves == tuple(sorted(waves)) for waves in assigned), "long waves first"


def test_more_groups_than_waves_leave_some_idle() -> None:
    assert assign([3], 3) == ((0,), (), ())
