"""The table of methods: complete, and strict about names, options and ranges."""

from __future__ import annotations

from typing import Any

import pytest

from fedcmp.aggregation.fuse.wrappers import Clipped, Normalised, Wrapper
from fedcmp.aggregation.own import Own
from fedcmp.aggregation.parts import Fuse, LocalStep, ServerStep
from fedcmp.aggregation.presets import FUSES, LOCALS, PRESETS, SERVERS, AggregatorConfig, build_aggregator, by_name
from fedcmp.aggregation.server.opm import Opm
from fedcmp.errors import ConfigError


def concrete(kind: type) -> set[type]:
    """The classes of the package that derive from ``kind`` and from which no other class derives."""
    found = [concrete(one) or {one} for one in kind.__subclasses__() if one.__module__.startswith("fedcmp.")]
    return set().union(*found)


@pytest.mark.parametrize(("kind", "table"), [(Fuse, FUSES), (ServerStep, SERVERS), (LocalStep, LOCALS)])
def test_every_part_is_in_the_table(kind: type, table: dict) -> None:
    assert concrete(kind) - concrete(Wrapper) - {Own} == set(table.values())


def test_a_second_class_of_one_name_is_refused() -> None:
    mine = type("Mean", (Fuse,), {})
    with pytest.raises(ConfigError, match="Mean"):
        by_name([FUSES["mean"], mine])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_rows_have_the_option_that_is_tuned_and_its_default_first(name: str) -> None:
    aggregator = build_aggregator(AggregatorConfig(name))
    fuse = aggregator.fuse.inner if isinstance(aggregator.fuse, Wrapper) else aggregator.fuse
    key, (default, *_) = PRESETS[name].grid
    part, _, option = key.partition(".")
    assert getattr({"fuse": fuse, "server": aggregator.server, "local": aggregator.local}[part], option) == default


def test_options_reach_their_part_and_updates_are_normalised_inside_the_clipping() -> None:
    fuse = build_aggregator(AggregatorConfig("fednova", clip_norm=2.0), momentum=0.5).fuse
    assert isinstance(fuse, Clipped)
    assert fuse.inner == Normalised(FUSES["mean"](), momentum=0.5)
    assert not isinstance(build_aggregator(AggregatorConfig("fednova", normalise=False)).fuse, Normalised)
    assert isinstance(build_aggregator(AggregatorConfig("ties", normalise=True)).fuse, Normalised)
    assert build_aggregator(AggregatorConfig("fedyogi", server={"lr": 0.5})).server.lr == 0.5
    exchanged = AggregatorConfig("fedavg", server={"kind": "opm", "projected": False})
    assert build_aggregator(exchanged).server == Opm(projected=False)
    assert not build_aggregator(AggregatorConfig("fedcmp", guard=True)).sums_only


@pytest.mark.parametrize(("name", "key", "value", "word"), [
    ("fedavgM", "name", None, '"fedavgm"'), ("fedavg", "weights", "sample", '"samples"'),
    ("fedavg", "clip_norm", -1.0, "-1.0"), ("fedavg", "pairwise", -1, "-1"),
    ("fedavg", "fuse.lr", 1.0, "it has none"), ("fedavg", "local.kind", "prox", '"proximal"'),
    ("fedavg", "server.lr", "fast", "(0, inf)"), ("fedavgm", "server.beta", 1.0, "[0, 1)"),
    ("fedadam", "server.bta1", 0.5, '"beta1"'), ("fedyogi", "server.beta2", -0.1, ""), ("fedexp", "server.eps", 0, ""),
    ("fedcmp", "server.projected", "no", "true or false"), ("fedcmp", "fuse.basis", "update", '"updates"'),
    ("fedcmp", "fuse.tau", 1.5, "[0, 1]"), ("fedcmp", "fuse.tau_from", "last", ""), ("fedcmp", "fuse.ridge", -1.0, ""),
    ("fedcmp", "fuse.energy", 0.0, "(0, 1]"), ("fedcmp", "fuse.correlation", True, ""), ("fedprox", "local.mu", 0, ""),
    ("scaffold", "local.option", 3, ""), ("fedcm", "local.alpha", 0.0, ""), ("ties", "fuse.density", 0.0, ""),
    ("knots", "fuse.density", 1.5, ""), ("knots", "fuse.merge", "tie", '"ties"'), ("krum", "fuse.keep", 1.5, ""),
    ("trimmed-mean", "fuse.trim", 0.5, "[0, 0.5)"), ("geometric-median", "fuse.max_iterations", 0, ""),
    ("geometric-median", "fuse.tolerance", -1, ""), ("median", "guard", True, "aggregator.fuse.kind=median"),
    ("scaffold", "guard", True, "aggregator.local.kind=control_variates"),
    ("fedavg", "server", {"kind": "opm", "momentum": 0.3}, "aggregator.fuse.kind=mean"),  # it finds no basis
    ("regmean", "server", {"kind": "opm", "momentum": 0.3}, "aggregator.fuse.kind=canonical"),
], ids=str)  # fmt: skip
def test_errors_name_the_key(name: str, key: str, value: Any, word: str) -> None:
    part, _, option = key.partition(".")
    config = AggregatorConfig(name)
    if option:
        getattr(config, part)[option] = value
    elif part != "name":
        setattr(config, part, value)
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert word in str(caught.value)
    assert f"aggregator.{key}" in str(caught.value) or word.startswith("aggregator.")
