"""What crosses ranks arrives as it was, exceptions too."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run_ranks

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.messages import pack, together
from fedcmp.distributed.wire import Wire
from fedcmp.errors import AggregationError, ClientError

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool,
    torch.complex64,
)  # fmt: skip


def nested() -> dict[Any, Any]:
    return {
        "plain": [1, -2.5, True, None, "é\ud800", math.inf, -math.inf, -0.0, 2**70, 0.1],
        "nested": ({"a": (), "b": []}, [{}, ("x",)]),
        3: {(1, "key"): "keys need not be text"},
        "long": "x" * 10_000,
        "tensors": {str(dtype): torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype) for dtype in DTYPES},
        "shapes": [torch.tensor(1.5), torch.zeros(0, 4), torch.tensor([math.nan, -math.inf]), torch.arange(6.0)[::2]],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one.nan_to_num(7), two.nan_to_num(7))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and repr(one) == repr(two)


def exchange() -> None:
    """Asserts on every rank of three."""
    wire = Wire()
    rank = wire.rank
    assert (rank, wire.size, str(wire.device)) == (dist.get_rank(), 3, "cpu")
    mine = torch.tensor([rank, -rank, 2**53 + rank])
    assert wire.largest(torch.tensor([[float(rank)], [-float(rank)]])).tolist() == [[2.0], [0.0]]
    assert wire.total(mine).tolist() == [3, -3, 3 * 2**53 + 3], "float64 would lose the 3"
    assert wire.total(mine, to_server=True).tolist() == [3, -3, 3 * 2**53 + 3] or rank
    assert mine.tolist() == [rank, -rank, 2**53 + rank], "it is not changed"
    assert list(wire.total(torch.zeros(0, 2)).shape) == [0, 2]
    value = nested()
    assert same(wire.share(value if rank == 0 else None), value)
    assert (wire.share(value) is value) == (rank == 0)
    assert wire.share({"from": rank}, source=2) == {"from": 2}
    first, second, third = wire.collect({"rank": rank, "what": "ü" * rank, 1: (math.nan, rank)} if rank != 1 else None)
    assert (first["rank"], second, third["what"]) == (0, None, "üü")
    assert isinstance(third[1], tuple)
    assert math.isnan(third[1][0])
    if rank == 2:
        wire.send(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:3])
    elif rank == 0:
        row = torch.full((3,), -1.0, dtype=torch.float64)
        wire.receive(row, 2)
        assert row.tolist() == [1.0, 2.0, 3.0]


def test_numbers_are_added_and_values_arrive_as_they_were() -> None:
    run_ranks(exchange, 3)


def test_a_group_of_some_ranks_counts_its_own() -> None:
    def some() -> Any:
        group = dist.new_group([1, 2])
        if dist.get_rank() == 0:
            return None
        wire = Wire(group)
        row = torch.zeros(2)
        if wire.rank:
            wire.send(torch.ones(2))
        else:
            wire.receive(row, 1)
        total = wire.total(torch.tensor(wire.rank + 1), to_server=True)
        return wire.rank, wire.share(wire.rank), wire.collect(wire.rank), int(total) if wire.rank == 0 else 0, row.sum()

    assert run_ranks(some, 3)[1:] == [(0, 0, [0, 1], 3, 2.0), (1, 0, [0, 1], 0, 0.0)]


def test_what_cannot_cross_is_named() -> None:
    for value in ({1, 2}, object(), b"bytes", range(3), Contribution(0, {})):
        with pytest.raises(TypeError, match=f"got {type(value).__name__}"):
            pack({"a": [value]})


class Odd(Exception):
    """One that other ranks cannot be asked to know."""


CASES: list[tuple[dict[int, BaseException], str]] = [
    ({1: ClientError(4, "train", "out of memory")}, "ClientError: client 4 failed in train: out of memory (on rank 1)"),
    ({2: AggregationError("too few")}, "AggregationError: too few (on rank 2)"),
    ({1: KeyError("width")}, "KeyError: 'width (on rank 1)'"),
    ({1: Odd("who knows")}, "RuntimeError: Odd: who knows (on rank 1)"),
    ({1: KeyboardInterrupt()}, "KeyboardInterrupt: (on rank 1)"),
    ({0: SystemExit(3)}, "RuntimeError: SystemExit: 3 (on rank 0)"),
    ({1: ValueError("all"), 2: ValueError("all")}, "ValueError: all (on ranks 1, 2)"),
    ({1: ValueError("first"), 2: OSError("second")}, "ValueError: first (on rank 1)"),
]
"""By case, the exceptions of ranks, and what a rank raises that has another one or none."""


def raised(step: Callable[[], Any]) -> tuple[str, dict[str, Any]]:
    try:
        step()
    except BaseException as error:
        return f"{type(error).__name__}: {error}", dict(vars(error))
    return "no error", {}


def failing() -> list[tuple[str, dict[str, Any]]]:
    wire = Wire()
    found = [raised(lambda errors=errors: wire.agree(errors.get(wire.rank))) for errors, _ in CASES]
    found.append(raised(lambda: together(wire, lambda: 1 / (wire.rank - 1))))
    found.append(raised(lambda: wire.share({1, 2} if wire.rank == 0 else None)))
    found.append(raised(lambda: wire.collect(torch.zeros(1) if wire.rank == 2 else 1)))
    found.append(raised(lambda: wire.agree(None)))
    return found


def test_every_rank_raises_what_one_has_met() -> None:
    by_rank = run_ranks(failing, 3)
    for case, (errors, text) in enumerate(CASES):
        for rank, found in enumerate(one[case] for one in by_rank):
            own = errors.get(rank) if f"{rank}" in text.rpartition("(on rank")[2] else None
            assert found[0] == (text if own is None else f"{type(own).__name__}: {own}")
    assert all((one[0][1]["client_id"], one[0][1]["stage"]) == (4, "train") for one in by_rank)
    for rank, found in enumerate(by_rank):
        for place, (source, kind) in enumerate(((1, "ZeroDivisionError"), (0, "TypeError"), (2, "TypeError"))):
            text = found[len(CASES) + place][0]
            assert text.startswith(kind)
            assert text.endswith(f"(on rank {source})") == (rank != source)
        assert found[-1][0] == "no error"


def test_the_helper_says_what_happened_and_leaves_no_process_behind() -> None:
    def fails() -> None:
        if dist.get_rank() == 1:
            raise ValueError("this one")
        dist.barrier()

    def dies() -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(RankError, match="this one"):
        run_ranks(fails, 2)
    with pytest.raises(RankError, match="rank 1 ended with -9"):
        run_ranks(dies, 2)
    with pytest.raises(TimeoutError, match="2 of 2 ranks"):
        run_ranks(lambda: time.sleep(60), 2, timeout=0.5)
