"""The table of rules: complete, and strict about names, options and ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedcmp.aggregation.presets as presets
from fedcmp.aggregation.fuse.clipped import Clipped
from fedcmp.aggregation.fuse.normalised import Normalised
from fedcmp.aggregation.presets import FUSES, LOCALS, PRESETS, SERVERS, AggregatorConfig, build_aggregator
from fedcmp.errors import ConfigError

ROOT = Path(presets.__file__).parent
HELPERS = {"__init__", "adaptive", "clipped", "coordinates", "guarded", "normalised", "velocity", "wrapper"}


@pytest.mark.parametrize(("folder", "table"), [("fuse", FUSES), ("server", SERVERS), ("local", LOCALS)])
def test_every_file_is_in_the_table(folder: str, table: dict) -> None:
    assert {path.stem for path in (ROOT / folder).glob("*.py")} - HELPERS == set(table)


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


@pytest.mark.parametrize(("config", "message"), [
    (AggregatorConfig("fedavgM"), r'aggregator\.name: unknown rule .fedavgM.; did you mean "fedavgm"'),
    (AggregatorConfig("fedadam", server={"bta1": 0.5}), r'server\.bta1: unknown option of adam; did you mean "beta1"'),
    (AggregatorConfig("fedavg", fuse={"lr": 1.0}), r"fuse\.lr: unknown option of mean; it has none"),
    (AggregatorConfig("fedavgm", server={"beta": 1.0}), r"aggregator\.server\.beta must be in \[0, 1\), got 1.0"),
    (AggregatorConfig("fedavg", server={"lr": "fast"}), r"aggregator\.server\.lr must be in \(0, inf\), got 'fast'"),
    (AggregatorConfig("fedadam", server={"tau": 0}), r"aggregator\.server\.tau must be"),
    (AggregatorConfig("fedprox", local={"mu": 0}), r"aggregator\.local\.mu must be in \(0, inf\), got 0"),
    (AggregatorConfig("scaffold", local={"option": 3}), r"aggregator\.local\.option must be 1 or 2, got 3"),
    (AggregatorConfig("fedcm", local={"alpha": 0.0}), r"aggregator\.local\.alpha must be in \(0, 1\], got 0.0"),
    (AggregatorConfig("fedavg", local={"rule": "prox"}), r'local\.rule: unknown rule .prox.; did you mean "proximal"'),
])  # fmt: skip
def test_bad_settings_name_the_key(config: AggregatorConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_options_reach_the_rule() -> None:
    assert build_aggregator(AggregatorConfig("fedyogi", server={"lr": 0.5})).server.lr == 0.5


def test_updates_are_normalised_inside_the_clipping_and_for_the_clients_momentum() -> None:
    fuse = build_aggregator(AggregatorConfig("fednova", clip_norm=2.0), momentum=0.5).fuse
    assert isinstance(fuse, Clipped)
    assert fuse.inner == Normalised(FUSES["mean"](), momentum=0.5)
    assert not isinstance(build_aggregator(AggregatorConfig("fednova", normalise=False)).fuse, Normalised)
    assert isinstance(build_aggregator(AggregatorConfig("ties", normalise=True)).fuse, Normalised)
