"""The table of methods: complete, and strict about names, options and ranges."""

from __future__ import annotations

from typing import Any

import pytest

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
    assert "arXiv" in row.paper
    fuse = aggregator.fuse.inner if row.normalise else aggregator.fuse
    assert isinstance(aggregator.fuse, Normalised) == row.normalise
    assert [type(part) for part in (fuse, aggregator.server, aggregator.local)] == [row.fuse, row.server, row.local]
    parts = {"fuse": fuse, "server": aggregator.server, "local": aggregator.local}
    for key, value in row.options.items():
        part, _, option = key.partition(".")
        assert getattr(parts[part], option) == value
    tuned = row.tuned or (f"server.{row.server.tuned[0]}", row.server.tuned[1])
    part, _, option = tuned[0].partition(".")
    assert getattr(parts[part], option) == tuned[1][0], "the default comes first"


def test_updates_are_normalised_inside_the_clipping_and_for_the_clients_momentum() -> None:
    fuse = build_aggregator(AggregatorConfig("fednova", clip_norm=2.0), momentum=0.5).fuse
    assert isinstance(fuse, Clipped)
    assert fuse.inner == Normalised(FUSES["mean"](), momentum=0.5)
    assert not isinstance(build_aggregator(AggregatorConfig("fednova", normalise=False)).fuse, Normalised)
    assert isinstance(build_aggregator(AggregatorConfig("ties", normalise=True)).fuse, Normalised)


def settings(name: str, **given: Any) -> AggregatorConfig:
    """``fuse__tau=1`` is an option of the fuse."""
    config = AggregatorConfig(name)
    for key, value in given.items():
        part, _, option = key.partition("__")
        if option:
            getattr(config, part)[option] = value
        else:
            setattr(config, part, value)
    return config


@pytest.mark.parametrize(("name", "given", "words"), [
    ("fedavgM", {}, ["aggregator.name", '"fedavgm"']),
    ("fedavg", {"weights": "sample"}, ["aggregator.weights", '"samples"']),
    ("fedavg", {"clip_norm": -1.0}, ["aggregator.clip_norm", "-1.0"]),
    ("fedavg", {"pairwise": -1}, ["aggregator.pairwise", "-1"]),
    ("fedavg", {"fuse__lr": 1.0}, ["aggregator.fuse.lr", "it has none"]),
    ("fedavg", {"local__kind": "prox"}, ["aggregator.local.kind", '"proximal"']),
    ("fedavg", {"server__kind": "opm"}, ["aggregator.server.kind=opm", "aggregator.fuse.kind=mean"]),
    ("fedavg", {"server__lr": "fast"}, ["aggregator.server.lr", "(0, inf)", "'fast'"]),
    ("fedavgm", {"server__beta": 1.0}, ["aggregator.server.beta", "[0, 1)", "1.0"]),
    ("fedadam", {"server__bta1": 0.5}, ["aggregator.server.bta1", '"beta1"']),
    ("fedadam", {"server__beta1": 1}, ["aggregator.server.beta1"]),
    ("fedyogi", {"server__beta2": -0.1}, ["aggregator.server.beta2"]),
    ("fedadagrad", {"server__tau": 0}, ["aggregator.server.tau"]),
    ("fedexp", {"server__eps": 0}, ["aggregator.server.eps"]),
    ("fedcmp", {"server__momentum": 1.0}, ["aggregator.server.momentum"]),
    ("fedcmp", {"server__projected": "no"}, ["aggregator.server.projected", "true or false"]),
    ("fedcmp", {"fuse__basis": "none", "fuse__tau": 0.0}, ["aggregator.fuse.kind=canonical"]),
    ("fedcmp", {"fuse__basis": "update"}, ["aggregator.fuse.basis", '"updates"']),
    ("fedcmp", {"fuse__tau": 1.5}, ["aggregator.fuse.tau", "[0, 1]", "1.5"]),
    ("fedcmp", {"fuse__tau_from": "last"}, ["aggregator.fuse.tau_from"]),
    ("fedcmp", {"fuse__energy": 0.0}, ["aggregator.fuse.energy", "(0, 1]"]),
    ("fedcmp", {"fuse__correlation": True}, ["aggregator.fuse.correlation"]),
    ("fedcmp", {"fuse__ridge": -1.0}, ["aggregator.fuse.ridge", "[0, inf)"]),
    ("fedprox", {"local__mu": 0}, ["aggregator.local.mu"]),
    ("scaffold", {"local__option": 3}, ["aggregator.local.option"]),
    ("fedcm", {"local__alpha": 0.0}, ["aggregator.local.alpha"]),
    ("ties", {"fuse__density": 0.0}, ["aggregator.fuse.density"]),
    ("knots", {"fuse__density": 1.5}, ["aggregator.fuse.density"]),
    ("knots", {"fuse__merge": "tie"}, ["aggregator.fuse.merge", '"ties"']),
    ("median", {"fuse__trim": 0.1}, ["aggregator.fuse.trim", "it has none"]),
    ("trimmed-mean", {"fuse__trim": 0.5}, ["aggregator.fuse.trim", "[0, 0.5)"]),
    ("krum", {"fuse__byzantine": -1}, ["aggregator.fuse.byzantine"]),
    ("krum", {"fuse__keep": 1.5}, ["aggregator.fuse.keep"]),
    ("geometric-median", {"fuse__smoothing": 0}, ["aggregator.fuse.smoothing"]),
    ("geometric-median", {"fuse__tolerance": -1}, ["aggregator.fuse.tolerance"]),
    ("geometric-median", {"fuse__max_iterations": 0}, ["aggregator.fuse.max_iterations"]),
    ("median", {"guard": True}, ["aggregator.guard", "aggregator.fuse.kind=median"]),
    ("krum", {"guard": True}, ["aggregator.guard", "aggregator.fuse.kind=krum"]),
    ("scaffold", {"guard": True}, ["aggregator.guard", "aggregator.local.kind=control_variates"]),
], ids=str)  # fmt: skip
def test_errors_name_the_key(name: str, given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(name, **given).validate()
    assert all(word in str(caught.value) for word in words), caught.value


def test_options_reach_their_part() -> None:
    assert build_aggregator(settings("fedyogi", server__lr=0.5)).server.lr == 0.5
    assert build_aggregator(settings("fedavg", server__kind="opm", server__projected=False)).server == Opm(
        projected=False
    )
    assert not build_aggregator(settings("fedcmp", guard=True)).sums_only
