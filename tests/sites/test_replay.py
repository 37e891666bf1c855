"""A method over sites gives the bits of one process, for every method, with as few exchanges as it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from samples_of_clients import NUM_CLIENTS, contributions, random_params

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.sites.hub import HubCohort
from fedcmp.sites.messages import Said, Speak, decode, encode
from fedcmp.sites.replay import SiteCohort, replay
from fedcmp.types import Params

ROUNDS = 3
CASES = {name: AggregatorConfig(name, pairwise=64 if name == "fedcmp" else 0) for name in sorted(PRESETS)}
CASES["fedcmp, clipped"] = AggregatorConfig("fedcmp", clip_norm=0.3, pairwise=3)
CASES["fedcmp, guarded"] = AggregatorConfig("fedcmp", guard=True)
CASES["median, normalised"] = AggregatorConfig("median", normalise=True, weights="tokens")
EXCHANGES = {
    "fedavg": 1, "regmean": 1, "fedprox": 1, "fednova": 1, "median": 1, "scaffold": 1, "fedcm": 1, "ties": 2,
    "krum": 2, "knots": 3, "fedcmp": 3, "fedcmp, guarded": 4,
}  # fmt: skip
"""In a round, as docs/sites.md states them."""


def at_sites(aggregator: Aggregator, round_: int, params: Params, local: dict[str, Any], weighting: str) -> HubCohort:
    """The cohort of a round whose clients are behind messages."""
    own = {one.client_id: one for one in contributions(round_)}
    known = LocalCohort(list(own.values()), weighting, NUM_CLIENTS + 2)

    def ask(shared: Sequence[Any], heard: Mapping[int, int]) -> dict[int, list[Params]]:
        found = {}
        for client in own:
            asked = Speak(round_, known.clients, known.weights, 0, list(shared), heard[client], {})
            there: Speak = decode(encode(asked))
            cohort = SiteCohort(own[client], there.clients, there.weights, NUM_CLIENTS + 2, there.shared, there.heard)
            said: Said = decode(encode(Said(replay(aggregator, cohort, params, local))))
            found[client] = said.terms
        return found

    return HubCohort(known.clients, known.weights, NUM_CLIENTS + 2, ask)


def rounds(config: AggregatorConfig, over_sites: bool) -> tuple[list[Any], list[int]]:
    aggregator, params = build_aggregator(config), random_params(1)
    state, results, exchanges = aggregator.init(params), [], []
    for round_ in range(ROUNDS):
        cohort = (
            at_sites(aggregator, round_, params, state["local"], config.weights)
            if over_sites
            else LocalCohort(contributions(round_), config.weights, NUM_CLIENTS + 2)
        )
        params, state, _ = result = aggregator.aggregate(cohort, params, state)
        results.append(result)
        exchanges.append(getattr(cohort, "exchanges", 0))
    return results, exchanges


def difference(one: Any, two: Any, place: str = "") -> str:
    """The first place where two nested values differ in a bit; empty: nowhere."""
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return f"{place}: keys {sorted(one.keys() ^ two.keys())}"
        return next(filter(None, (difference(one[key], two[key], f"{place}/{key}") for key in one)), "")
    if hasattr(one, "dtype"):
        one, two = ((value.dtype, value.shape, value.tolist()) for value in (one, two))
    return "" if repr(one) == repr(two) else place


@pytest.mark.parametrize("name", CASES)
def test_sites_give_the_bits_of_one_process(name: str) -> None:
    whole = partial(rounds, CASES[name])
    (expected, _), (found, exchanges) = whole(over_sites=False), whole(over_sites=True)
    for round_, (one, two) in enumerate(zip(expected, found, strict=True)):
        for part in ("params", "state", "metrics"):
            assert not difference(getattr(one, part), getattr(two, part), f"round {round_}, {part}")
    if name in EXCHANGES:
        assert set(exchanges) == {EXCHANGES[name]}
