"""The entries of --methods and --scenarios, and what is refused before anything runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fedcmp.cli.arguments import split_words
from fedcmp.cli.entry import build_parser
from fedcmp.compare import Request, again, ask
from fedcmp.compare.again import command
from fedcmp.compare.entries import parse_methods, split
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.spec import from_json, to_json
from fedcmp.errors import ConfigError


def test_commas_and_colons_in_brackets_and_quotes_are_letters() -> None:
    assert split("a:b=[1,2],c:d={x: 1, y: 2}", ",") == ["a:b=[1,2]", "c:d={x: 1, y: 2}"]
    text = "two=domain:data.domains=[blurred,faint]:partition.mix=0.5,'a, b: c'=iid,domain:partition.mix=0.5"
    two, named, plain = ask(None, (), Request(scenarios=text)).settings
    assert (two.label, two.config.data.domains, two.config.partition.mix) == ("two", ["blurred", "faint"], 0.5)
    assert (named.label, named.config.partition.scenario) == ("a, b: c", "iid")
    assert plain.label == "domain mix=0.5", "a label is what differs"
    (quoted,) = parse_methods("x=fedavg:model.tower='C:/a,b'")
    assert quoted.overrides == ("model.tower='C:/a,b'",)


@pytest.mark.parametrize(("methods", "named"), [
    ("fedavgg", '"fedavg"'), ("centralized", "'centralized'"), ("local=fedavg", "'local'"), ("fedavg,,fedcmp", "''"),
    ("fedavg,fedavg", "'fedavg' is there twice"), ("fedavg:lr", "'fedavg:lr'"), ("a=b=fedavg", "'a=b=fedavg'"),
    ("fedavg:data.domains=[a", "not closed"), ("fedavg]", "not closed"), ("fedavg:run.seed=3", "run.seed"),
    ("fedavg:run.dir=x", "run.dir.*--out"), ("fedavg:wandb.mode=online", "wandb.mode"),
])  # fmt: skip
def test_bad_methods_are_named(methods: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_methods(methods)


@pytest.mark.parametrize(("named", "asked", "overrides"), [
    (r'--scenarios domainn: .*partition.scenario.*"domain"', {"scenarios": "domain,domainn"}, ()),
    (r"no/such.yaml", {"scenarios": "no/such.yaml"}, ()),
    (r"--methods m: aggregator.server.beta", {"methods": "m=fedavg:aggregator.server.beta=0.1"}, ()),
    (r"aggregator.fuse.density", {"methods": "ties:aggregator.fuse.density=2"}, ()),
    (r'--reference.*"fedavg"', {"methods": "fedavg,fedadam", "reference": "fedavgg"}, ()),
    (r"--seeds", {"seeds": 0}, ()), (r"--budget", {"budget": 0}, ()), (r"--extra-seeds", {"extra_seeds": 2}, ()),
    (r'--optimizers.*"muon"', {"optimizers": "muo=0.04"}, ()), (r"--optimizers muon", {"optimizers": "muon"}, ()),
    (r"--optimizers: adamw", {"optimizers": "adamw=0.04"}, ()),
    (r"run.seed", {"budget": 1, "optimizers": "muon=0.04", "bounds": False}, ("run.seed=3",)),
    (r"run.seed", {"seeds": 3}, ("run.seed=3",)),
    (r"--tuning-seeds", {"tuning_seeds": 0}, ()), (r"run.seed", {"tuning_seeds": 2}, ("run.seed=-998",)),
    (r"--budget must be at most 21", {"budget": 22, "bounds": False}, ()),
    (r"centralized.batch_sizes", {"budget": 10}, ()),
    (r"optimizer.lr.*--budget 2", {"methods": "fedavg:optimizer.lr=1", "budget": 2}, ()),
    (r"evaluation.test", {}, ("evaluation.test=false",)),
    (r"--methods krum: aggregator\.guard", {"methods": "fedavg,krum"}, ("aggregator.guard=true",)),
    (r"--methods fednova: .*normalise", {"methods": "fednova"}, ("aggregator.normalise=false",)),
])  # fmt: skip
def test_every_config_is_checked_before_anything_runs(named: str, asked: dict, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=named):
        Jobs(ask(None, overrides, Request(**asked)))


def test_the_reference_is_fedcmp_or_the_first() -> None:
    assert ask(None, (), Request()).reference == "fedcmp"
    assert ask(None, (), Request(methods="fedavg,fedadam")).reference == "fedavg"
    other = ask(None, (), Request(reference="fedadam"))
    assert other.reference == "fedadam"
    assert again(other, Request(methods="fedavg,fedcmp")).reference == "fedcmp"


def test_a_file_takes_the_place_of_the_config_and_overrides_remain(tmp_path: Path) -> None:
    base, other = tmp_path / "base.yaml", tmp_path / "other.yaml"
    base.write_text("federation: {rounds: 3, batch_size: 8}\n")
    other.write_text("partition: {scenario: iid}\nfederation: {rounds: 5}\n")
    words = Request(scenarios=f"domain:partition.mix=0.5,{other}:partition.clients=4", seeds=7, bounds=False)
    study = ask(base, ("federation.local_steps=2",), words)
    domain, iid = study.settings
    assert (domain.label, domain.config.federation.rounds, domain.config.partition.mix) == ("domain mix=0.5", 3, 0.5)
    assert (iid.config.federation.rounds, iid.config.federation.batch_size) == (5, 16)
    assert (iid.label, iid.config.partition.clients, iid.config.partition.scenario) == ("other clients=4", 4, "iid")
    assert {one.config.federation.local_steps for one in study.settings} == {2}
    base.unlink()
    assert from_json(to_json(study), "here") == study, "it is remembered without its files"
    more = again(study, Request(seeds=9, scenarios="iid:partition.clients=4"))
    assert (more.seeds, more.budget, more.bounds) == (9, 4, False)
    (setting,) = more.settings
    assert (setting.config.federation.rounds, setting.config.federation.local_steps) == (3, 2)
    ranks = again(study, Request(), ["launch.devices=2"])
    assert [one.config.launch.devices for one in (ranks, *ranks.settings)] == [2, 2, 2]
    assert [one.label for one in ranks.settings] == [one.label for one in study.settings]


def test_part_options_are_of_one_method_and_the_rest_applies_to_all() -> None:
    own = ["aggregator=fedcmp", "aggregator.fuse.energy=0.9", "aggregator.server.lr=1.3", "aggregator.weights=uniform"]
    jobs = Jobs(ask(None, own, Request(methods="fedavg,fedcmp,knots:aggregator.fuse.density=0.5")))
    fedavg, fedcmp, knots = (jobs.configs["demo", name].aggregator for name in jobs.methods)
    assert (fedavg.fuse, fedavg.server, fedavg.weights) == ({}, {}, "uniform")
    assert (fedcmp.fuse, fedcmp.server, knots.fuse) == ({"energy": 0.9}, {"lr": 1.3}, {"density": 0.5})
    words = ("aggregator.guard=true", "aggregator.normalise=true", "aggregator.clip_norm=2")
    methods = "fedavg,median:aggregator.guard=false,plain=fedprox:aggregator.normalise=false"
    jobs = Jobs(ask(None, words, Request(methods=methods)))
    said = [jobs.configs["demo", name].aggregator for name in jobs.methods]
    assert [(one.guard, one.normalise, one.clip_norm) for one in said] == [
        (True, True, 2.0), (False, True, 2.0), (True, False, 2.0)
    ]  # fmt: skip
    jobs = Jobs(ask(None, ("aggregator=fednova", "aggregator.normalise=false"), Request(methods="fednova,fedavg")))
    assert not jobs.configs["demo", "fednova"].aggregator.normalise


def test_the_line_that_asks_again_asks_for_the_same(tmp_path: Path) -> None:
    file, other = tmp_path / "mine.yaml", tmp_path / "a b.yaml"
    file.write_text("federation: {rounds: 3}\n")
    other.write_text("federation: {rounds: 5}\n")
    methods = 'fedavg,"it\'s: a"=fedcmp:aggregator.fuse.tau=0,fedcmp:data.domains=[blurred,faint]'
    scenarios = f"iid,mixed=domain:partition.mix=0.5,'{other}':partition.clients=4"
    options = Request(methods, scenarios, "muon=0.04,sgd=1", 2, 3, 2, 4, 1, "fedavg", False, True)
    first = ask(file, ["optimizer.lr=0.01"], options)
    more = again(first, Request(seeds=3), ["partition.mix=0.2", "run.seed=9"])  # over what a setting has of its own
    assert command(again(again(first, Request(), ["run.seed=7"]), Request(), ["run.seed=8"])).count("run.seed=") == 1
    plain = ask(None, (), Request())
    for study in (first, more, plain):
        words = shlex.split(command(study))
        assert words[:2] == ["fedcmp", "compare"]
        parsed = build_parser().parse_args(words[1:])
        path, overrides = split_words(parsed.words)
        options = ("seeds", "budget", "tuning_seeds", "extra_seeds", "rivals", "reference")
        asked = {name: getattr(parsed, name) for name in options}
        asked |= {
            name: ",".join(found) for name in ("methods", "scenarios", "optimizers") if (found := getattr(parsed, name))
        }
        kept = {"bounds": not parsed.no_bounds, "keep_projectors": parsed.keep_projectors}
        again_ = ask(path, overrides, Request(**asked, **kept))
        assert to_json(again_) == to_json(study)
