"""The table of methods: complete, and strict about names, options and ranges."""

from __future__ import annotations

from typing import Any

import pytest

from fedcmp.aggregation.fuse.image_use import ImageUse
from fedcmp.aggregation.fuse.wrappers import Clipped, Normalised, Wrapper
from fedcmp.aggregation.own import Own
from fedcmp.aggregation.parts import Fuse, LocalStep, ServerStep
from fedcmp.aggregation.presets import FUSES, LOCALS, PRESETS, SERVERS, AggregatorConfig, build_aggregator
from fedcmp.aggregation.server.opm import Opm
from fedcmp.errors import ConfigError


def concrete(kind: type) -> set[type]:
    """The classes of the package that derive from ``kind`` and from which no other class derives."""
    found = [concrete(one) or {one} for one in kind.__subclasses__() if one.__module__.startswith("fedcmp.")]
    return set().union(*found)


@pytest.mark.parametrize(("kind", "table"), [(Fuse, FUSES), (ServerStep, SERVERS), (LocalStep, LOCALS)])
def test_every_part_is_in_the_table(kind: type, table: dict) -> None:
    assert concrete(kind) - concrete(Wrapper) - {Own} == set(table.values())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_rows_name_their_paper_and_build(name: str) -> None:
    row, aggregator = PRESETS[name], build_aggregator(AggregatorConfig(name))
    assert row.title
    assert row.paper
    wrapped = [kind for kind, wanted in ((Normalised, row.normalise), (ImageUse, row.image_use)) if wanted]
    fuse = aggregator.fuse
    for kind in wrapped:
        assert type(fuse) is kind
        fuse = fuse.inner
    assert [type(part) for part in (fuse, aggregator.server, aggregator.local)] == [row.fuse, row.server, row.local]
    parts = {"fuse": fuse, "server": aggregator.server, "local": aggregator.local}
    for key, value in row.options.items():
        part, _, option = key.partition(".")
        assert getattr(parts[part], option) == value
    tuned = row.tuned or (f"server.{row.server.tuned[0]}", row.server.tuned[1])
    part, _, option = tuned[0].partition(".")
    assert getattr(parts[part], option) == tuned[1][0], "the default comes first"


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
    ("fedavg", "server.lr", "fast", "(0, inf)"),
    ("fedavgm", "server.beta", 1.0, "[0, 1)"), ("fedadam", "server.bta1", 0.5, '"beta1"'),
    ("fedadam", "server.beta1", 1, ""), ("fedyogi", "server.beta2", -0.1, ""), ("fedadagrad", "server.tau", 0, ""),
    ("fedexp", "server.eps", 0, ""), ("fedcmp", "server.momentum", 1.0, ""),
    ("fedcmp", "server.projected", "no", "true or false"),
    ("fedcmp", "fuse.basis", "update", '"updates"'),
    ("fedcmp", "fuse.tau", 1.5, "[0, 1]"), ("fedcmp", "fuse.tau_from", "last", ""),
    ("fedcmp", "fuse.energy", 0.0, "(0, 1]"), ("fedcmp", "fuse.correlation", True, ""),
    ("fedcmp", "fuse.ridge", -1.0, "[0, inf)"), ("fedprox", "local.mu", 0, ""), ("scaffold", "local.option", 3, ""),
    ("fedcm", "local.alpha", 0.0, ""), ("ties", "fuse.density", 0.0, ""), ("knots", "fuse.density", 1.5, ""),
    ("knots", "fuse.merge", "tie", '"ties"'), ("median", "fuse.trim", 0.1, "it has none"),
    ("trimmed-mean", "fuse.trim", 0.5, "[0, 0.5)"), ("krum", "fuse.byzantine", -1, ""), ("krum", "fuse.keep", 1.5, ""),
    ("geometric-median", "fuse.smoothing", 0, ""), ("geometric-median", "fuse.tolerance", -1, ""),
    ("geometric-median", "fuse.max_iterations", 0, ""), ("median", "guard", True, "aggregator.fuse.kind=median"),
    ("scaffold", "guard", True, "aggregator.local.kind=control_variates"),
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


@pytest.mark.parametrize(("config", "fuse"), [
    (AggregatorConfig("fedavg", server={"kind": "opm", "momentum": 0.3}), "mean"),
    (AggregatorConfig("fedcmp", fuse={"basis": "none"}, server={"momentum": 0.3}), "canonical"),
], ids=["fedavg", "fedcmp"])  # fmt: skip
def test_momentum_by_a_basis_needs_a_fuse_that_finds_one(config: AggregatorConfig, fuse: str) -> None:
    with pytest.raises(ConfigError, match=rf"aggregator\.server\.kind=opm .*aggregator\.fuse\.kind={fuse}"):
        config.validate()
