"""Equal tuning for all: the grid knows every method, and every budget is the same for everyone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fedcmp.aggregation.parts import ServerStep, Update
from fedcmp.aggregation.presets import PRESETS, build_aggregator
from fedcmp.compare import Request, ask
from fedcmp.compare.grid import (
    BATCHES,
    LR,
    MOST,
    OPTIMIZER,
    OPTIONS,
    SERVERS,
    centralized_grid,
    method_grid,
    own_option,
)
from fedcmp.compare.identity import FOLDERS, identity
from fedcmp.compare.jobs import Jobs, with_options
from fedcmp.compare.spec import from_json, to_json
from fedcmp.compare.tables import make_legend
from fedcmp.config import Config, load_config
from fedcmp.errors import ConfigError
from fedcmp.report.comparison.results import BOUNDS
from fedcmp.shipped import shipped


def config_of(*overrides: str) -> Config:
    return load_config(None, overrides)


def momentum_in_long_rounds(server: ServerStep) -> float:
    """How much of a step of one comes back in the next round."""
    params, delta = {"linear.weight": torch.zeros(1, 1), "linear.bias": torch.zeros(1)}, torch.ones(1, 1)
    update = Update({"linear.weight": delta, "linear.bias": delta[0]}, {"linear": torch.eye(2)}, num_steps=8)
    once = server.step(params, update, server.init(params))
    twice = server.step(once.params, update, once.state)
    return round(float(twice.params["linear.bias"] - once.params["linear.bias"]) - 1, 6)


def test_every_value_is_valid_and_the_first_is_the_presets_own() -> None:
    assert set(OPTIONS) == set(PRESETS)
    for name, option in OPTIONS.items():
        config, (part, leaf) = config_of(f"aggregator={name}"), option.key.split(".")
        own = build_aggregator(config.aggregator)
        found = getattr(own.local if part == "local" else own.server, leaf)
        if found is None:  # fedcmp's momentum depends on the length of rounds; theirs is that of long ones
            found = momentum_in_long_rounds(own.server)
        assert found == option.values[0], name
        for value in option.values:
            with_options(config, {f"aggregator.{option.key}": value}).validate()
        assert len(set(option.values)) == len(option.values) >= 3


def test_every_budget_is_the_same_for_all_methods() -> None:
    lists = ["centralized.batch_sizes=[8,16,32,64,128]", "centralized.lrs=[1e-3,3e-3,5e-3,1e-2,2e-2]"]
    for budget in (4, MOST):
        jobs = Jobs(ask(None, lists, Request(methods=",".join(PRESETS), budget=budget)))
        assert {entrant for _, entrant in jobs.grids} == {*PRESETS, *BOUNDS}
        for (_, entrant), grid in jobs.grids.items():
            different = {str(sorted(options.items(), key=str)) for options in grid}
            assert len(grid) == len(different) == budget, entrant


def test_what_a_budget_tries() -> None:
    plain = config_of("aggregator=fedavg", "optimizer.lr=0.01")
    assert method_grid(plain, 4, False) == [
        {LR: lr, "aggregator.server.lr": value} for value in (1.0, 2.0) for lr in (0.01, 0.02)
    ]
    assert method_grid(plain, 1, False) == [{}]
    held = config_of("aggregator=fedavg", "aggregator.server.lr=0.7", "optimizer.lr=1")
    assert method_grid(held, 8, False) == [{LR: lr} for lr in (1, 2, 0.5, 4, 0.25, 8, 0.125, 1.414)]
    near = config_of("optimizer.lr=1e-2", "centralized.batch_sizes=[16,32]", "centralized.lrs=[5e-3,1e-2,2e-2]")
    pairs = [(options[LR], options[BATCHES]) for options in centralized_grid(near, 3)]
    assert pairs == [(0.01, [16]), (0.02, [16]), (0.01, [32])]


def test_another_local_optimizer_has_the_same_budget_around_each_of_its_rates() -> None:
    request = Request(methods="fedavg,muloco,own=fedavg:optimizer.name=sgd", budget=2, optimizers="muon=0.04,muon=0.16")
    jobs = Jobs(ask(None, ["optimizer.lr=1e-2", "centralized.lrs=[1e-2,2e-2]"], request))
    (setting,) = jobs.settings
    for entrant in ("fedavg", *BOUNDS):
        own, other = jobs.grids[setting, entrant][:2], jobs.grids[setting, entrant][2:]
        assert [options[LR] for options in (*own, *other)] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32], entrant
        assert not any(OPTIMIZER in options for options in own), "these runs are known from comparisons without it"
        assert [job.config.optimizer.name for job in jobs.tuning(setting, entrant)] == [*["adamw"] * 2, *["muon"] * 4]
    assert "6 runs" in (tuned := make_legend(jobs)[1])
    assert "2 with adamw, 4 with muon" in tuned
    with pytest.raises(ConfigError, match=r"--optimizers: muon=0\.08"):
        Jobs(ask(None, [], request._replace(optimizers="muon=0.04,muon=0.08")))
    for entrant, name in (("muloco", "muon"), ("own", "sgd")):
        assert [job.config.optimizer.name for job in jobs.tuning(setting, entrant)] == [name, name]


@pytest.mark.parametrize(("overrides", "server"), [
    (("aggregator=fedcmp", "aggregator.server.kind=adam"), "adam"),
    (("aggregator=fedprox", "aggregator.local.kind=plain"), "sgd"),
    (("aggregator=fedcmp", "aggregator.fuse.tau=0"), "opm"),
    (("aggregator=fedcmp", "aggregator.server.momentum=0"), None),
    (("aggregator=fedavg", "aggregator.server.lr=0.7"), None),
])  # fmt: skip
def test_an_exchanged_part_brings_its_own_option(overrides: tuple[str, ...], server: str | None) -> None:
    assert own_option(config_of(*overrides)) == (SERVERS[server] if server else None)


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
        study = ask(Path("study/reader"), overrides, Request(methods="fedcmp", scenarios="domain"))
        assert study.folders == {"FEDCMP_DATA": folder or "../shared/data"}
        monkeypatch.setenv("FEDCMP_DATA", "/later")
        jobs, begun = Jobs(study), Jobs(from_json(to_json(study), "here"))
        ours, theirs = ([job.id for job in one.tuning("domain", "fedcmp")] for one in (jobs, begun))
        assert ours == theirs, "it goes on under its own paths"
        return {job.id for one in (*BOUNDS, "fedcmp") for job in jobs.tuning("domain", one)}

    here = ids("/here")
    assert here == ids(None) == ids("/here/") == ids("/there/data of mine")
    assert not here & ids("/here", "data.root=/here/other pairs"), "other data of that folder"
    assert not here & ids("/here", "data.root=/hereafter/pairs"), "another folder of like name"


def test_labels_and_other_methods_options_do_not_make_a_run_another() -> None:
    words = ("centralized.lrs=[0.005,0.01,0.02,0.03]", "aggregator.server.momentum=0.1")
    one = Jobs(ask(None, (), Request(methods="fedavg,fedcmp", scenarios="domain")))
    other = Jobs(ask(None, words, Request(methods="x=fedavg,fedcmp", scenarios="y=domain")))

    def ids(jobs: Jobs, entrant: str) -> list[str]:
        return [job.id for job in jobs.tuning(jobs.settings[0], entrant)]

    assert ids(one, "fedavg") == ids(other, "x")
    assert ids(one, "local") == ids(other, "local")
    assert set(ids(one, "centralized")) & set(ids(other, "centralized"))
    assert not set(ids(one, "fedcmp")) & set(ids(other, "fedcmp")), "this one's momentum is another"
