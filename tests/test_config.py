"""One config: files, overrides, and errors that name key, place and the nearest valid choice."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from fedcmp.cli import main
from fedcmp.config import Config, load_config, to_yaml
from fedcmp.errors import ConfigError
from fedcmp.plain_yaml import parse_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_every_shipped_config_is_found() -> None:
    names = ["demo/scenes", "scenarios/domain"]
    names += [f"{folder}/{name}" for folder in ("demo", "scenarios") for name in ("topic", "quality", "quantity")]
    expected = {f"{name}{size}.yaml" for name in names for size in ("", "_32", "_100")}
    expected |= {"study/demo.yaml", "study/pairs.yaml"}
    scale = ["llava15_7b", "llava15_13b", "small_24gb"]
    scale += [f"federation_{name}" for name in ("domain", "topic", "quality", "quantity")]
    expected |= {f"scale/{name}.yaml" for name in scale}
    assert {str(path.relative_to(CONFIGS)) for path in FILES} == expected


SCENARIOS = [path for path in FILES if path.parent.name in ("demo", "scenarios")]


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_is_what_its_name_says(path: Path) -> None:
    config = load_config(path)
    name, _, clients = path.stem.partition("_")
    assert config.partition.clients == (None if path.stem == "scenes" else int(clients or 8))
    assert config.partition.scenario == ("domain" if name == "scenes" else name)
    assert config.data.kind == ("scenes" if path.parent.name == "demo" else "pairs")
    assert bool(config.federation.dropout) == (name == "quantity")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_the_demo_file_is_the_default() -> None:
    assert load_config(CONFIGS / "demo" / "scenes.yaml") == load_config()


def test_a_resolved_config_is_a_config(tmp_path: Path) -> None:
    config = load_config(None, ["aggregator=fedadam", "aggregator.server.lr=0.5", "optimizer.lr=1e-3", "run.seed=3"])
    assert (config.aggregator.name, config.aggregator.server) == ("fedadam", {"lr": 0.5})
    assert config.optimizer.lr == 1e-3
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_a_reference_may_stand_for_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DOMAINS", "[plain, faint]")
    config = load_config(None, ["data.domains=${oc.decode:${oc.env:MY_DOMAINS}}"])
    assert config.data.domains == ["plain", "faint"]


def test_files_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("aggregator: diloco\nfederation: {rounds: 5, batch_size: 4}\noptimizer: {lr: 5e-3}\n")
    config = load_config(path, ["federation.rounds=7", "data.domains=[plain,faint]"])
    assert (config.federation.rounds, config.federation.batch_size) == (7, 4)
    assert config.optimizer.lr == 5e-3
    assert config.aggregator.name == "diloco"
    assert config.data.domains == ["plain", "faint"]


def test_environment_variables_fill_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCMP_DATA", "/somewhere")
    assert load_config(CONFIGS / "scenarios" / "domain.yaml").data.root == "/somewhere/pairs"


@pytest.mark.parametrize(("overrides", "message"), [
    (["federation.round=3"], r'override federation\.round=3: unknown key `federation\.round`; did you mean "rounds"'),
    (["federaton.rounds=3"], r'unknown key `federaton`; did you mean "federation"'),
    (["federation=3"], r"`federation` holds keys of its own, got 3"),
    (["federation.rounds=many"], r"federation\.rounds.*many"),
    (["federation.rounds=0"], r"federation\.rounds must be at least 1, got 0"),
    (["federation.clients_per_round=2", "federation.min_clients=3"], r"federation\.min_clients is 3"),
    (["aggregator=fedavgM"], r'aggregator\.name: unknown method .fedavgM.; did you mean "fedavgm"'),
    (["aggregator.server.beta=0.5"], r"aggregator\.server\.beta: unknown option of opm"),
    (["data.kind=scene"], r'data\.kind: unknown .scene.; did you mean "scenes"'),
    (["data.kind=pairs"], r"data\.root is needed for data\.kind=pairs"),
    (["data.on_bad_record=ignore"], r"data\.on_bad_record"),
    (["data.on_overlap=dorp"], r'data\.on_overlap: unknown .dorp.; did you mean "drop"'),
    (["federation.dropout=1"], r"federation\.dropout must be in \[0, 1\), got 1"),
    (["run.device=gpu"], r"run\.device: unknown device 'gpu'; did you mean \"cuda\""),
    (["run.device=cup"], r'run\.device: unknown device .cup.; did you mean "cpu"'),
    (["data.domains=icons,xray"], r"data\.domains is a list and given whole, .*got 'icons,xray'"),
    (["centralized.lrs=1e-3"], r"centralized\.lrs is a list and given whole, .*got '1e-3'"),
    (["run.name=a/b"], r"run\.name must be a plain folder name"),
    (["model.end=eof"], r"model\.end must be"),
    (["wandb.mode=offlin"], r'wandb\.mode.*did you mean "offline"'),
    (["evaluation.batch_size=0"], r"evaluation\.batch_size must be at least 1"),
    (["centralized.lrs=[]"], r"centralized\.lrs must hold"),
    (["rounds"], r"'rounds' is no override; expected key=value"),
    (["run.seed=[1"], r"cannot be read as YAML"),
])  # fmt: skip
def test_bad_overrides_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match=r"no config file .*mine\.yaml"):
        load_config(path)
    for content, message in (
        ("a: [", r"mine\.yaml cannot be read as YAML"),
        ("- 1", r"mine\.yaml: expected keys and values, got list"),
        ("optimizer: {lrr: 1}", r'mine\.yaml: unknown key `optimizer\.lrr`; did you mean "lr"'),
        ("optimizer: {lr: fast}", r"mine\.yaml: optimizer\.lr"),
        ("optimizer: {lr: -1}", r"optimizer\.lr must be positive, got -1.*mine\.yaml"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    path.write_text("")
    assert load_config(path) == Config()


@pytest.mark.parametrize(("content", "message"), [
    ("optimizer:\n  lr: 1\nfederation:\n  rounds: 3\n  rounds: 4\n",
     r"mine\.yaml, line 5: federation\.rounds is given twice, first on line 4"),
    ("federation: {rounds: 3}\nrun:\n  seed: 1\nfederation:\n  passes: 2\n",
     r"mine\.yaml, line 4: federation is given twice, first on line 1"),
    ("model: {projector: {hidden: 4, kind: linear, hidden: 8}}",
     r"mine\.yaml, line 1: model\.projector\.hidden is given twice"),
    ("aggregator: {fuse: {tau: 0, 'tau': 1}}", r"mine\.yaml, line 1: aggregator\.fuse\.tau is given twice"),
])  # fmt: skip
def test_a_key_that_stands_twice_is_refused(content: str, message: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert main(["validate", str(path)]) == 2
    assert re.search(message, capsys.readouterr().out)


def test_a_key_that_stands_twice_in_an_override_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override aggregator\.fuse=.*, line 1: tau is given twice"):
        load_config(None, ["aggregator.fuse={tau: 0, tau: 1}"])


def test_what_is_merged_in_may_be_overruled(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "aggregator:\n  server: &one {lr: 2}\n  local: {}\n  fuse:\n    <<: *one\n    <<: {tau: 1}\n    tau: 0\n"
        "data: {domains: [plain, plain, {a: 1}, {a: 1}]}\n"
    )
    values = parse_yaml(path.read_text(), "mine.yaml").values
    assert values["aggregator"]["fuse"] == {"lr": 2, "tau": 0}
    assert len(values["data"]["domains"]) == 4


def test_every_field_says_what_it_is() -> None:
    """A string stands below each field: it is the manual."""
    import ast
    import inspect

    def check(kind: type) -> int:
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{kind.__name__}.{ast.unparse(node.target)} says nothing"
        return len(dataclasses.fields(kind))

    parts = [type(getattr(Config(), one.name)) for one in dataclasses.fields(Config)]
    assert sum(check(part) for part in [*parts, type(Config().model.projector)]) > 40
