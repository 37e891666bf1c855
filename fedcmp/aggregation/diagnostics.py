"""Measures of interference between clients and of oscillation between rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Cohort, gather_pieces
from fedcmp.aggregation.linalg import cache_parts
from fedcmp.types import Metrics, Params


def energy_kept(square: float, mean_square: float) -> float:
    """How much of the clients' energy survives averaging: ``|sum_k p_k D_k|^2 / sum_k p_k |D_k|^2``, in [0, 1].

    It is 1 where all clients say the same or none moved, ``sum_k p_k^2`` (1/K for equal weights) where K clients of
    equal norm are orthogonal, and 0 where they cancel.
    """
    return min(1.0, square / mean_square) if mean_square else 1.0


def cosines_of(products: Tensor) -> Tensor:
    """The cosines that belong to the inner products of K vectors: ``[K, K]``, float64, in [-1, 1].

    A vector that is zero has cosine 0 to every other one. The diagonal is 1.

    >>> cosines_of(torch.tensor([[1.0, 0.0, -3.0], [0.0, 4.0, 0.0], [-3.0, 0.0, 9.0]])).tolist()
    [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    """
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    cosines = torch.where(scale > 0, products / scale.where(scale > 0, torch.ones_like(scale)), 0.0).clamp(-1.0, 1.0)
    return cosines.fill_diagonal_(1.0)


def compare_steps(before: Params | None, now: Params, after: Params) -> tuple[float, float]:
    """Two successive server steps, from ``before`` to ``now`` (None: there was none) and from there to ``after``.

    Returns:
        The norm of the second one, and the cosine between them, in [-1, 1]: below 0 the server swings back. 0 if either
        is zero.
    """
    square = product = previous = 0.0
    for name, value in now.items():
        starts = cache_parts(before[name] if before else value)
        for start, at, end in zip(starts, cache_parts(value), cache_parts(after[name]), strict=True):
            step, last = (end - at).double(), (at - start).double()
            square += float(torch.dot(step, step))
            product += float(torch.dot(step, last))
            previous += float(torch.dot(last, last))
    scale = (previous * square) ** 0.5
    return square**0.5, max(-1.0, min(1.0, product / scale)) if scale > 0.0 else 0.0


def effective_clients(weights: Tensor) -> float:
    """``K_eff = 1 / sum_k p_k^2``: as many equal clients would weigh alike; between 1 and K."""
    return 1.0 / float(weights.double().square().sum())


def cohort_cosines(cohort: Cohort, params: Params, most: int) -> Metrics:
    """Cosines between the deltas of up to ``most`` clients, evenly spread over the ids.

    Returns:
        At the server ``aggregator/cosine`` (mean over pairs), ``aggregator/cosine_min`` and ``aggregator/cosines`` (the
        pairs i < j, row by row); empty where there is no pair.
    """
    count = min(most, len(cohort.clients))
    if count < 2:
        return {}
    chosen = [cohort.clients[place * len(cohort.clients) // count] for place in range(count)]
    return cohort.on_server(_pairs, cohort_products(cohort, params, chosen))


def cohort_products(cohort: Cohort, params: Params, clients: Sequence[int]) -> Tensor | float:
    """Inner products of the deltas of any two ``clients``, gathered in pieces: ``[K, K]`` float64, at the server."""
    products: Tensor | float = 0.0
    for _, rows in gather_pieces(cohort, params, clients):
        products = cohort.on_server(_add_products, products, rows)
    return products


def _add_products(products: Tensor | float, rows: Params) -> Tensor:
    piece = rows["piece"].double()
    return products + piece @ piece.T


def _pairs(products: Tensor) -> Metrics:
    cosines, num = cosines_of(products), len(products)
    pairs = cosines[tuple(torch.triu_indices(num, num, offset=1))]
    return {
        "aggregator/cosine": float((cosines.sum() - cosines.diagonal().sum()) / (num * (num - 1))),
        "aggregator/cosine_min": float(pairs.min()),
        "aggregator/cosines": [round(value, 4) for value in pairs.tolist()],
    }


def histogram(values: Tensor, bins: int = 10) -> list[float]:
    """The share of ``values`` in each of ``bins`` equal parts of [0, 1]; values outside count for the nearest part.

    >>> histogram(torch.tensor([0.0, 0.1, 0.9, 1.0]), bins=2)
    [0.5, 0.5]
    """
    places = (values.double().clamp(0, 1) * bins).long().clamp(max=bins - 1)
    counts = (places[:, None] == torch.arange(bins, device=places.device)).sum(dim=0)
    return [round(value / max(1, len(values)), 4) for value in counts.tolist()]
