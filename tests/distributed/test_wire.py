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
from fedcmp.distributed.messages import pack
from fedcmp.distributed.wire import Wire
from fedcmp.errors import AggregationError, ClientError, RunFolderError

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool,
    torch.complex64,
)  # fmt: skip


def raised(step: Callable[[], Any]) -> tuple[str, str, dict[str, Any]]:
    try:
        step()
    except BaseException as error:
        return type(error).__name__, str(error), dict(vars(error))
    return "nothing", "", {}


def nested() -> dict[Any, Any]:
    return {
        "plain": [1, -2.5, True, None, "é\ud800", math.inf, -math.inf, -0.0, 2**70, 0.1],
        "nested": ({"a": (), "b": []}, [{}, ("x",)]),
        3: {(1, "key"): "keys need not be text"},
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


def exchange() -> dict[str, Any]:
    wire = Wire()
    rank = wire.rank
    found: dict[str, Any] = {"rank": rank, "size": wire.size, "device": str(wire.device)}
    mine = torch.tensor([rank, -rank, 2**53 + rank], dtype=torch.int64)
    found["largest"] = wire.largest(torch.tensor([[float(rank)], [-float(rank)]])).tolist()
    found["all"] = wire.total(mine).tolist()
    found["server"] = wire.total(mine, to_server=True).tolist()
    found["untouched"] = mine.tolist()
    found["double"] = wire.total(torch.tensor(0.5**rank, dtype=torch.float64)).item()
    found["empty"] = list(wire.total(torch.zeros(0, 2)).shape)
    value = nested()
    found["shared"] = same(wire.share(value if rank == 0 else None), value)
    found["itself"] = wire.share(value) is value
    found["from"] = wire.share({"from": rank}, source=wire.size - 1)
    found["collected"] = wire.collect({"rank": rank, "what": "ü" * rank, 1: (math.nan, rank)} if rank != 1 else None)
    row = torch.full((3,), -1.0, dtype=torch.float64)
    if rank == wire.size - 1:
        wire.send(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:3])
    elif rank == 0:
        wire.receive(row, wire.size - 1)
    found["received"] = row.tolist()
    return found


@pytest.fixture(scope="module")
def exchanged() -> list[dict[str, Any]]:
    return run_ranks(exchange, 3)


def test_numbers_are_added_and_compared(exchanged: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(exchanged):
        assert (found["rank"], found["size"], found["device"]) == (rank, 3, "cpu")
        assert found["largest"] == [[2.0], [0.0]]
        assert found["all"] == [3, -3, 3 * 2**53 + 3]  # float64 would lose the 3
        assert found["untouched"] == [rank, -rank, 2**53 + rank]
        assert found["double"] == 1.75
        assert found["empty"] == [0, 2]
    assert exchanged[0]["server"] == [3, -3, 3 * 2**53 + 3]


def test_values_arrive_as_they_were(exchanged: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(exchanged):
        assert found["shared"]
        assert found["itself"] == (rank == 0)
        assert found["from"] == {"from": 2}
        first, second, third = found["collected"]
        assert (first["rank"], second, third["what"]) == (0, None, "üü")
        assert isinstance(third[1], tuple)
        assert math.isnan(third[1][0])
    assert exchanged[0]["received"] == [1.0, 2.0, 3.0]


def test_what_cannot_cross_is_named() -> None:
    for value in ({1, 2}, object(), b"bytes", range(3), Contribution(0, {})):
        with pytest.raises(TypeError, match=f"got {type(value).__name__}"):
            pack({"a": [value]})


class Odd(Exception):
    """One that other ranks cannot be asked to know."""


def failing() -> list[tuple[str, str, dict[str, Any]]]:
    wire = Wire()

    def on(rank: int, error: BaseException) -> Callable[[], None]:
        return lambda: wire.agree(error if wire.rank == rank else None)

    def divides() -> float:
        return 1 / (wire.rank - 1)

    cases = [
        on(1, ClientError(4, "train", "out of memory")),
        on(2, AggregationError("too few")),
        on(0, RunFolderError("exists")),
        on(1, KeyError("width")),
        on(1, FileNotFoundError(2, "No such file", "x.json")),
        on(1, Odd("who knows")),
        on(2, UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")),
        on(1, KeyboardInterrupt()),
        on(0, SystemExit(3)),
        lambda: wire.agree(ValueError("all") if wire.rank else None),
        lambda: wire.agree([None, ValueError("first"), OSError("second")][wire.rank]),
        lambda: wire.together(divides),
        lambda: wire.share({1, 2} if wire.rank == 0 else None),
        lambda: wire.collect(torch.zeros(1) if wire.rank == 2 else 1),
        lambda: wire.agree(None),
    ]
    return [raised(case) for case in cases]


EXPECTED = [
    (1, "ClientError", "client 4 failed in train: out of memory", "(on rank 1)"),
    (2, "AggregationError", "too few", "(on rank 2)"),
    (0, "RunFolderError", "exists", "(on rank 0)"),
    (1, "KeyError", "'width'", "(on rank 1)"),
    (1, "FileNotFoundError", "[Errno 2] No such file: 'x.json'", "(on rank 1)"),
    (1, "Odd", "who knows", "(on rank 1)"),
    (2, "UnicodeDecodeError", "'utf-8' codec can't decode byte 0x78 in position 0: bad", "(on rank 2)"),
    (1, "KeyboardInterrupt", "", "(on rank 1)"),
    (0, "SystemExit", "3", "(on rank 0)"),
    (None, "ValueError", "all", "(on ranks 1, 2)"),
    (None, "ValueError", "first", "(on rank 1)"),
    (1, "ZeroDivisionError", "division by zero", "(on rank 1)"),
    (0, "TypeError", "got set", "(on rank 0)"),
    (2, "TypeError", "cannot be collected", "(on rank 2)"),
    (None, "nothing", "", ""),
]


FOREIGN = {"Odd", "UnicodeDecodeError", "SystemExit"}
"""What cannot be made anew from words is a RuntimeError on other ranks."""


def test_every_rank_raises_what_one_has_met() -> None:
    by_rank = run_ranks(failing, 3)
    for case, (source, kind, message, where) in enumerate(EXPECTED):
        for rank, found in enumerate(one[case] for one in by_rank):
            known = kind if rank == source or kind not in FOREIGN else "RuntimeError"
            assert found[0] == known
            assert message.strip("'") in found[1]
            if source is not None:
                assert (where in found[1]) == (rank != source)
    for found in (one[0] for one in by_rank):
        assert (found[2]["client_id"], found[2]["stage"]) == (4, "train")
    assert [one[9][1] for one in by_rank] == ["all (on ranks 1, 2)", "all", "all"]
    assert [one[10][1] for one in by_rank] == ["first (on rank 1)", "first", "first (on rank 1)"]


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


def test_the_helper_tells_what_happened_and_leaves_nobody_behind() -> None:
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
