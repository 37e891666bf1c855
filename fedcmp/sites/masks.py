"""Secure aggregation over sites: the server adds terms without seeing one.

One run of the protocol of ``fedcmp.secure`` adds all terms that sites have to say between two values of the server.
Keys are new for each run, and are signed by the certificate of the site's kit: a server without copies of kits cannot
invent a site.

Differs from the simulation: a site that is lost before anything was opened is not recovered; the aggregation begins
again without it. Once a site has helped to open a sum of a round, that round is aggregated over no other sites: two
sums over different sites would show what one of them sent. Weights are checked against the plan for the same reason.
What the server shares between two exchanges is its own: one that lies there learns other sums, over all sites.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fedcmp.distributed.cohort import Layout, layout_of
from fedcmp.distributed.exact import Term, from_fixed, largest_magnitude, scale_exponents, sum_fixed
from fedcmp.distributed.secure import bound_of, size_of
from fedcmp.errors import AggregationError
from fedcmp.secure.parties import Advertisement, Answer, Client, Masked, Server, Shares, threshold
from fedcmp.sites.hub import OTHER_LAYOUT, LeftOut
from fedcmp.types import Params

Largest = Callable[[str], float]
"""By the name of a tensor, what bounds its entries in every term, where that is known beforehand."""


class Identity(Protocol):
    """Who a site is, to other sites."""

    certificate: str
    """In text."""

    def sign(self, data: bytes) -> bytes:
        """The signature of this site."""

    def verify(self, site: str, certificate: str, data: bytes, signature: bytes) -> bool:
        """Whether the site of that name has signed the data."""


class Signed(NamedTuple):
    """Keys of one site for one run of the protocol."""

    client: int
    letters: str
    masks: str
    commitment: str
    """32 bytes each, in hexadecimal digits."""
    certificate: str
    signature: str
    """Of run, round, clients, exchange and the fields before."""

    def claim(self, about: Sequence[Any]) -> bytes:
        """What is signed."""
        return json.dumps([*about, *self[:4]]).encode()

    def advertised(self) -> Advertisement:
        """For the protocol."""
        keys = (bytes.fromhex(one) for one in (self.letters, self.masks, self.commitment))
        return Advertisement(self.client, *keys)


class SiteMasks:
    """One run of the protocol at a site.

    Args:
        client: this site.
        clients: all that are aggregated.
        about: run, round, clients and exchange: what keys are signed for.
        terms: what this site has to say, and by what each counts.
        identity: of the site.
        largest: bounds that are known; None: sizes of entries are sent.

    Raises:
        AggregationError: a value is not finite.
    """

    def __init__(
        self,
        client: int,
        clients: Sequence[int],
        about: Sequence[Any],
        terms: Sequence[Term],
        identity: Identity,
        largest: Largest | None,
    ) -> None:
        self.clients, self._about, self._identity, self._largest = tuple(clients), list(about), identity, largest
        self._terms, self._party = terms, Client(client, threshold(len(clients)))
        one = self._party.advertise()
        signed = Signed(client, one.letters.hex(), one.masks.hex(), one.commitment.hex(), identity.certificate, "")
        self.signed = signed._replace(signature=identity.sign(signed.claim(about)).hex())
        self.layouts: list[Layout] = [layout_of(term.tensors) for term in terms]
        found = [
            {name: abs(term.weight) * largest_magnitude(value) for name, value in term.tensors.items()}
            for term in terms
        ]
        if not all(math.isfinite(value) for one in found for value in one.values()):
            raise AggregationError("a term of this site is not finite")
        self._found = found
        self.sizes: list[list[int]] = []
        """Of each term and tensor, the power of two above its largest entry; empty where bounds are known."""
        if largest is None:
            self.sizes = [[size_of(value) for value in one.values()] for one in found]

    def share(self, roster: Sequence[Signed], site_names: Sequence[str]) -> Shares:
        """Shares of this site's secrets, one letter to each other site.

        Raises:
            AggregationError: the roster is not of exactly the sites that are aggregated, or a signature is wrong.
        """
        if tuple(sorted(one.client for one in roster)) != self.clients or self.signed not in roster:
            raise AggregationError("the roster of keys is not that of the sites that are aggregated")
        for one in roster:
            name, signature = site_names[one.client], bytes.fromhex(one.signature)
            if not self._identity.verify(name, one.certificate, one.claim(self._about), signature):
                raise AggregationError(f"the keys of {name} are not signed by it")
        return self._party.share([one.advertised() for one in roster])

    def mask(self, letters: Mapping[int, bytes], most: Sequence[Sequence[int]]) -> Tensor:
        """The masked words of all terms, int64 ``[n]``.

        Raises:
            AggregationError: the agreed sizes are below this site's own.
        """
        exponents = agree(self.layouts, most, len(self.clients), self._largest)
        for own, bounds in zip(self._found, _bounds(self.layouts, most, self._largest), strict=True):
            if any(own[name] > bounds[name] for name in own):
                raise AggregationError("the agreed sizes are below those of this site")
        fixed = [sum_fixed([term], one) for term, one in zip(self._terms, exponents, strict=True)]
        words = torch.cat([one[name].reshape(-1).cpu() for one in fixed for name in one])
        masked = self._party.mask(dict(letters), words.numpy().view(np.uint64))
        return torch.from_numpy(masked.words.view(np.int64))

    def open(self, survivors: Sequence[int]) -> Answer:
        """Shares that open the sum over all sites.

        Raises:
            AggregationError: sites are missing: a sum over fewer is not opened.
        """
        if tuple(survivors) != self.clients:
            raise AggregationError("a sum over other sites than were agreed is not opened")
        return self._party.answer(survivors)


class HubMasks:
    """One run of the protocol at the coordinator.

    Args:
        stated: of each site, the ``layouts`` and ``sizes`` of its terms.
        largest: as for ``SiteMasks``.

    Raises:
        LeftOut: a site's terms have other layouts than the first one's, or sizes that do not fit them.
    """

    def __init__(
        self, stated: Mapping[int, tuple[list[Layout], Sequence[Sequence[int]]]], largest: Largest | None
    ) -> None:
        (layouts, _), *_ = stated.values()
        shape = [] if largest else [len(layout) for layout in layouts]
        others = [one for one, (own, sizes) in stated.items() if own != layouts or [*map(len, sizes)] != shape]
        if others:
            raise LeftOut(dict.fromkeys(others, OTHER_LAYOUT))
        self._server, self._layouts = Server(len(stated)), layouts
        sizes = [own for _, own in stated.values()]
        self.most = [[max(column) for column in zip(*rows, strict=True)] for rows in zip(*sizes, strict=True)]
        self._exponents = agree(layouts, self.most, len(stated), largest)

    def deliver(self, roster: Sequence[Signed], shares: Sequence[Shares]) -> dict[int, dict[int, bytes]]:
        """By receiver and sender, the letters."""
        self._server.roster([one.advertised() for one in roster])
        return self._server.deliver(shares)

    def add(self, client: int, words: Tensor) -> None:
        """Adds a site's masked words."""
        self._server.add(Masked(client, words.numpy().view(np.uint64)))

    def finish(self, answers: Sequence[Answer]) -> list[Params]:
        """The sums of all terms, float64."""
        total = torch.from_numpy(self._server.finish(answers).view(np.int64))
        sums: list[Params] = []
        place = 0
        for layout, exponents in zip(self._layouts, self._exponents, strict=True):
            found: Params = {}
            for name, (_, *shape) in layout.items():
                size = math.prod(shape)
                found[name] = from_fixed(total[place : place + size].clone().view(shape), exponents[name])
                place += size
            sums.append(found)
        return sums


def agree(
    layouts: Sequence[Layout], most: Sequence[Sequence[int]], count: int, largest: Largest | None
) -> list[dict[str, int]]:
    """The scale of each tensor of each term, the same at the server and at all sites."""
    return [scale_exponents(bounds, count) for bounds in _bounds(layouts, most, largest)]


def _bounds(
    layouts: Sequence[Layout], most: Sequence[Sequence[int]], largest: Largest | None
) -> list[dict[str, float]]:
    if largest is not None:
        return [{name: largest(name) for name in layout} for layout in layouts]
    return [dict(zip(layout, map(bound_of, sizes), strict=True)) for layout, sizes in zip(layouts, most, strict=True)]
