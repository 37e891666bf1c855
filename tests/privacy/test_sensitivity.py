"""One client more or less changes all that a round releases by no more than is promised, whatever the client sends.

Cohorts that are neighbours, built by leaving each client out, go through the rules and the true ``Cohort.sum``. Later
exchanges are asked what the answer to the first led to, as in a run: the bound must hold for whatever is asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from samples_of_clients import contributions, random_params
from scipy.stats import kstest

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.noise import Noising, make_draw
from fedcmp.privacy.release import Release, clip_norm, clip_parts
from fedcmp.privacy.rules import obstacles, release_of
from fedcmp.types import Params

CLIP, EVIDENCE, NOISE, INVITED = 0.3, 1.5, 2.0, 9
CONFIG = PrivacyConfig(kind="central", clip=CLIP, noise=NOISE, evidence_clip=EVIDENCE)
RULES = {
    "fedavg": {}, "fedavgm": {}, "fedadam": {}, "fedyogi": {}, "fedadagrad": {}, "fedmuon": {}, "diloco": {},
    "fedprox": {}, "regmean": {}, "fedcmp": {},
    "fedcmp, basis of the evidence": {"basis": "evidence"},
    "fedcmp, no basis": {"basis": "none", "energy": 1.0},
    "fedcmp, all directions": {"energy": 1.0},
    "fedcmp, repeatability alone": {"tau": 1.0},
    "fedcmp, no halves": {"repeatability": False},
    "fedcmp, evidence of each layer": {"tau_from": "each", "ridge": 0.0, "correlation": 1.0},
}  # fmt: skip


def rule_of(name: str) -> Aggregator:
    preset = name.split(",")[0]
    server = {"rule": "sgd"} if RULES[name].get("basis") == "none" else {}
    config = AggregatorConfig(preset, weights="uniform", pairwise=0, fuse=RULES[name], server=server)
    return dataclasses.replace(build_aggregator(config), measures=False)


class Neighbours:
    """A cohort that also asks each cohort in which one client is silent, and keeps by how much the answers differ."""

    def __init__(self, clients: list[Contribution]) -> None:
        self._clients, self._whole = clients, LocalCohort(clients, "uniform", INVITED)
        self.clients, self.weights, self.population = self._whole.clients, self._whole.weights, INVITED
        self.changes: list[dict[str, torch.Tensor]] = [{} for _ in clients]

    @property
    def traffic(self):
        return self._whole.traffic

    def sum(self, fn: Callable[[Contribution], Params]) -> Params:
        total = self._whole.sum(fn)
        for place, one in enumerate(self._clients):
            others = LocalCohort([other for other in self._clients if other is not one], "uniform", INVITED)
            without = others.sum(fn)
            assert not self.changes[place].keys() & total.keys(), "each tensor is asked for once"
            self.changes[place] |= {name: total[name] - without[name] for name in total}
        return total

    def on_server(self, fn, *args):
        return fn(*args)

    def share(self, value):
        return value


def honest(scale: float) -> list[Contribution]:
    return [_scaled(one, scale) for one in contributions()]


def _scaled(one: Contribution, scale: float) -> Contribution:
    def times(params: Params | None) -> Params:
        return {name: scale * value for name, value in (params or {}).items()}

    return replace(one, delta=times(one.delta), halfway=times(one.halfway), evidence=times(one.evidence))


def hostile() -> list[Contribution]:
    """Each tries another way to be heard more than is allowed."""
    clients = contributions()
    nan, inf = float("nan"), float("inf")
    skew = {name: 1e4 * torch.randn(value.shape) for name, value in (clients[3].evidence or {}).items()}
    single = {name: torch.zeros_like(value) for name, value in clients[4].delta.items()}
    single["linear_1.weight"] = single["linear_1.weight"].clone()
    single["linear_1.weight"][0, 0] = 1e20
    return [
        _scaled(clients[0], 1e6),
        _scaled(clients[1], 1e-30),
        replace(clients[2], delta={name: value * nan for name, value in clients[2].delta.items()}),
        replace(clients[3], evidence=skew),
        replace(clients[4], delta=single, halfway=single),
        replace(clients[5], halfway={name: value + inf for name, value in (clients[5].halfway or {}).items()}),
        _scaled(clients[6], 3e37),
    ]


def measured(name: str, clients: list[Contribution], config: PrivacyConfig = CONFIG):
    """For each client the change of all that is released, in deviations of its noise; and the parts."""
    rule, params = rule_of(name), random_params(1)
    assert obstacles(rule, config) == []
    release = release_of(rule, params, config, CLIP)
    cohort = Neighbours(clients)
    noising = Noising(release, NOISE, INVITED)
    counted = CLIP if config.quantile else None
    rule.aggregate(PrivateCohort(cohort, noising, make_draw("seeded", 0), 0, counted), params, rule.init(params))
    sizes = [
        math.sqrt(sum(float((value / noising.deviation(key)).square().sum()) for key, value in change.items()))
        for change in cohort.changes
    ]
    return sizes, {release.require_part(key) for key in cohort.changes[0]}, release


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("clients", ["small", "large", "hostile"])
def test_joint_sensitivity_of_a_round(name: str, clients: str) -> None:
    brought = {"small": honest(0.1), "large": honest(100.0), "hostile": hostile()}[clients]
    sizes, parts, release = measured(name, brought)
    assert max(sizes) <= 1 / NOISE, "all parts of all exchanges together: a Gaussian mechanism of multiplier z"
    assert parts == set(release.parts), "and the budget is shared among what is asked, nothing else"
    if clients == "large":
        assert max(sizes) > 0.6 / NOISE, "the bound is not idle"


@pytest.mark.parametrize("name", ["fedavg", "fedcmp"])
def test_the_bound_is_reached_and_would_be_broken_without_clipping(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "fedavg":
        sizes, _, _ = measured(name, honest(100.0))
        assert max(sizes) == pytest.approx(1 / NOISE, rel=1e-4)
    monkeypatch.setattr("fedcmp.privacy.cohort.clip_parts", lambda term, release, weight: term)
    monkeypatch.setattr("fedcmp.privacy.rules.clip_norm", lambda params, bound: params)
    monkeypatch.setattr("fedcmp.privacy.canonical.clip_norm", lambda params, bound: params)
    sizes, _, _ = measured(name, honest(100.0))
    assert max(sizes) > 10 / NOISE


@pytest.mark.parametrize("name", ["fedavg", "fedcmp"])
def test_counting_norms_is_paid_for(name: str) -> None:
    config = dataclasses.replace(CONFIG, quantile=0.5)
    for clients in (honest(0.1), honest(100.0), hostile()):
        sizes, parts, release = measured(name, clients, config)
        assert "below" in parts
        assert parts == set(release.parts)
        assert max(sizes) <= 1 / NOISE
    assert sum(part.share for part in release.parts.values()) == pytest.approx(1.0)


def test_bounds_of_the_canonical_parts_hold_before_they_are_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs in ``release_canonical``: after clipping delta and evidence no part is above its bound."""
    seen: list[float] = []

    def watched(term: Params, release: Release, weight: float) -> Params:
        squares: dict[str, float] = {}
        for name, value in term.items():
            part = release.require_part(name)
            squares[part] = squares.get(part, 0.0) + float(value.double().square().sum())
        seen.extend(math.sqrt(square) / (weight * release.parts[part].bound) for part, square in squares.items())
        return clip_parts(term, release, weight)

    monkeypatch.setattr("fedcmp.privacy.cohort.clip_parts", watched)
    for name in (name for name in RULES if name.startswith(("fedcmp", "regmean"))):
        for scale in (0.1, 1.0, 100.0):
            measured(name, honest(scale))
    assert len(seen) > 500
    assert 0.99 < max(seen) <= 1 + 1e-5


