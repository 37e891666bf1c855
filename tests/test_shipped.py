"""What comes with the code: configs by name from any folder, version and commit, how to cite it."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedcmp
from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.shipped import FOLDER, about, find_config, shipped
from fedcmp.version import commit, described

ROOT = Path(__file__).parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("word", ["demo/topic", "demo/topic.yaml", "configs/demo/topic", "configs/demo/topic.yaml"])
def test_a_shipped_config_has_a_name_in_any_folder(word: str, elsewhere: Path) -> None:
    assert load_config(Path(word)).partition.scenario == "topic"


def test_every_shipped_config_says_what_it_is() -> None:
    assert len(shipped()) > 20
    for name, path in shipped().items():
        assert path.is_relative_to(FOLDER)
        assert len(about(path)) > 20, f"configs/{name}.yaml begins with no comment"


def test_a_file_of_that_name_comes_first(elsewhere: Path) -> None:
    mine = elsewhere / "configs" / "demo" / "topic.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("federation: {rounds: 3}\n")
    assert find_config(Path("configs/demo/topic.yaml")) == Path("configs/demo/topic.yaml")
    assert load_config(Path("configs/demo/topic.yaml")).federation.rounds == 3
    assert load_config(Path("demo/topic")).federation.rounds == 12
    (elsewhere / "demo" / "topic").mkdir(parents=True)
    assert find_config(Path("demo/topic")).is_file(), "a folder of that name is no config"


def test_what_is_no_config_is_named_as_typed(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match=r'^no config file configs/demo/topics\.yaml, .* did you mean "demo/topic"'):
        load_config(Path("configs/demo/topics.yaml"))
    with pytest.raises(ConfigError, match=r"^no config file /nowhere/mine\.yaml, .*`fedcmp configs` lists those$"):
        load_config(Path("/nowhere/mine.yaml"))
    with pytest.raises(ConfigError, match=r"cannot be read as YAML"):
        load_config(elsewhere)


def test_the_command_line_knows_them(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert max(map(len, lines)) <= 120
    assert main(["configs", "demo/quantity"]) == 0
    (elsewhere / "mine.yaml").write_text(capsys.readouterr().out)
    assert load_config(Path("mine.yaml")) == load_config(Path("demo/quantity"))
    assert main(["validate"]) == 0
    assert f"{len(lines)} configs, 0 wrong" in capsys.readouterr().out
    assert main(["validate", "demo/topic", "configs/demo/scenes.yaml"]) == 0
    assert "ok     demo/topic\n" in capsys.readouterr().out
    assert main(["plan", "demo/topix"]) == 2
    assert 'no config file demo/topix, and no such one comes with fedcmp; did you mean "demo/topic"?' in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("word", ["federation.rounds", "federation", "aggregator", "model.projector.init"])
def test_a_key_without_a_value_is_no_misspelt_config(
    word: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "compare", "plan"):
        assert main([command, word]) == 2
        said = capsys.readouterr().err
        assert f"'{word}' is no config file and no override; expected key=value, as in {word}=VALUE" in said
    assert main(["plan", "federation.yaml"]) == 2
    assert "no config file federation.yaml" in capsys.readouterr().err
    (elsewhere / word).write_text("run: {sed: 1}")
    assert main(["plan", word]) == 2
    assert "no config file" not in capsys.readouterr().err, "a file of that name is one"


def test_the_version_has_a_commit_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out.strip()
    assert re.fullmatch(r"fedcmp \d+\.\d+\.\d+( \(commit [0-9a-f]{7}(-dirty)?\))?", said)
    assert said == described(fedcmp.__version__, commit())
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert (commit() or "").removesuffix("-dirty") == head.stdout.strip()


def test_how_to_cite_it() -> None:
    """What version 1.2.0 of the Citation File Format's schema requires; it allows no key that it does not know."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert content["version"] == fedcmp.__version__
    assert content["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    (paper,) = content["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["url"] == "https://arxiv.org/abs/2603.26786"
    for person in [*content["authors"], *paper["authors"]]:
        assert set(person) in ({"name"}, {"given-names", "family-names"})
        assert all(isinstance(value, str) and value for value in person.values())


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_all_that_is_needed_is_pinned(version: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and line[0] != "#"]
    names = [
        canonicalize_name(one.name)
        for one in pins
        if not one.marker or one.marker.evaluate({"python_version": version})
    ]
    assert len(names) == len(set(names)), "one version of a package"
    needed = {canonicalize_name(Requirement(line).name) for line in metadata.requires("fedcmp") or []}
    assert needed - {"fedcmp"} <= set(names)
