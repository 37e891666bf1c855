"""Many ranks give the same bits as one process, for every method; and all ranks end where one fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from samples_of_clients import CASES, NUM_CLIENTS, assign, contribution, contributions, plain, rounds

from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.distributed import cohort as cohorts
from fedcmp.distributed.cohort import GroupCohort, LocalCohort
from fedcmp.distributed.wire import Wire
from fedcmp.errors import ClientError
from fedcmp.types import Params


def here(round_: int) -> list[Contribution]:
    """The clients of this rank; those of rank 2 are shuffled, too."""
    mine = assign(dist.get_world_size(), round_)[dist.get_rank()]
    return [contribution(client, round_) for client in (mine[::-1] if dist.get_rank() == 2 else mine)]


@pytest.fixture(scope="module")
def differences() -> list[dict[str, str]]:
    """Where each rank of two and of four differs from one process, by method."""
    expected = {name: rounds(config) for name, config in CASES.items()}

    def compare() -> dict[str, str]:
        wire, found = Wire(), {}
        if wire.rank % 2:
            cohorts.HELD_BYTES = 0  # one rank reads its terms twice, another holds them
        for name, config in CASES.items():
            results = rounds(config, lambda r, *_, how=config.weights: GroupCohort(here(r), wire, how, NUM_CLIENTS + 2))
            for round_, (one, two) in enumerate(zip(results, expected[name], strict=True)):
                kept = ("fuse", "server", "diagnostics", "local") if wire.rank == 0 else ("local",)
                ours, theirs = (
                    plain({"params": this.params, "metrics": this.metrics, **{key: this.state[key] for key in kept}})
                    for this in (one, two)
                )
                if ours != theirs:
                    found.setdefault(name, f"round {round_}: {[key for key in ours if ours[key] != theirs[key]]}")
        return found

    return [*run_ranks(compare, 2), *run_ranks(compare, 4)]


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_gives_the_bits_of_one_process(name: str, differences: list[dict[str, str]]) -> None:
    assert [one.get(name, "") for one in differences] == [""] * 6


def everything(cohort: Cohort) -> dict[str, Any]:
    found: dict[str, Any] = {"clients": cohort.clients, "weights": cohort.weights, "population": cohort.population}
    found["sum"] = cohort.sum(lambda one: {"d": one.delta["linear_1.bias"], "n": torch.tensor(one.num_steps)})
    found["stacked"] = cohort.gather(lambda one: {"w": one.delta["linear_2.weight"].T, "one": torch.tensor(True)})
    found["some"] = cohort.gather(lambda one: {"id": torch.tensor([one.client_id])}, [5, 0, 3])
    found["shared"] = cohort.share(cohort.on_server(lambda: ({"x": torch.arange(3)}, [1.5], (None, "text"))))
    found["server"] = cohort.on_server(lambda a, b: a * b, 6, 7)
    found["traffic"] = cohort.traffic
    return found


def test_each_method_is_that_of_the_local_cohort() -> None:
    expected = everything(LocalCohort(contributions()))
    assert expected["some"]["id"].tolist() == [[5], [0], [3]]
    for rank, found in enumerate(run_ranks(lambda: everything(GroupCohort(here(0), Wire())), 3)):
        for what, value in expected.items():
            if rank and what in ("sum", "stacked", "some", "server"):
                assert found[what] in ({}, None), what
            else:
                assert type(found[what]) is type(value), what
                assert plain(found[what]) == plain(value), what


def failing() -> dict[str, str]:
    """Each step fails on one rank; the sum at the end shows that the ranks are still in step."""
    wire = Wire()
    cohort = GroupCohort([[contribution(0), contribution(4)], [], [contribution(1), contribution(3)]][wire.rank], wire)
    calls: list[int] = []

    def built(*clients: list[Contribution]) -> Callable[[], Any]:
        return lambda: GroupCohort(clients[wire.rank], wire)

    def shapes(one: Contribution) -> Params:
        return {"fine": one.delta["linear_1.bias"], "w": torch.ones(1 + (one.client_id == 3))}

    def of_ranks(one: Contribution) -> Params:
        return {"w": torch.ones(wire.rank + 1)}

    def bad(one: Contribution) -> Params:
        if one.client_id == 3:
            raise ClientError(3, "aggregate", "cannot")
        return {"w": torch.ones(2) * one.client_id}

    def later(one: Contribution) -> Params:
        calls.append(one.client_id)
        if calls.count(3) == 2:  # the second reading, where terms are not held
            raise MemoryError("full")
        return {"w": torch.ones(2)}

    steps: dict[str, Callable[[], Any]] = {
        "no client": built([], [], []),
        "twice": built([contribution(1)], [], [contribution(1)]),
        "broken": built([contribution(0)], [], [replace(contribution(2), num_samples="many")]),  # type: ignore[arg-type]
        "sum": lambda: cohort.sum(bad),
        "second reading": lambda: cohort.sum(later),
        "gather": lambda: cohort.gather(bad, [3, 0]),
        "server": lambda: cohort.on_server(lambda: [][1]),
        "nan": lambda: cohort.sum(lambda one: {"w": torch.tensor(math.nan if one.client_id == 3 else 1.0)}),
        "huge": lambda: cohort.sum(lambda one: {"w": torch.tensor(1e308, dtype=torch.float64)}),
        "shapes": lambda: cohort.sum(shapes),
        "shapes of ranks": lambda: cohort.sum(of_ranks),
        "gathered shapes": lambda: cohort.gather(shapes),
        "gathered shapes of ranks": lambda: cohort.gather(of_ranks),
        "unknown client": lambda: cohort.gather(bad, [0, 2]),
    }
    found = {}
    for what, step in steps.items():
        cohorts.HELD_BYTES = 0 if what == "second reading" else 2**30
        try:
            step()
        except Exception as error:
            found[what] = f"{type(error).__name__}: {error}"
    total = cohort.sum(lambda one: {"id": torch.tensor([one.client_id])})
    assert total == ({"id": torch.tensor([8.0])} if wire.rank == 0 else {})
    return found


EXPECTED = {
    "no client": (None, "AggregationError"),
    "twice": (None, "AggregationError"),
    "broken": (2, "ValueError"),
    "sum": (2, "ClientError: client 3 failed in aggregate: cannot"),
    "second reading": (2, "MemoryError: full"),
    "gather": (2, "ClientError: client 3 failed in aggregate: cannot"),
    "server": (0, "IndexError"),
    "nan": (2, "AggregationError: client 3"),
    "huge": (None, "AggregationError: the sum over clients of 'w'"),
    "shapes": (2, "AggregationError: clients 1 and 3 send different tensors: 'w'"),
    "shapes of ranks": (None, "AggregationError: clients 0 and 1 send different tensors: 'w'"),
    "gathered shapes": (2, "AggregationError: clients 1 and 3 send different tensors: 'w'"),
    "gathered shapes of ranks": (None, "AggregationError: clients 0 and 1 send different tensors: 'w'"),
    "unknown client": (None, "AggregationError"),
}
"""By case, the rank that meets the error (None: all of them) and what it says."""


def test_every_rank_raises_what_one_has_met_and_goes_on() -> None:
    for rank, by_case in enumerate(run_ranks(failing, 3)):
        assert by_case.keys() == EXPECTED.keys()
        for what, (source, text) in EXPECTED.items():
            assert by_case[what].removeprefix("RuntimeError: ").startswith(text), what
            assert by_case[what].endswith(f"(on rank {source})") == (source not in (None, rank)), what
