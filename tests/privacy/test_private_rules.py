"""Which rules can be private, and why the others cannot."""

from __future__ import annotations

import dataclasses

import pytest
from samples_of_clients import random_params

from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.rules import obstacles, release_of

CONFIG = PrivacyConfig(kind="central", noise=1.0, evidence_clip=1.0)
PRIVATE = {
    "diloco", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedcmp", "fedmuon", "fedprox", "fedyogi", "regmean",
}  # fmt: skip
WHY = {
    "fedexp": "FedExp reads the mean square of the updates",
    "fedcm": "ServerMomentum makes clients send a second message",
    "scaffold": "ControlVariates makes clients send a second message",
    "fednova": "no bound for what Normalised sums",
    "ties": "no bound for what Ties sums",
    "knots": "no bound for what UpdateSvd sums",
    "geometric-median": "no bound for what GeometricMedian sums",
    "median": "the rule reads the update of every client",
    "trimmed-mean": "the rule reads the update of every client",
    "krum": "the rule reads the update of every client",
    "multi-krum": "the rule reads the update of every client",
}
GIVEN = ["privacy.kind=central", "privacy.epsilon=8", "aggregator.weights=uniform", "aggregator.pairwise=0"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_rule_is_private_or_says_why_not(name: str) -> None:
    rule = build_aggregator(AggregatorConfig(name, weights="uniform", pairwise=0))
    found = obstacles(rule, CONFIG)
    if name in PRIVATE:
        assert found == []
        shares = [part.share for part in release_of(rule, random_params(0), CONFIG, 1.0).parts.values()]
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares) > 0
    else:
        assert len(found) == 1
        assert WHY[name] in found[0]
        with pytest.raises(ConfigError, match=WHY[name]):
            load_config(None, [*GIVEN, f"aggregator={name}"])


def test_the_table_is_whole() -> None:
    assert set(PRESETS) == PRIVATE | set(WHY)


def test_rules_of_ones_own_have_no_bound() -> None:
    class Fuse(Mean):
        pass

    class Local(Plain):
        pass

    rule = build_aggregator(AggregatorConfig("fedavg", weights="uniform", pairwise=0))
    for change, said in (
        ({"fuse": Fuse()}, "no bound for what Fuse sums"),
        ({"local": Local()}, "Local makes clients"),
    ):
        (found,) = obstacles(dataclasses.replace(rule, **change), CONFIG)
        assert said in found


@pytest.mark.parametrize(("words", "message"), [
    (["aggregator.weights=samples"], r"aggregator\.weights must be uniform, not samples: other weights depend"),
    (["aggregator.pairwise=8"], r"aggregator\.pairwise must be 0: cosines are measured from single updates"),
    (["aggregator.clip_norm=1"], r"aggregator\.clip_norm must be 0: privacy\.clip bounds updates"),
    (["aggregator=fedcmp"], r"privacy\.evidence_clip must be set: the rule records evidence"),
    (["federation.keep_local_state=true"], r"federation\.keep_local_state must be false"),
    (["federation.norm_bound=3"], r"federation\.norm_bound must be 0: the norms of others"),
    (["federation.max_update_norm=3"], r"federation\.max_update_norm must be 0: privacy\.clip bounds updates"),
    (["federation.deadline=3", "federation.slots=1"], r"federation\.deadline must be 0: who was late would show"),
    (["privacy.shares.detla=1"], r"privacy\.shares\.detla: the rule has no such part; did you mean .delta."),
    (["privacy.shares.delta=0"], r"privacy\.shares\.delta must be in \(0, inf\), got 0"),
    (["privacy.kind=centrall"], r"privacy\.kind: unknown word .centrall.; did you mean .central."),
    (["privacy.accountant=moments"], r"privacy\.accountant: unknown word .moments."),
    (["privacy.stream=os"], r"privacy\.stream: unknown word .os."),
    (["privacy.epsilon=0"], r"privacy\.kind=central needs privacy\.epsilon \(a budget\) or privacy\.noise"),
    (["privacy.epsilon=-1"], r"privacy\.epsilon must be in \[0, inf\), got -1"),
    (["privacy.noise=1e-9"], r"privacy\.noise must be 0 \(solved for\) or at least 1e-06, got 1e-09"),
    (["privacy.epsilon=nan"], r"privacy\.epsilon must be in \[0, inf\), got nan"),
    (["privacy.clip=0"], r"privacy\.clip must be in \(0, inf\), got 0"),
    (["privacy.delta=1"], r"privacy\.delta must be in \(0, 1\), got 1"),
    (["privacy.quantile=1"], r"privacy\.quantile must be 0 \(off\) or in \(0, 1\), got 1"),
    (["privacy.honest=3"], r"privacy\.honest is for privacy\.kind=distributed, and it is central"),
    (["privacy.kind=distributed", "privacy.stream=system"], r"privacy\.stream=system draws noise at the server"),
    (["privacy.kind=distributed", "federation.secure=masks", "federation.secure_dropout=0.1"],
     r"privacy\.honest must say how many clients stay: federation\.secure_dropout loses some"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*GIVEN, "aggregator=fedavg", *words])


def test_all_reasons_are_told_at_once() -> None:
    words = ["aggregator=krum", "aggregator.weights=samples", "federation.norm_bound=2"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*GIVEN, *words])
    for said in ("reads the update of every client", "aggregator.weights", "federation.norm_bound"):
        assert said in str(caught.value)


def test_shares_may_be_given() -> None:
    rule = build_aggregator(AggregatorConfig("fedcmp", weights="uniform", pairwise=0))
    params = random_params(0)
    before = release_of(rule, params, CONFIG, 1.0).parts
    after = release_of(rule, params, dataclasses.replace(CONFIG, shares={"gram": 0.9}), 1.0).parts
    assert sum(part.share for part in after.values()) == pytest.approx(1.0)
    assert after["gram"].share > 0.45 > before["gram"].share
    ratio = before["delta"].share / before["m"].share
    assert after["delta"].share / after["m"].share == pytest.approx(ratio), "the others keep their proportions"
    assert {name: part.bound for name, part in after.items()} == {name: part.bound for name, part in before.items()}
