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
from fedcmp.shipped import about, find_config, shipped
from fedcmp.version import commit, described

ROOT = Path(__file__).parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_config_has_a_name_in_any_folder_where_no_file_has_it(elsewhere: Path) -> None:
    for word in ("demo/topic", "demo/topic.yaml", "configs/demo/topic", "configs/demo/topic.yaml"):
        assert load_config(Path(word)).partition.scenario == "topic"
    mine = elsewhere / "configs" / "demo" / "topic.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("federation: {rounds: 3}\n")
    assert load_config(Path("configs/demo/topic.yaml")).federation.rounds == 3
    assert load_config(Path("demo/topic")).federation.rounds == 12
    (elsewhere / "demo" / "topic").mkdir(parents=True)
    assert find_config(Path("demo/topic")).is_file(), "a folder of that name is no config"


def test_what_is_no_config_is_named_as_typed(elsewhere: Path) -> None:
    for word, message in (
        ("configs/demo/topics.yaml", r'no config file configs/demo/topics\.yaml, .* did you mean "demo/topic"'),
        ("configs/demo/nope.yaml", r"none of that name; `fedcmp configs` lists those"),
        ("/nowhere/mine.yaml", r"no config file /nowhere/mine\.yaml, .*`fedcmp configs`"),
        (".", r"\. cannot be read as YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(Path(word))


def test_the_command_line_lists_prints_and_validates_them(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert len(lines) > 20
    assert max(map(len, lines)) <= 120
    assert all(len(about(path)) > 20 for path in shipped().values()), "each begins with a comment"
    assert main(["configs", "demo/quantity"]) == 0
    (elsewhere / "mine.yaml").write_text(capsys.readouterr().out)
    assert load_config(Path("mine.yaml")) == load_config(Path("demo/quantity"))
    assert main(["validate"]) == 0
    assert f"{len(lines)} configs, 0 wrong" in capsys.readouterr().out
    assert main(["validate", "demo/topic", "configs/demo/scenes.yaml"]) == 0
    assert "ok     demo/topic\n" in capsys.readouterr().out


def test_the_version_has_a_commit_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out.strip()
    assert re.fullmatch(r"fedcmp \d+\.\d+\.\d+( \(commit [0-9a-f]{7}(-dirty-[0-9a-f]{8})?\))?", printed)
    assert printed == described(fedcmp.__version__, commit())
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert (commit() or "").partition("-")[0] == head.stdout.strip()


def test_how_to_cite_it() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (content["version"], content["license"]) == (fedcmp.__version__, "Apache-2.0")


def test_all_that_is_needed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and line[0] != "#"]
    needed = {canonicalize_name(Requirement(line).name) for line in metadata.requires("fedcmp") or []} - {"fedcmp"}
    for version in ("3.10.0", "3.11.2", "3.11.7", "3.12.1", "3.13.0"):  # Debian 12 has 3.11.2
        where = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
        found = [one for one in pins if not one.marker or one.marker.evaluate(where)]
        names = [canonicalize_name(one.name) for one in found]
        assert len(names) == len(set(names)), f"{version}: one version of a package"
        assert needed <= set(names), version
