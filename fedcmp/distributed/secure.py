"""A cohort whose server sees sums and nothing else: masks over the integers of ``exact.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import sums_only_methods
from fedcmp.distributed.cohort import Layout, LocalCohort, Terms, largest_of_all
from fedcmp.distributed.exact import from_fixed, scale_exponents, sum_fixed
from fedcmp.errors import AggregationError
from fedcmp.secure.parties import num_bytes
from fedcmp.secure.protocol import Costs, Losses, secure_sum
from fedcmp.types import Params

ZEROS = -2000
"""Below every exponent that float64 has."""


class Sizes(NamedTuple):
    """Before the sum, client to server: what the scale is agreed from. The largest of all goes back to every client."""

    client: int
    exponents: tuple[int, ...]
    """For each tensor the least e with ``|x| < 2^e`` for all its entries x, and ZEROS for one that is all zeros."""


class ClientsLost(AggregationError):
    """Clients were lost in the first sum of a round: it can begin again over the survivors."""

    def __init__(self, survivors: tuple[int, ...], lost: tuple[int, ...]) -> None:
        super().__init__(f"clients {list(lost)} were lost in the first sum of the round")
        self.survivors, self.lost = survivors, lost


class SecureCohort(LocalCohort):
    """All clients in one process, each sum by the true messages of secure aggregation (``fedcmp.secure``).

    Sums have the bits of a ``LocalCohort``: masks cancel exactly in integers. With a client its weight is lost, too,
    and a sum does not say which of its terms were weighted. So a loss in the *first* sum ends it with ``ClientsLost``,
    and a new cohort of the survivors begins again: the server then has the same sum over the same clients twice, with
    weights that differ by one factor that it knows. In a *later* sum, to begin again would give it sums over two sets
    of clients, whose difference is the term of the lost one: that is an error. ``traffic`` is that of the plain cohort;
    what masks add is in ``costs``.

    Args:
        contributions, weighting, population: as for ``LocalCohort``.
        method: the name of the method in errors.
        losses: called with the number of a sum, 0, 1, ...: the clients that are lost in it.
        watch: is called with every message that the server gets: its whole view.
        largest: by the name of a tensor, what bounds the magnitude of its entries in every term, where that is known
            beforehand; None: clients send the sizes of their entries, and a scale is agreed from that.
        least: the fewest clients that must stay to the end of a sum, if more than two thirds.

    Raises:
        AggregationError: as ``LocalCohort``.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        weighting: str = "samples",
        population: int | None = None,
        *,
        method: str = "the method",
        losses: Callable[[int], Losses] = lambda number: Losses(),
        watch: Callable[[Any], None] = lambda message: None,
        largest: Callable[[str], float] | None = None,
        least: int = 0,
    ) -> None:
        super().__init__(contributions, weighting, population)
        self._method, self._losses, self._watch = method, losses, watch
        self._largest, self._least = largest, least
        self.costs = Costs()
        """Of all sums so far."""
        self.num_sums = 0

    def sum(self, fn: Callable[[Contribution], Params], weights: torch.Tensor | None = None) -> Params:
        """The sum, in the bits of a ``LocalCohort``; all that the server gets are the messages of the protocol.

        Raises:
            ClientsLost: in the first sum, up to a third of the clients were lost.
            AggregationError: clients were lost in a later sum, more than a third in any, or there is only one; or as
                for a ``LocalCohort``.
        """
        terms = Terms(self._contributions, fn, self.clients, weights)
        layout = self._common([terms.scan()], self.clients)
        if not layout:
            return {}
        bounds = self._agree(layout, terms) if self._largest is None else self._known(layout, terms, self._largest)
        exponents = scale_exponents(bounds, len(self.clients))
        fixed = (sum_fixed([term], exponents) for term in terms)
        words = (torch.cat([one[name].reshape(-1).cpu() for name in layout]).numpy().view(np.uint64) for one in fixed)
        summed = secure_sum(self.clients, words, self._losses(self.num_sums), least=self._least, watch=self._watch)
        self.costs = self.costs.plus(summed.costs)
        self.num_sums += 1
        self._require_all(summed.survivors)
        device = next(iter(self._contributions[0].delta.values())).device
        total = torch.from_numpy(summed.total.view(np.int64)).to(device)
        parts = total.split([math.prod(shape) for _, *shape in layout.values()])
        return {
            name: from_fixed(part.view(shape), exponents[name])
            for (name, (_, *shape)), part in zip(layout.items(), parts, strict=True)
        }

    def gather(self, fn: Callable[[Contribution], Params], clients: Sequence[int] | None = None) -> Params:
        """Refused: a single client's term stays hidden.

        Raises:
            AggregationError: always.
        """
        raise AggregationError(
            f"{self._method} asks for what single clients sent, and secure aggregation gives the server sums only; "
            f"methods that work: {', '.join(sums_only_methods())}; cosines between clients need aggregator.pairwise=0"
        )

    def _agree(self, layout: Layout, terms: Terms) -> dict[str, float]:
        """What bounds the entries of each tensor, agreed by messages of their own."""
        told = [Sizes(one, tuple(size_of(terms.largest[one][name]) for name in layout)) for one in self.clients]
        for message in told:
            self._watch(message)
        most = [max(sizes) for sizes in zip(*(one.exponents for one in told), strict=True)]
        self.costs = self.costs.plus(Costs(sum(map(num_bytes, told)), len(told) * num_bytes(tuple(most))))
        return dict(zip(layout, map(bound_of, most), strict=True))

    def _known(self, layout: Layout, terms: Terms, largest: Callable[[str], float]) -> dict[str, float]:
        """What bounds the entries of each tensor, known beforehand."""
        for name, value in largest_of_all(layout, list(terms.largest.values())).items():
            if value > largest(name):
                raise AggregationError(f"a client sends {value} into the sum of {name!r}: over {largest(name)}")
        return {name: largest(name) for name in layout}

    def _require_all(self, survivors: tuple[int, ...]) -> None:
        missing = tuple(one for one in self.clients if one not in survivors)
        if missing and self.num_sums == 1:
            raise ClientsLost(survivors, missing)
        if missing:
            raise AggregationError(
                f"clients {list(missing)} were lost after the first sum of the round: sums over two sets of clients "
                "would show what the lost ones sent; begin a new round"
            )


def size_of(largest: float) -> int:
    """The least e with ``largest < 2^e``; ZEROS for 0."""
    return math.frexp(largest)[1] if largest else ZEROS


def bound_of(size: int) -> float:
    """The largest number of a size: it gives the same scale as the largest value itself."""
    return math.ldexp(1 - 2.0**-53, size) if size > ZEROS else 0.0