@pytest.mark.parametrize("rule", ["fedavg", "fedcmp"])
def test_two_neighbours_look_like_two_gaussians(rule: str) -> None:
    """The mechanism as a whole: over many seeds, the released delta of a cohort and of its neighbour, where they differ
    most, are two normal distributions, apart by the clip in units of the promised deviation, or less."""
    clients, params = honest(100.0), random_params(1)
    aggregator = rule_of(rule)
    noising = Noising(release_of(aggregator, params, CONFIG, CLIP), NOISE, INVITED)
    name = "linear_1.weight"
    part = "linear_1/mean" if rule == "fedcmp" else name
    direction = clip_norm(clients[0].delta, CLIP)[name].double() / INVITED

    def released(kept: list[Contribution], seed: int) -> float:
        cohort = PrivateCohort(LocalCohort(kept, "uniform"), noising, make_draw("seeded", seed), 0)

        def term(one: Contribution) -> Params:
            return {part: one.delta[name].double() / INVITED}

        return float((cohort.sum(term)[part] * direction).sum() / direction.norm())

    whole = torch.tensor([released(clients, seed) for seed in range(600)], dtype=torch.float64)
    less = torch.tensor([released(clients[1:], seed) for seed in range(600, 1200)], dtype=torch.float64)
    deviation = noising.deviation(part)
    for found in (whole, less):
        assert float(found.std()) == pytest.approx(deviation, rel=0.12)
        assert kstest(((found - found.mean()) / found.std()).numpy(), "norm").pvalue > 1e-4
    apart = float(whole.mean() - less.mean()) / deviation
    share = noising.release.parts["delta"].share
    assert apart <= math.sqrt(share) / NOISE + 4 * math.sqrt(2 / 600)
    assert apart == pytest.approx(float(direction.norm()) / deviation, abs=4 * math.sqrt(2 / 600))


def test_who_reports_changes_no_weight() -> None:
    """A sum is divided by those who were invited: the terms of others stay what they are when one is silent."""
    clients = honest(1.0)
    noising = Noising(release_of(rule_of("fedavg"), random_params(1), CONFIG, CLIP), NOISE, INVITED)
    for kept in (clients, clients[1:], clients[:1]):
        cohort = PrivateCohort(LocalCohort(kept, "samples"), noising, make_draw("seeded", 0), 0)
        assert cohort.weights.tolist() == [1 / INVITED] * len(kept), "not by samples, whatever the inner cohort says"
