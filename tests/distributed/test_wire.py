"""What crosses ranks arrives as it was, exceptions too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.messages import pack, together
from fedcmp.distributed.wire import Wire
from fedcmp.errors import AggregationError, ClientError

DTYPES = (torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)


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


def exchange() -> Any:
    """Asserts on every rank of three; then ranks 1 and 2 exchange in a group of their own."""
    wire = Wire()
    rank = wire.rank
    assert (rank, wire.size, str(wire.device)) == (dist.get_rank(), 3, "cpu")
    mine = torch.tensor([[rank, 2**53 + rank], [-rank, 0]]).T
    expected = [[3, -3], [3 * 2**53 + 3, 0]]  # float64 would lose the 3
    assert wire.total(mine).tolist() == expected
    assert wire.total(mine, to_server=True).tolist() == expected or rank
    assert mine.tolist() == [[rank, -rank], [2**53 + rank, 0]], "it is not changed"
    assert list(wire.total(torch.zeros(0, 2)).shape) == [0, 2]
    value = nested()
    assert same(wire.share(value if rank == 0 else None), value)
    assert wire.share({"from": rank}, source=2) == {"from": 2}
    assert same(wire.collect({"rank": rank, 1: (math.nan, "ü" * rank)}), [{"rank": one, 1: (math.nan, "ü" * one)}
                                                                          for one in range(3)])  # fmt: skip
    group = dist.new_group([1, 2])
    if rank == 0:
        return None
    wire, rows = Wire(group), torch.full((2, 3), -1.0)
    if wire.rank:
        wire.send(torch.arange(6.0)[::2])
    else:
        wire.receive(rows[1], 1)
    total = wire.total(torch.tensor(wire.rank + 1), to_server=True)
    return wire.rank, wire.share(wire.rank, 1), wire.collect(wire.rank), int(total) * (not wire.rank), rows.tolist()


def test_numbers_are_added_and_values_arrive_as_they_were() -> None:
    found = run_ranks(exchange, 3)
    assert found[1] == (0, 1, [0, 1], 3, [[-1.0] * 3, [0.0, 2.0, 4.0]])
    assert found[2][:3] == (1, 1, [0, 1])


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", Contribution(0, {})], ids=lambda one: type(one).__name__)
def test_what_cannot_cross_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        pack({"a": [value]})


CASES: list[tuple[dict[int, BaseException], str, str]] = [
    ({1: ClientError(4, "train", "full")}, "ClientError", "client 4 failed in train: full (on rank 1)"),
    ({1: KeyError("width")}, "RuntimeError", "KeyError: width (on rank 1)"),
    ({1: KeyboardInterrupt()}, "KeyboardInterrupt", "(on rank 1)"),
    ({0: SystemExit(3)}, "RuntimeError", "SystemExit: 3 (on rank 0)"),
    ({1: AggregationError("all"), 2: AggregationError("all")}, "AggregationError", "all (on ranks 1, 2)"),
    ({1: ValueError("first"), 2: OSError("second")}, "RuntimeError", "ValueError: first (on rank 1)"),
]
"""The exceptions of ranks, and what a rank raises that has another one or none."""


def failing() -> list[tuple[str, str, dict[str, Any]]]:
    wire, found = Wire(), []
    for step in (
        *(lambda errors=errors: wire.agree(errors.get(wire.rank)) for errors, _, _ in CASES),
        lambda: together(wire, lambda: 1 / (wire.rank - 1)),
        lambda: wire.share({1, 2} if wire.rank == 0 else None),
        lambda: wire.collect(torch.zeros(1) if wire.rank == 2 else 1),
        lambda: wire.agree(None),
    ):
        try:
            step()
            found.append(("", "", {}))
        except BaseException as error:
            found.append((type(error).__name__, str(error), dict(vars(error))))
    return found


def test_every_rank_raises_what_one_has_met() -> None:
    by_rank = run_ranks(failing, 3)
    for case, (errors, kind, text) in enumerate(CASES):
        for rank, found in enumerate(one[case] for one in by_rank):
            own = errors.get(rank) if str(rank) in text.rpartition("(on rank")[2] else None
            assert found[:2] == ((kind, text) if own is None else (type(own).__name__, str(own)))
            assert found[2]["met_on"] == tuple(one for one in range(3) if str(one) in text.rpartition("(on rank")[2])
    assert all((one[0][2]["client_id"], one[0][2]["stage"]) == (4, "train") for one in by_rank)
    for rank, found in enumerate(by_rank):
        for place, (source, kind) in enumerate(((1, "ZeroDivisionError"), (0, "TypeError"), (2, "TypeError"))):
            name, text, _ = found[len(CASES) + place]
            assert (name == kind) if rank == source else (name == "RuntimeError" and text.startswith(kind))
        assert found[-1] == ("", "", {})
