"""Order-free summation: the same bits for any order and any grouping of the terms.

Floating-point sums depend on the order of their terms; sums of integers do not. So every value becomes an int64 at a
power-of-two scale, the same for all terms of a tensor, chosen from the largest magnitude and the number of terms such
that no partial sum can overflow::

    s     = min(51, 62 - ceil(log2 K)) - e,   2^(e-1) <= max_k |x_k| < 2^e
    total = sum_k round(2^s x_k)     (exact, in int64),     result = 2^-s total     (float64)

Accuracy: before the one rounding of the result to float64, a sum of K <= 2048 terms is off by at most
``K max_k |x_k| 2^-51`` at every entry of a tensor, however many terms cancel: what float64 resolves at the largest
entry. The error is absolute, so quantities of very different size belong into tensors of their own. With 51 bits a term
is rounded and turned into an integer by one addition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.errors import AggregationError
from fedcmp.types import Params

BITS = 62
"""A sum stays below 2^62 in magnitude, half of what an int64 holds: rounding up cannot overflow it."""
TERM_BITS = 51
"""A term is at most 2^51 in magnitude: ROUNDS + term is in [2^52, 2^53], where float64 has whole numbers only."""
ROUNDS = 1.5 * 2**52
"""Adding it rounds to the nearest whole number, ties to even; the bits of the sum count up from those of ROUNDS."""
ROUNDS_BITS = 0x4338 << 48
CHUNK = 2**17
"""Entries that are turned into integers at a time on a CPU, so that they and their sum stay in its cache; smaller terms
are piled up until they are as many. On a GPU 512 times as many: a piece is worth its launch."""
PILE = 4
"""Terms that are added together, however large, so that their sum is read and written once for all of them."""


class Term(NamedTuple):
    """What one client brings into a sum: each tensor counts ``weight`` times, and the product is never held."""

    tensors: Mapping[str, Tensor]
    weight: float = 1.0


def largest_magnitude(value: Tensor) -> float:
    """``max |x|`` over all entries; 0 for no entries, not finite if any entry is not.

    >>> largest_magnitude(torch.tensor([1.0, -3.0])), largest_magnitude(torch.tensor([1.0, float("nan")]))
    (3.0, nan)
    """
    if not value.numel():
        return 0.0
    low, high = value.aminmax()  # both are nan if any entry is
    return max(-float(low), float(high))


def scale_exponents(largest: Mapping[str, float], num_terms: int) -> dict[str, int]:
    """The exponent s of each tensor's scale 2^s.

    Args:
        largest: the largest magnitude of each tensor, over all terms wherever they are.
        num_terms: K, all terms wherever they are.

    Raises:
        AggregationError: a tensor holds a value that is not finite, or values whose sum may leave float64.

    >>> scale_exponents({"w": 1.0, "b": 0.25, "zero": 0.0}, num_terms=4)
    {'w': 50, 'b': 52, 'zero': 0}
    """
    for name, value in largest.items():
        if not math.isfinite(value * num_terms):
            raise AggregationError(f"the sum over clients of {name!r} may leave float64: a term is as large as {value}")
    room = min(TERM_BITS, BITS - (num_terms - 1).bit_length())
    return {name: room - math.frexp(value)[1] if value else 0 for name, value in largest.items()}


def sum_fixed(terms: Iterable[Term], exponents: Mapping[str, int]) -> Params:
    """The sum of the terms as int64, each tensor at its own scale; empty for no terms. Sums of sums are sums.

    >>> sum_fixed([Term({"w": torch.tensor([0.5])}), Term({"w": torch.tensor([1.0])}, -2.0)], {"w": 3})
    {'w': tensor([-12])}
    """
    totals: Params = {}
    piles: dict[str, list[tuple[Tensor, float]]] = {}
    for term in terms:
        for name, value in term.tensors.items():
            if name not in totals:
                totals[name] = torch.zeros(value.shape, dtype=torch.int64, device=value.device)
            pile = piles.setdefault(name, [])
            pile.append((value, term.weight))
            if len(pile) >= max(PILE, _piece(value) // max(1, value.numel())):
                _add(totals[name], pile, exponents[name])
                pile.clear()
    for name, pile in piles.items():
        if pile:
            _add(totals[name], pile, exponents[name])
    return totals


def from_fixed(total: Tensor, exponent: int) -> Tensor:
    """``2^-s total``, float64, rounded once; it takes the place of ``total``, in the same memory.

    >>> from_fixed(torch.tensor([-12]), 3)
    tensor([-1.5000], dtype=torch.float64)
    """
    result, piece = total.view(torch.float64), _piece(total)
    for whole, real in zip(total.view(-1).split(piece), result.view(-1).split(piece), strict=True):
        real.copy_(_scale(whole.double(), -exponent))
    return result


def _piece(value: Tensor) -> int:
    return CHUNK if value.device.type == "cpu" else 512 * CHUNK


def _add(total: Tensor, pile: Sequence[tuple[Tensor, float]], exponent: int) -> None:
    """Adds ``round(2^s w_k x_k)`` of all terms of a pile."""
    entries = [value.reshape(-1) for value, _ in pile]
    factors = torch.tensor([weight for _, weight in pile], dtype=torch.float64, device=total.device).unsqueeze(1)
    near = max(-500, min(500, exponent))
    factors *= math.ldexp(1.0, near)  # exact: the products are rounded as if the scale came after them
    sums, step = total.view(-1), max(1, _piece(total) // len(pile))
    above = _wrapped(len(pile) * ROUNDS_BITS)
    for begin in range(0, total.numel(), step):
        part = torch.stack([one[begin : begin + step] for one in entries]).to(torch.float64)
        part = _scale(part.mul_(factors), exponent - near).add_(ROUNDS)
        sums[begin : begin + step] += part.view(torch.int64).sum(0).sub_(above)  # both wrap around


def _wrapped(number: int) -> int:
    """A whole number as an int64 holds it.

    >>> _wrapped(2**63), _wrapped(5)
    (-9223372036854775808, 5)
    """
    return (number + 2**63) % 2**64 - 2**63


def _scale(values: Tensor, exponent: int) -> Tensor:
    """``2^exponent values``, in place; in two steps where the factor itself would leave float64."""
    while exponent:
        near = max(-1000, min(1000, exponent))
        values *= math.ldexp(1.0, near)
        exponent -= near
    return values
