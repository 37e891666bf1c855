"""One config: files, overrides, and errors that name the key and the nearest valid choice."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

from fedcmp.cli import main
from fedcmp.config import Config, from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError
from fedcmp.plain_yaml import parse_yaml, resolve

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_every_shipped_config_is_valid_and_what_its_name_says() -> None:
    assert len(FILES) == 34
    for path in FILES:
        config = load_config(path)
        name, _, clients = path.stem.partition("_")
        if path.parent.name in ("demo", "scenarios"):
            assert config.partition.clients == (None if path.stem == "scenes" else int(clients or 8)), path
            assert config.partition.scenario == ("domain" if name == "scenes" else name), path
            assert config.data.kind == ("scenes" if path.parent.name == "demo" else "pairs"), path
            assert bool(config.federation.dropout) == (name == "quantity"), path
    assert load_config(CONFIGS / "demo" / "scenes.yaml") == load_config()


def test_overrides_win_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("aggregator: diloco\nfederation: {rounds: 5, batch_size: 4}\noptimizer: {lr: 5e-3}\n")
    config = load_config(path, ["federation.rounds=7", "data.domains=[plain,faint]", "aggregator.server.lr=0.5"])
    assert (config.federation.rounds, config.federation.batch_size, config.federation.passes) == (7, 4, 1)
    assert (config.aggregator.name, config.aggregator.server) == ("diloco", {"lr": 0.5})
    assert (config.optimizer.lr, config.data.domains) == (5e-3, ["plain", "faint"])
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    path.write_text("# nothing\n")
    assert load_config(path) == Config()


def test_values_may_come_from_the_environment_and_from_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCMP_DATA", "/somewhere")
    monkeypatch.setenv("MY_DOMAINS", "[plain, faint]")
    assert load_config(CONFIGS / "scenarios" / "domain.yaml").data.root == "/somewhere/pairs"
    words = ["data.domains=${oc.decode:${oc.env:MY_DOMAINS}}", "run.seed=3", "federation.rounds=${run.seed}"]
    config = load_config(None, words)
    assert (config.data.domains, config.federation.rounds) == (["plain", "faint"], 3)


@pytest.mark.parametrize(("override", "message"), [
    ("federation.round=3", r'`federation\.round`; did you mean "rounds"'),
    ("federation=3", "federation expects"),
    ("aggregator.fuse=3", r"aggregator\.fuse expects"),
    ("federation.rounds=1e3", r"federation\.rounds"),
    ("run.seed=???", r"run\.seed"),
    ("run.seed=true", r"run\.seed"),
    ("run.figures=maybe", r"run\.figures"),
    ("model.tower=null", r"model\.tower"),
    ("aggregator.fuse.evidence='false'", r"aggregator\.fuse\.evidence"),
    ("federation.rounds=0", r"federation\.rounds must be .* >= 1, got 0"),
    ("aggregator=fedavgM", r'aggregator\.name: .*did you mean "fedavgm"'),
    ("aggregator.server.beta=0.5", r"aggregator\.server\.beta"),
    ("data.kind=pairs", r"data\.root"),
    ("run.device=gpu", r'run\.device: .*did you mean "cuda"'),
    ("run.name=a/b", r"run\.name"),
    ("run.name=\\${x}", r"run\.name would be read as a reference"),
    ("run.name=${nowhere}", r"run\.name"),
    ("data.domains=icons,xray", r"data\.domains expects a list"),
    ("wandb.tags.0=a", r"wandb\.tags expects a list"),
    ("centralized.lrs=[]", r"centralized\.lrs"),
    ("centralized.batch_sizes=[0]", r"centralized\.batch_sizes"),
    ("rounds", "'rounds' is no override"),
    ("run..seed=1", "is no override"),
    ("run.seed=[1", r"override run\.seed, line 1"),
    ("aggregator.fuse={tau: 0, tau: 1}", r"override aggregator\.fuse, line 1 .*tau is given twice"),
])  # fmt: skip
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(("content", "message"), [
    ("a: [", r"mine\.yaml, line 1"),
    ("- 1", r"mine\.yaml: a config expects"),
    ("optimizer: {lr: fast}", r"mine\.yaml: optimizer\.lr"),
    ("optimizer: {lr: -1}", r"optimizer\.lr must be positive, got -1.*mine\.yaml"),
    ("federation:\n  rounds: 3\n  'rounds': 4\n", r"mine\.yaml, line 3 .*rounds is given twice"),
    ("run: {seed: !!python/object/apply:os.system [ls]}", r"mine\.yaml: run\.seed"),
    ("run: {dir: \x00}", r"mine\.yaml cannot be read as YAML"),
])  # fmt: skip
def test_bad_files_are_named(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match=r"no config file .*mine\.yaml"):
        load_config(path)
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert main(["validate", str(path)]) == 2
    assert "mine.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("written", ["1e3", "infinity", "007", "yes", "2026-11-25", "1:30", "exp #2", "a: b", "*a"])
def test_a_text_stays_as_it_was_typed(written: str) -> None:
    config = load_config(None, [f"run.name={written}", f"wandb.tags=['{written}']"])
    assert (config.run.name, config.wandb.tags) == (written, [written])
    assert from_yaml(to_yaml(config), "config.yaml") == config


def test_values_without_quotes_have_the_type_of_their_field() -> None:
    config = load_config(None, ["run.name=null", "run.dir='null'", "run.figures=off", "wandb.tags=[1e3, yes, 007]"])
    assert (config.run.name, config.run.dir, config.run.figures) == (None, "null", False)
    assert config.wandb.tags == ["1e3", "yes", "007"]
    assert load_config(None, ["optimizer.betas=[1e-1, 9e-1]"]).optimizer.betas == [0.1, 0.9]


@pytest.mark.parametrize(("written", "expected"), [("010", 10), ("0o10", 8), ("0x10", 16), ("+4", 4)])
def test_numbers_are_those_of_yaml_1_2(written: str, expected: int) -> None:
    config = from_yaml(f"{{run: {{seed: {written}}}, aggregator: {{server: {{lr: {written}}}}}}}", "mine.yaml")
    assert config.run.seed == load_config(None, [f"run.seed={written}"]).run.seed == expected
    assert config.aggregator.server["lr"] == expected


def test_scalars_of_yaml_1_2() -> None:
    text = "[1e-3, .5, -.inf, .NAN, 1_000, ~, True, yes, 12:30, 0b1, '1']"
    small, half, low, nan, *rest = resolve(parse_yaml(text, "mine.yaml"))
    assert (small, half, low, nan != nan) == (0.001, 0.5, float("-inf"), True)
    assert rest == ["1_000", None, True, "yes", "12:30", "0b1", "1"]


def test_every_field_has_a_string_below_it() -> None:
    """It is the manual."""
    parts = [type(getattr(Config(), one.name)) for one in dataclasses.fields(Config)]
    count = 0
    for part in [*parts, type(Config().model.projector)]:
        (tree,) = ast.parse(inspect.getsource(part)).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{part.__name__}.{ast.unparse(node.target)}"
                count += 1
    assert count > 40


def test_a_method_sets_the_local_optimizer_that_is_part_of_it_and_refuses_another() -> None:
    assert load_config(None, ["aggregator=muloco"]).optimizer.name == "muon"
    for words in (["aggregator.name=muloco"], ["aggregator=muloco", "optimizer.name=adamw"]):
        with pytest.raises(ConfigError, match=r"optimizer\.name must be muon"):
            load_config(None, words)


def test_an_option_of_the_files_own_method_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("aggregator: {name: fedcmp, fuse: {explore: 1.0}}")
    with pytest.raises(
        ConfigError, match=r"aggregator\.fuse\.explore: .*mine\.yaml sets it for fedcmp, not for fedavg"
    ):
        load_config(tmp_path / "mine.yaml", ["aggregator=fedavg"])
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.yaml", ["aggregator.fuse.nonsense=1"])
    assert "sets it for" not in str(caught.value), "the command line did"
