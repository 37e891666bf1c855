"""Measures of interference between clients and of oscillation between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.linalg import cache_parts, squared_norm
from fedcmp.types import Metrics, Params

CHUNK = 2**22
"""Entries of one client that are gathered at a time."""


def square_of(contribution: Contribution) -> Params:
    """``|D_k|^2`` as a term of a sum."""
    return {"square": contribution.numbers(contribution.square)}


def energy_kept(square: float, mean_square: float) -> float:
    """How much of the clients' energy survives averaging: ``|sum_k p_k D_k|^2 / sum_k p_k |D_k|^2``, in [0, 1].

    It is 1 where all clients say the same, ``sum_k p_k^2`` (1/K for equal weights) where K clients of equal norm are
    orthogonal, and 0 where they cancel. Where no client moved, nothing was lost, and it is 1.

    Args:
        square: the squared norm of the weighted mean of the clients' deltas.
        mean_square: the weighted mean of their squared norms, at least 0.

    >>> energy_kept(0.5, 1.0)  # (0.5, 0.5) is the mean of (1, 0) and (0, 1)
    0.5
    """
    if mean_square == 0.0:
        return 1.0
    return min(1.0, square / mean_square)


def cosines_of(products: torch.Tensor) -> torch.Tensor:
    """The cosines that belong to the inner products of K vectors: ``[K, K]``, float64, in [-1, 1].

    A vector that is zero has cosine 0 to every other one. The diagonal is 1.

    >>> cosines_of(torch.tensor([[1.0, 0.0, -3.0], [0.0, 4.0, 0.0], [-3.0, 0.0, 9.0]])).tolist()
    [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    """
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    cosines = torch.where(scale > 0, products / scale.where(scale > 0, torch.ones_like(scale)), 0.0).clamp(-1.0, 1.0)
    return cosines.fill_diagonal_(1.0)


def mean_cosine(cosines: torch.Tensor) -> float:
    """The mean over all pairs of different clients, in [-1, 1]; 1 for a single client.

    >>> mean_cosine(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    0.5
    """
    num_clients = cosines.shape[0]
    if num_clients == 1:
        return 1.0
    return float((cosines.sum() - cosines.diagonal().sum()) / (num_clients * (num_clients - 1)))


def step_cosine(previous: Params, current: Params, square: float) -> float:
    """The cosine between two successive server steps, in [-1, 1]: below 0 the server swings back. 0 if either is zero.

    Args:
        previous, current: the steps.
        square: the squared norm of the current one.

    >>> step_cosine({"bias": torch.tensor([1.0, 0.0])}, {"bias": torch.tensor([-2.0, 0.0])}, 4.0)
    -1.0
    """
    assert previous.keys() == current.keys(), "two steps of one model have the same keys"
    pairs = [
        pair
        for name, value in current.items()
        for pair in zip(cache_parts(previous[name]), cache_parts(value), strict=True)
    ]
    product = sum(float((before.double() * now.double()).sum()) for before, now in pairs)
    scale = (squared_norm(previous) * square) ** 0.5
    return max(-1.0, min(1.0, product / scale)) if scale > 0.0 else 0.0


def effective_clients(weights: torch.Tensor) -> float:
    """``K_eff = 1 / sum_k p_k^2``: as many equal clients would weigh alike; between 1 and K.

    >>> effective_clients(torch.tensor([0.5, 0.5, 0.0]))
    2.0
    """
    return 1.0 / float(weights.double().square().sum())


def cohort_cosines(cohort: Cohort, params: Params, most: int) -> Metrics:
    """Cosines between the deltas of every two clients, gathered in pieces: K x CHUNK numbers at a time, never K deltas.

    Args:
        cohort: the clients of a round.
        params: the parameters that the deltas belong to.
        most: measured are up to this many clients, evenly spread over the ids; below 2: none.

    Returns:
        At the server ``aggregator/cosine`` (mean over pairs), ``aggregator/cosine_min`` and ``aggregator/cosines`` (the
        pairs i < j, row by row); empty where there is no pair.
    """
    count = min(most, len(cohort.clients))
    if count < 2:
        return {}
    chosen = [cohort.clients[place * len(cohort.clients) // count] for place in range(count)]
    return cohort.on_server(_pairs, cohort_products(cohort, params, chosen))


def cohort_products(cohort: Cohort, params: Params, clients: Sequence[int]) -> torch.Tensor | float:
    """Inner products of the deltas of any two ``clients``, gathered in pieces: ``[K, K]`` float64, at the server."""
    products: torch.Tensor | float = 0.0
    for name, value in params.items():
        for begin in range(0, value.numel(), CHUNK):
            rows = cohort.gather(partial(piece, name, begin), clients)
            products = cohort.on_server(_add_products, products, rows)
    return products


def piece(name: str, begin: int, contribution: Contribution) -> Params:
    """``CHUNK`` entries of one parameter of a client's delta, from ``begin`` on: what a gather brings in one go."""
    return {"piece": contribution.delta[name].flatten()[begin : begin + CHUNK]}


def _add_products(products: torch.Tensor | float, rows: Params) -> torch.Tensor:
    piece = rows["piece"].double()
    return products + piece @ piece.T


def _pairs(products: torch.Tensor) -> Metrics:
    cosines = cosines_of(products)
    pairs = cosines[tuple(torch.triu_indices(len(cosines), len(cosines), offset=1))]
    return {
        "aggregator/cosine": mean_cosine(cosines),
        "aggregator/cosine_min": float(pairs.min()),
        "aggregator/cosines": [round(value, 4) for value in pairs.tolist()],
    }


def histogram(values: torch.Tensor, bins: int = 10) -> list[float]:
    """The share of ``values`` in each of ``bins`` equal parts of [0, 1]; values outside count for the nearest part.

    >>> histogram(torch.tensor([0.0, 0.1, 0.9, 1.0]), bins=2)
    [0.5, 0.5]
    """
    places = (values.double().clamp(0, 1) * bins).long().clamp(max=bins - 1)
    counts = (places[:, None] == torch.arange(bins, device=places.device)).sum(dim=0)
    return [round(value / max(1, len(values)), 4) for value in counts.tolist()]
