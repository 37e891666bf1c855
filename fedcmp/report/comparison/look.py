"""One colour and one line for a method, wherever it appears."""

from __future__ import annotations

from typing import Any

from fedcmp.report.comparison.reading import Comparison
from fedcmp.report.figures import COOL, DASHES, INK, PALETTE


def hue(comparison: Comparison, method: str) -> str:
    """Its colour: the reference's is its own, bounds are ink."""
    if method in comparison.bounds:
        return INK
    if method == comparison.reference:
        return COOL
    others = PALETTE[1:]
    return others[_place(comparison, method) % len(others)]


def dash(comparison: Comparison, method: str) -> Any:
    """Its line."""
    if method in comparison.bounds:
        return (0, (4, 3)) if method == comparison.bounds[0] else (0, (1.5, 1.5))
    if method == comparison.reference:
        return "-"
    return DASHES[_place(comparison, method) // (len(PALETTE) - 1) % len(DASHES)]


def width(comparison: Comparison, method: str) -> float:
    """The reference stands out."""
    return 2.4 if method == comparison.reference else 1.3


def _place(comparison: Comparison, method: str) -> int:
    rivals = [name for name in comparison.methods if name not in (comparison.reference, *comparison.bounds)]
    return rivals.index(method)
