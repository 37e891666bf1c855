"""A method over sites gives the bits of one process, for every method, with as few exchanges as it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from samples_of_clients import CASES, NUM_CLIENTS, contributions, plain, rounds

from fedcmp.aggregation.presets import build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.sites.hub import HubCohort
from fedcmp.sites.messages import Said, Speak, decode, encode
from fedcmp.sites.replay import SiteCohort, replay
from fedcmp.types import Params

EXCHANGES = {
    "fedavg": 1, "regmean": 1, "fedprox": 1, "fednova": 1, "median": 1, "scaffold": 1, "fedcm": 1, "ties": 2,
    "krum": 2, "knots": 3, "fedcmp": 3, "fedcmp, guarded": 4,
}  # fmt: skip
"""In a round, as docs/sites.md states them."""


@pytest.mark.parametrize("name", CASES)
def test_sites_give_the_bits_of_one_process(name: str) -> None:
    aggregator, made = build_aggregator(CASES[name]), list[HubCohort]()

    def at_sites(round_: int, params: Params, local: dict[str, Any]) -> HubCohort:
        """The cohort of a round whose clients are behind messages."""
        own = {one.client_id: one for one in contributions(round_)}
        known = LocalCohort(list(own.values()), CASES[name].weights, NUM_CLIENTS + 2)

        def ask(shared: Sequence[Any], heard: Mapping[int, int]) -> dict[int, list[Params]]:
            found = {}
            for client in own:
                asked = Speak(round_, known.clients, known.weights, 0, list(shared), heard[client], {})
                there: Speak = decode(encode(asked))
                cohort = SiteCohort(
                    own[client], there.clients, there.weights, NUM_CLIENTS + 2, there.shared, there.heard
                )
                said: Said = decode(encode(Said(replay(aggregator, cohort, params, local))))
                found[client] = said.terms
            return found

        made.append(HubCohort(known.clients, known.weights, NUM_CLIENTS + 2, ask))
        return made[-1]

    for one, two in zip(rounds(CASES[name]), rounds(CASES[name], at_sites), strict=True):
        for part in ("params", "state", "metrics"):
            assert plain(getattr(one, part)) == plain(getattr(two, part))
    if name in EXCHANGES:
        assert {cohort.exchanges for cohort in made} == {EXCHANGES[name]}
