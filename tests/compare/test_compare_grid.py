"""Equal tuning for all: the grid knows every method, and every budget is the same for everyone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fedcmp.aggregation.parts import ServerStep, Update
from fedcmp.aggregation.presets import PRESETS, build_aggregator
from fedcmp.compare import Request, ask
from fedcmp.compare.grid import BATCHES, LR, MOST, OPTIONS, SERVERS, centralized_grid, method_grid, own_option, path
from fedcmp.compare.identity import FOLDERS, identity
from fedcmp.compare.jobs import Jobs, with_options
from fedcmp.compare.spec import from_json, to_json
from fedcmp.config import Config, load_config
from fedcmp.report.comparison.results import BOUNDS
from fedcmp.shipped import shipped

DOCS = Path(__file__).parent.parent.parent / "docs" / "compare.md"


def config_of(*overrides: str) -> Config:
    return load_config(None, overrides)


def test_the_grid_knows_every_preset_and_the_docs_show_it() -> None:
    assert set(OPTIONS) == set(PRESETS)
    assert OPTIONS["fedprox"] == ("local.mu", (0.01, 0.1, 1.0))
    assert OPTIONS["fedavgm"] == ("server.beta", (0.5, 0.8, 0.9))
    docs = DOCS.read_text()
    for name, option in OPTIONS.items():
        assert f"| {name} | {option.key} | {', '.join(f'{value:g}' for value in option.values)} |" in docs


def momentum_in_long_rounds(server: ServerStep) -> float:
    """How much of a step of one comes back in the next round."""
    params, delta = {"linear.weight": torch.zeros(1, 1), "linear.bias": torch.zeros(1)}, torch.ones(1, 1)
    update = Update({"linear.weight": delta, "linear.bias": delta[0]}, {"linear": torch.eye(2)}, num_steps=8)
    once = server.step(params, update, server.init(params))
    twice = server.step(once.params, update, once.state)
    return round(float(twice.params["linear.bias"] - once.params["linear.bias"]) - 1, 6)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_value_is_valid_and_the_first_is_the_presets_own(name: str) -> None:
    option, config = OPTIONS[name], config_of(f"aggregator={name}")
    part, leaf = option.key.split(".")
    own = build_aggregator(config.aggregator)
    found = getattr(own.local if part == "local" else own.server, leaf)
    if found is None:  # fedcmp's momentum depends on the length of rounds; theirs is that of long ones
        found = momentum_in_long_rounds(own.server)
    assert found == option.values[0]
    for value in option.values:
        with_options(config, {f"aggregator.{option.key}": value}).validate()
    assert len(set(option.values)) == len(option.values) >= 3


def test_every_budget_is_the_same_for_all_methods() -> None:
    lists = ["centralized.batch_sizes=[8,16,32,64,128]", "centralized.lrs=[1e-3,3e-3,5e-3,1e-2,2e-2]"]
    for budget in (4, MOST):
        study = ask(None, lists, Request(methods=",".join(PRESETS), budget=budget))
        jobs = Jobs(study)
        sizes = {entrant: len(jobs.grids["demo", entrant]) for entrant in [*PRESETS, "centralized", "local"]}
        assert set(sizes.values()) == {budget}
        for entrant, grid in jobs.grids.items():
            keys = {tuple(sorted((key, str(value)) for key, value in options.items())) for options in grid}
            assert len(keys) == budget, f"{entrant} has a cell twice"


def test_any_prefix_is_balanced() -> None:
    assert path([1, 2, 3], ["a", "b"]) == [(1, "a"), (2, "a"), (1, "b"), (2, "b"), (3, "a"), (3, "b")]
    grid = method_grid(config_of("aggregator=fedavg", "optimizer.lr=0.01"), 4, False)
    assert grid == [
        {LR: 0.01, "aggregator.server.lr": 1.0},
        {LR: 0.02, "aggregator.server.lr": 1.0},
        {LR: 0.01, "aggregator.server.lr": 2.0},
        {LR: 0.02, "aggregator.server.lr": 2.0},
    ]
    assert method_grid(config_of("aggregator=fedavg"), 1, False) == [{}]


def test_a_held_option_leaves_as_many_learning_rates() -> None:
    held = config_of("aggregator=fedavg", "aggregator.server.lr=0.7", "optimizer.lr=1")
    assert own_option(held) is None
    grid = method_grid(held, 8, False)
    assert [options[LR] for options in grid] == [1, 2, 0.5, 4, 0.25, 8, 0.125, 1.414]
    assert all(set(options) == {LR} for options in grid)


def test_an_exchanged_part_brings_its_own_option() -> None:
    variant = config_of("aggregator=fedcmp", "aggregator.server.kind=adam")
    assert own_option(variant) == SERVERS["adam"]
    plain = config_of("aggregator=fedprox", "aggregator.local.kind=plain")
    assert own_option(plain) == SERVERS["sgd"]
    ablation = config_of("aggregator=fedcmp", "aggregator.fuse.tau=0")
    assert own_option(ablation) == SERVERS["opm"]
    assert own_option(config_of("aggregator=fedcmp", "aggregator.server.momentum=0")) is None, "it is held"


def test_centralized_begins_near_the_configs_own_rate() -> None:
    config = config_of("optimizer.lr=1e-2", "centralized.batch_sizes=[16,32]", "centralized.lrs=[5e-3,1e-2,2e-2]")
    assert centralized_grid(config, 3) == [
        {LR: 0.01, BATCHES: [16]},
        {LR: 0.02, BATCHES: [16]},
        {LR: 0.01, BATCHES: [32]},
    ]


def test_a_run_is_known_by_what_it_computes() -> None:
    base = config_of()
    for key, value in (("run.dir", "x"), ("run.name", "x"), ("wandb.mode", "disabled"), ("launch.devices", 2)):
        assert identity("", with_options(base, {key: value})) == identity("", base)
    for key, value in (("run.seed", 1), ("federation.rounds", 3), ("aggregator.server.lr", 1.0), ("optimizer.lr", 1)):
        assert identity("", with_options(base, {key: value})) != identity("", base)
    assert identity("local", base) != identity("centralized", base)


def test_a_run_is_known_by_the_variable_that_names_its_folder_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {match for path in shipped().values() for match in re.findall(r"oc\.env:(\w+),([^}]+)}", path.read_text())}
    assert found == set(FOLDERS.items()), "every variable of a shipped config, with its default"

    def ids(folder: str | None, *overrides: str) -> set[str]:
        monkeypatch.delenv("FEDCMP_DATA", raising=False)
        if folder is not None:
            monkeypatch.setenv("FEDCMP_DATA", folder)
        study = ask(Path("study/pairs"), overrides, Request(methods="fedcmp", scenarios="domain"))
        assert study.folders == {"FEDCMP_DATA": folder or "../shared/data"}
        monkeypatch.setenv("FEDCMP_DATA", "/later")
        begun = from_json(to_json(study), "here")
        assert [job.id for job in Jobs(begun).tuning("domain", "fedcmp")] == [
            job.id for job in Jobs(study).tuning("domain", "fedcmp")
        ], "it goes on under its own paths"
        return {job.id for one in (*BOUNDS, "fedcmp") for job in Jobs(study).tuning("domain", one)}

    here = ids("/here")
    assert here == ids(None) == ids("/here/") == ids("/there/data of mine")
    assert not here & ids("/here", "data.root=/here/other pairs"), "other data of that folder"
    assert not here & ids("/here", "data.root=/hereafter/pairs"), "another folder of like name"


def test_labels_and_other_methods_options_do_not_make_a_run_another() -> None:
    one = Jobs(ask(None, (), Request(methods="fedavg,fedcmp", scenarios="domain")))
    other = Jobs(
        ask(
            None,
            ("centralized.lrs=[0.005,0.01,0.02,0.03]", "aggregator.server.momentum=0.1"),
            Request(methods="x=fedavg,fedcmp", scenarios="y=domain"),
        )
    )
    assert [job.id for job in one.tuning("domain", "fedavg")] == [job.id for job in other.tuning("y", "x")]
    assert [job.id for job in one.tuning("domain", "local")] == [job.id for job in other.tuning("y", "local")]
    common = {job.id for job in one.tuning("domain", "centralized")} & {
        job.id for job in other.tuning("y", "centralized")
    }
    assert common
    mine, theirs = ({job.id for job in jobs.tuning(s, "fedcmp")} for jobs, s in ((one, "domain"), (other, "y")))
    assert not mine & theirs, "this one's momentum is another"
