"""What may be said after --methods and --scenarios, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcmp.errors import ConfigError
from fedcmp.compare import Request, again, ask
from fedcmp.compare.asked import from_json, to_json
from fedcmp.compare.cells import Jobs
from fedcmp.compare.words import parse_methods, parse_scenarios, split


def test_commas_and_colons_stand_in_brackets_and_quotes() -> None:
    assert split("a:b=[1,2],c:d={x: 1, y: 2}", ",") == ["a:b=[1,2]", "c:d={x: 1, y: 2}"]
    text = "two=domain:data.domains=[icons,xray]:partition.mix=0.5,'a, b: c'=iid"
    two, named = parse_scenarios(text)
    assert (two.label, two.name, two.overrides) == (
        "two",
        "domain",
        ("data.domains=[icons,xray]", "partition.mix=0.5"),
    )
    assert (named.label, named.name) == ("a, b: c", "iid")
    (quoted,) = parse_methods("x=fedavg:model.tower='C:/a,b'")
    assert quoted.overrides == ("model.tower='C:/a,b'",)


def test_labels_are_made_of_what_differs() -> None:
    assert [one.label for one in parse_methods("fedavg,fedavg:aggregator.server.lr=2")] == [
        "fedavg",
        "fedavg server.lr=2",
    ]
    assert [one.label for one in parse_scenarios("domain,domain:partition.mix=0.5,some/where/topic.yaml")] == [
        "domain",
        "domain mix=0.5",
        "topic",
    ]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("fedavgg", r'--methods fedavgg: unknown method .*did you mean "fedavg"'),
        ("centralized", "are run beside the methods anyway"),
        ("local=fedavg", "that of a bound"),
        ("fedavg,fedavg", "'fedavg' is there twice; give one a label"),
        ("fedavg,,fedcmp", "between commas is empty"),
        ("fedavg:lr", "'lr' is no key=value"),
        ("fedavg:data.domains=[a", "has no partner"),
        ("fedavg]", "has no partner"),
        ("a=b=fedavg", r"expected \[label=\]NAME"),
        ("fedavg:run.seed=3", "reported on --seeds and tuned on the run.seed beside CONFIG"),
        ("fedavg:run.dir=x", "use --out"),
        ("fedavg:wandb.mode=online", "say it beside CONFIG"),
    ],
)
def test_bad_methods_are_named(methods: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_methods(methods)


def test_every_config_is_checked_before_anything_runs(tmp_path: Path) -> None:
    def fails(message: str, request: Request, file: Path | None = None, overrides: tuple[str, ...] = ()) -> None:
        with pytest.raises(ConfigError, match=message):
            Jobs(ask(file, overrides, request))

    fails(r'--scenarios domainn: .*partition.scenario.*did you mean "domain"', Request(scenarios="domain,domainn"))
    fails("no config file no/such.yaml", Request(scenarios="no/such.yaml"))
    fails(
        r"--methods m: aggregator.server.beta.*\(setting demo\)", Request(methods="m=fedavg:aggregator.server.beta=0.1")
    )
    fails("aggregator.fuse.density", Request(methods="ties:aggregator.fuse.density=2"))
    fails('--reference: no method .*did you mean "fedavg"', Request(methods="fedavg,fedadam", reference="fedavgg"))
    fails("--seeds must be at least 1", Request(seeds=0))
    fails("--budget must be at least 1", Request(budget=0))
    fails("--extra-seeds 2 must not be below --seeds 5", Request(extra_seeds=2))
    fails("run.seed=3 is the seed on which methods are tuned", Request(seeds=3), overrides=("run.seed=3",))
    fails("run.dir cannot be set here; use --out", Request(), overrides=("run.dir=x",))
    fails("--budget 22 is more than", Request(budget=22, bounds=False))
    fails("hold 9 pairs; add values", Request(budget=10))
    fails("sets optimizer.lr, which --budget 2 tunes", Request(methods="fedavg:optimizer.lr=1", budget=2))


def test_the_reference_is_fedcmp_or_the_first() -> None:
    assert ask(None, (), Request()).reference == "fedcmp"
    assert ask(None, (), Request(methods="fedavg,fedadam")).reference == "fedavg"
    assert ask(None, (), Request(reference="fedadam")).reference == "fedadam"
    gone = again(ask(None, (), Request(reference="fedadam")), Request(methods="fedavg,fedcmp"))
    assert gone.reference == "fedcmp"


def test_a_file_takes_the_place_of_the_config_and_overrides_hold(tmp_path: Path) -> None:
    base, other = tmp_path / "base.yaml", tmp_path / "other.yaml"
    base.write_text("federation: {rounds: 3, batch_size: 8}\n")
    other.write_text("partition: {scenario: iid}\nfederation: {rounds: 5}\n")
    words = Request(scenarios=f"domain:partition.mix=0.5,{other}:partition.clients=4")
    study = ask(base, ("federation.local_steps=2",), words)
    domain, iid = study.settings
    assert (domain.label, domain.config.federation.rounds, domain.config.partition.mix) == ("domain mix=0.5", 3, 0.5)
    assert (iid.config.federation.rounds, iid.config.federation.batch_size) == (5, 16)
    assert (iid.label, iid.config.partition.clients, iid.config.partition.scenario) == ("other clients=4", 4, "iid")
    assert {one.config.federation.local_steps for one in study.settings} == {2}


def test_a_comparison_is_remembered_without_its_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("federation: {rounds: 3}\naggregator: {name: fedcmp, server: {momentum: 0.2}}\n")
    study = ask(
        file,
        ("optimizer.lr=0.02",),
        Request(methods="fedavg,a=fedcmp:aggregator.fuse.tau=0", scenarios="domain,iid", seeds=7, bounds=False),
    )
    file.unlink()
    assert from_json(to_json(study), "here") == study
    more = again(study, Request(seeds=9, scenarios="iid:partition.clients=4"))
    assert (more.seeds, more.budget, more.bounds) == (9, 4, False)
    (setting,) = more.settings
    assert (setting.config.federation.rounds, setting.config.optimizer.lr) == (3, 0.02)


def test_options_of_the_configs_own_method_are_no_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "aggregator: {name: fedcmp, weights: uniform, clip_norm: 2, fuse: {energy: 0.9}, server: {lr: 1.3}}\n"
    )
    jobs = Jobs(ask(file, (), Request(methods="fedavg,fedcmp,knots:aggregator.fuse.density=0.5")))
    fedavg, fedcmp, knots = (jobs.config("mine", name).aggregator for name in jobs.methods)
    assert (fedavg.fuse, fedavg.server, fedavg.weights, fedavg.clip_norm) == ({}, {}, "uniform", 2.0)
    assert (fedcmp.fuse, fedcmp.server) == ({"energy": 0.9}, {"lr": 1.3})
    assert knots.fuse == {"density": 0.5}


def test_what_the_config_says_of_all_updates_holds_for_every_method() -> None:
    words = (
        "aggregator.guard=true",
        "aggregator.normalise=true",
        "aggregator.clip_norm=2",
        "aggregator.weights=tokens",
    )
    methods = "fedavg,fedcmp,median:aggregator.guard=false,plain=fedprox:aggregator.normalise=false"
    jobs = Jobs(ask(None, words, Request(methods=methods)))
    said = [jobs.config("demo", name).aggregator for name in jobs.methods]
    assert [one.guard for one in said] == [True, True, False, True]
    assert [one.normalise for one in said] == [True, True, True, False]
    assert {(one.clip_norm, one.weights) for one in said} == {(2.0, "tokens")}


@pytest.mark.parametrize("method", ["median", "multi-krum", "scaffold", "fedcm"])
def test_a_rule_that_cannot_be_guarded_is_not_compared_with_guarded_ones(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"--methods {method}: aggregator\.guard .*\(setting demo\)"):
        Jobs(ask(None, ("aggregator.guard=true",), Request(methods=f"fedavg,{method}")))


def test_a_config_without_normalisation_does_not_make_fednova_another() -> None:
    words = ("aggregator.normalise=false",)
    with pytest.raises(ConfigError, match=r"--methods fednova: aggregator\.normalise=false in CONFIG"):
        Jobs(ask(None, words, Request(methods="fedavg,fednova")))
    jobs = Jobs(ask(None, words, Request(methods="fedavg,fednova:aggregator.normalise=true")))
    assert [jobs.config("demo", name).aggregator.normalise for name in jobs.methods] == [False, True]
    own = Jobs(ask(None, ("aggregator=fednova", *words), Request(methods="fednova,x=fedavg")))
    assert not own.config("demo", "fednova").aggregator.normalise
