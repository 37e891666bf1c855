"""The table of rules: complete, and strict about names, options and ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedcmp.aggregation.presets as presets
from fedcmp.aggregation.presets import FUSES, PRESETS, SERVERS, AggregatorConfig, build_aggregator
from fedcmp.errors import ConfigError

ROOT = Path(presets.__file__).parent
HELPERS = {"__init__", "adaptive"}


@pytest.mark.parametrize(("folder", "table"), [("fuse", FUSES), ("server", SERVERS)])
def test_every_file_is_in_the_table(folder: str, table: dict) -> None:
    assert {path.stem for path in (ROOT / folder).glob("*.py")} - HELPERS == set(table)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_rows_name_their_paper_and_build(name: str) -> None:
    assert "arXiv" in PRESETS[name].paper
    aggregator = build_aggregator(AggregatorConfig(name))
    assert isinstance(aggregator.fuse, FUSES[PRESETS[name].fuse])
    assert isinstance(aggregator.server, SERVERS[PRESETS[name].server])


@pytest.mark.parametrize(("config", "message"), [
    (AggregatorConfig("fedavgM"), r'aggregator\.name: unknown rule .fedavgM.; did you mean "fedavgm"'),
    (AggregatorConfig("fedadam", server={"bta1": 0.5}), r'server\.bta1: unknown option of adam; did you mean "beta1"'),
    (AggregatorConfig("fedavg", fuse={"lr": 1.0}), r"fuse\.lr: unknown option of mean; it has none"),
    (AggregatorConfig("fedavgm", server={"beta": 1.0}), r"aggregator\.server\.beta must be in \[0, 1\), got 1.0"),
    (AggregatorConfig("fedavg", server={"lr": "fast"}), r"aggregator\.server\.lr must be in \(0, inf\), got 'fast'"),
    (AggregatorConfig("fedadam", server={"tau": 0}), r"aggregator\.server\.tau must be"),
])  # fmt: skip
def test_bad_settings_name_the_key(config: AggregatorConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_options_reach_the_rule() -> None:
    assert build_aggregator(AggregatorConfig("fedyogi", server={"lr": 0.5})).server.lr == 0.5
