"""Krum and multi-Krum: the deltas that lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcmp.aggregation.checks import require_count
from fedcmp.aggregation.contribution import Cohort, delta_of, gather_pieces, single
from fedcmp.aggregation.linalg import cache_columns
from fedcmp.aggregation.parts import Fuse, Fused, State
from fedcmp.types import Metrics, Params


@dataclass(frozen=True)
class Krum(Fuse):
    """The mean of the ``keep`` deltas with the lowest scores, f = ``byzantine``::

        score_k = sum of the K - f - 2 smallest |D_k - D_j|^2 over j != k      (over all parameters together)

    It expects at most f Byzantine clients: of more, some are among the K - f of multi-Krum. Of equal scores the smaller
    client id wins. Clients count alike. Distances are sums of squared differences in float64, in pieces of K x CHUNK
    numbers (from products of the deltas they would cancel); the mean is a sum, so only distances need K deltas.

    Source: Blanchard et al., NeurIPS 2017, arXiv 1703.02757; keep > 1 is its multi-Krum, with K - f by default.
    Differs from the paper: chooses among deltas after many local steps, where it chooses among gradients; its proof
    holds for keep = 1 (and for keep < K - 2f - 2), ours lets any keep up to K pass.
    """

    sums_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = False

    byzantine: int = 1
    """f, Byzantine clients that it withstands in a round, >= 0; a round needs at least 2f + 3 clients."""
    keep: int = 1
    """How many deltas are averaged, >= 0; 1: Krum, more: multi-Krum, 0: all but f."""

    def __post_init__(self) -> None:
        require_count("aggregator.fuse.byzantine", self.byzantine, least=0)
        require_count("aggregator.fuse.keep", self.keep, least=0)

    @property
    def least_clients(self) -> int:
        """2f + 3, and as many as are kept."""
        return max(2 * self.byzantine + 3, self.keep)

    def fuse(self, cohort: Cohort, params: Params, state: State) -> Fused:
        squares: Tensor | float = 0.0
        for _, rows in gather_pieces(cohort, params):
            squares = cohort.on_server(_add_squares, squares, rows)
        chosen = cohort.share(cohort.on_server(self._choose, squares, cohort.clients))
        kept = torch.tensor([client in chosen for client in cohort.clients]).double() / len(chosen)
        total = cohort.sum(delta_of, kept)
        mean = cohort.sum(delta_of, cohort.weights)
        metrics: Metrics = {"aggregator/chosen": [*chosen]}
        return cohort.on_server(lambda: Fused(single(total), mean, {}, metrics))

    def _choose(self, squares: Tensor, clients: tuple[int, ...]) -> list[int]:
        num = len(clients)
        first, second = torch.triu_indices(num, num, offset=1)
        distances = squares.new_zeros(num, num)
        distances[first, second] = distances[second, first] = squares
        # a client's distance to itself is 0 and comes first
        scores = distances.sort(dim=1).values[:, 1 : num - self.byzantine - 1].sum(dim=1).tolist()
        ranking = sorted(zip(scores, clients, strict=True))
        return sorted(client for _, client in ranking[: self.keep or len(clients) - self.byzantine])


def _add_squares(squares: Tensor | float, rows: Params) -> Tensor:
    """The squared distances of the pairs i < j, row by row."""
    parts = [torch.pdist(part.double()).square() for part in cache_columns(rows["piece"])]
    return squares + torch.stack(parts).sum(0)
