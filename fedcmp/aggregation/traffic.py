"""What one client and the server exchange in a round, known before it from the shapes of the parameters alone.

Rules say it beside what they do, in numbers; a number is four bytes, as in ``base.Traffic``. Only names and shapes of
``params`` are read: tensors on the meta device will do.
"""

from __future__ import annotations

from typing import NamedTuple

from fedcmp.aggregation.base import Traffic, num_bytes
from fedcmp.aggregation.evidence import affine_layers
from fedcmp.types import Params


class Exchanged(NamedTuple):
    """Bounds of a round's traffic of one client. They are equal where shapes decide it and the data do not."""

    least: Traffic
    """In a round in which clients move at all."""
    most: Traffic
    widest: int
    """Bytes of the largest sum or gather, at most: what is held of a client while it is added."""


def exactly(up: int, down: int = 0) -> Exchanged:
    """So many numbers, whatever the data.

    >>> exactly(3)
    Exchanged(least=Traffic(up=12, down=0), most=Traffic(up=12, down=0), widest=12)
    """
    traffic = Traffic(4 * up, 4 * down)
    return Exchanged(traffic, traffic, traffic.up)


def between(low: Exchanged, high: Exchanged) -> Exchanged:
    """As little as the one, as much as the other."""
    return Exchanged(low.least, high.most, high.widest)


def repeated(one: Exchanged, times: int) -> Exchanged:
    """One after another, so many times.

    >>> repeated(exactly(1, 2), 5)
    Exchanged(least=Traffic(up=20, down=40), most=Traffic(up=20, down=40), widest=4)
    """
    least, most = (Traffic(times * up, times * down) for up, down in (one.least, one.most))
    return Exchanged(least, most, one.widest)


def together(*parts: Exchanged) -> Exchanged:
    """All of the parts.

    >>> together(exactly(1), between(exactly(0), exactly(2, 5))).most
    Traffic(up=12, down=20)
    """
    least, most = (
        Traffic(sum(one.up for one in bounds), sum(one.down for one in bounds))
        for bounds in ([part.least for part in parts], [part.most for part in parts])
    )
    return Exchanged(least, most, sum(one.widest for one in parts))


def count(params: Params) -> int:
    """How many numbers there are."""
    return num_bytes(params) // 4


def affine_shapes(params: Params) -> dict[str, tuple[int, int]]:
    """``(M, N')`` of ``[W b]`` of each affine layer.

    >>> import torch
    >>> affine_shapes({"linear.weight": torch.zeros(2, 3), "linear.bias": torch.zeros(2), "norm.bias": torch.zeros(9)})
    {'linear': (2, 4)}
    """
    shapes = {name: params[f"{name}.weight"].shape for name in affine_layers(params)}
    return {name: (rows, columns + 1) for name, (rows, columns) in shapes.items()}
