"""Every command of the pages is run, or, where that needs a cluster, a GPU or another program, checked as far as goes.

* *runs*: fedcmp on the embedded demo, made small, in this process and in a folder of its own;
* *pairs*: the same on the real pairs, where they lie beside the checkout;
* *ranks*: fedcmp under a launcher: the launcher's own words are read by it, and the run is planned for as many ranks;
* *script*: a script of ours: its words are read by it;
* *elsewhere*, *own*: a test that is named runs it.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sandbox
from kinds import ELSEWHERE, OWN_TEST, PROGRAMS, Kind, kind_of
from written import INDENTED, LANGUAGES, PAGES, ROOT, Block, Command, blocks, commands, is_shell

from fedcmp.cli import COMMANDS, main
from fedcmp.runs.train import reopen

BLOCKS = [block for page in PAGES for block in blocks(page)]
FOUND = {one.text: one for block in BLOCKS if is_shell(block, PROGRAMS) for one in commands(block)}
"""Each command once, wherever it stands first."""


def of_kind(*names: str) -> list:
    """The commands of a kind; those of none are shown by a test of their own."""
    found = []
    for command in FOUND.values():
        try:
            kind = kind_of(command)
        except AssertionError:
            continue
        if kind.name in names:
            heavy = kind.fedcmp[:1] == ("doctor",)  # it starts two ranks; tests/doctor has it at every run
            found.append(pytest.param(command, kind, id=command.text[:80], marks=[pytest.mark.slow] * heavy))
    return found


@pytest.mark.parametrize("command", FOUND.values(), ids=lambda one: one.text[:80])
def test_somebody_runs_it(command: Command) -> None:
    assert kind_of(command)


def test_every_page_was_read() -> None:
    assert len(FOUND) > 40
    assert {kind_of(one).name for one in FOUND.values()} == {
        "runs", "pairs", "ranks", "script", "export", "quickstart", "own", "elsewhere"
    }  # fmt: skip
    ran = {kind_of(one).fedcmp[0] for one in FOUND.values() if kind_of(one).fedcmp}
    assert ran <= COMMANDS.keys()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda one: one.where)
def test_a_block_says_what_is_in_it(block: Block) -> None:
    if block.language is None:
        assert block.page.name in INDENTED, f"{block.where}: use a fence that names the language: ```bash, ```text, ..."
    else:
        assert block.language in LANGUAGES, f"{block.where}: the fence must name one of {sorted(LANGUAGES)}"
    if block.language == "python":
        compile(block.text, block.where, "exec")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that commands may read."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *sandbox.QUICK, f"run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command is run: what lies in the checkout, and nothing of it is written to."""
    sandbox.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(words)
    said = capsys.readouterr()
    assert code == 0, f"fedcmp {' '.join(words)}\n{said.out}{said.err}"


def made_small(words: list[str], *more: str) -> list[str]:
    """The same command for a second or two; what is added comes last and wins."""
    if "--resume" in words or words[0] not in ("train", "centralized", "local", "compare", "plan", "doctor"):
        return words
    words = [*words, *sandbox.QUICK, *(sandbox.SCALE if "configs/scale/" in " ".join(words) else []), *more]
    if words[0] == "centralized":
        words += sandbox.TUNING
    return sandbox.compare_less(words) if words[0] == "compare" else words


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that commands may read."""
    folder = tmp_path_factory.mktemp("compared") / "comparison"
    words = ["compare", *sandbox.QUICK, "--methods", "fedavg,fedcmp", *sandbox.COMPARED, "--out", str(folder)]
    assert main(words) == 0
    return folder


@pytest.mark.parametrize(("command", "kind"), of_kind("runs"))
def test_on_the_demo(
    command: Command,
    kind: Kind,
    place: Path,
    finished: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "t.jsonl" in command.text:
        sandbox.own_data(place)
    words = sandbox.filled(kind.fedcmp, place)
    if words[0] == "prepare":
        words = sandbox.public_set(place, words)
    if "data.root=data" in words:
        sandbox.prepared(place, words)
    if "configs/scale/" in command.text:
        monkeypatch.setenv(*sandbox.scale_data(place))
    if any("runs/compare-" in word for word in words):
        finished = request.getfixturevalue("compared")
    if words[0] == "compare":
        sandbox.ask_all(words[1:])
    run(made_small(sandbox.with_runs(words, place, finished)), capsys)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.shared
@pytest.mark.parametrize(("command", "kind"), of_kind("pairs"))
def test_on_real_pairs(
    command: Command,
    kind: Kind,
    place: Path,
    finished: Path,
    shared: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDCMP_DATA", str(shared))
    words = sandbox.with_runs(sandbox.filled(kind.fedcmp, place), place, finished)
    run(made_small(words, *sandbox.QUICK_PAIRS, f"data.cache_dir={features}"), capsys)


@pytest.mark.parametrize(("command", "kind"), of_kind("ranks"))
def test_for_several_ranks(
    command: Command,
    kind: Kind,
    place: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    if "configs/scale/" in command.text:
        monkeypatch.setenv(*sandbox.scale_data(place))
    READ_BY.get(command.words[0], lambda words: None)(command.words[1:])
    assert kind.fedcmp[0] == "train", "only training has ranks"
    words = sandbox.with_runs(sandbox.filled(kind.fedcmp, place), place, finished)
    if "--resume" in words:
        at = words.index("--resume")
        assert reopen(Path(words[at + 1]), [*words[1:at], *words[at + 2 :]])
        return
    run(made_small(["plan", *words[1:], "--ranks", str(kind.ranks)]), capsys)


def _fabric(words: list[str]) -> None:
    """``fabric run`` reads its words; the script must be there."""
    from lightning.fabric import cli

    script = [sys.executable if word == "$(which fedcmp)" else word for word in words[1:]]
    read = cli._main.commands[words[0]].make_context("fabric run", script)
    assert read.params["script_args"][0] == "train"


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    read = get_args_parser().parse_args(words)
    assert (read.module, read.training_script) == (True, "fedcmp")


READ_BY: dict[str, Callable[[list[str]], None]] = {"fabric": _fabric, "torchrun": _torchrun}
"""What reads the words of a launcher; SLURM's are read by a real one in tests/launch/test_slurm.py."""


@pytest.mark.parametrize(("command", "kind"), of_kind("export"))
def test_a_variable_is_read(command: Command, kind: Kind) -> None:
    name = command.words[1].partition("=")[0]
    configs = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml"))
    assert f"${{oc.env:{name}," in configs, f"{command.where}: no config reads {name}"


class WereRead(Exception):
    """The words of a script are right; it need not go on."""


@pytest.mark.parametrize(("command", "kind"), of_kind("script"))
def test_a_script_reads_its_words(command: Command, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def read_and_stop(self, *args, **options):
        read(self, *args, **options)
        raise WereRead

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
    monkeypatch.setattr(sys, "argv", command.words[1:])
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    with pytest.raises(WereRead):
        runpy.run_path(str(ROOT / command.words[1]), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), of_kind("quickstart"))
def test_the_quickstart_trains(command: Command, kind: Kind, place: Path) -> None:
    """All but the installation, for which there is no network: the environment is this one, under another name."""
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    pinned = Path("pyproject.toml").read_bytes() + Path("constraints.txt").read_bytes()
    wanted = subprocess.run(["cksum"], input=pinned, capture_output=True, check=True)
    (place / ".venv" / ".fedcmp-installed").write_bytes(wanted.stdout)
    words = ["bash", *command.words, *sandbox.QUICK, "run.dir=runs/mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "runs" / "mine" / "summary.json").is_file()
    assert "installing" not in done.stdout, "it would have installed over the environment of the test"


def test_other_programs_have_a_test_that_runs_them() -> None:
    for path, word in ELSEWHERE.values():
        assert word in (ROOT / path).read_text(encoding="utf-8")
    for path in OWN_TEST.values():
        assert (ROOT / path).is_file()
    for beginning in ELSEWHERE:
        assert any(one.text.startswith(beginning) for one in FOUND.values()) or "settings.py" in beginning
    assert shutil.which("bash"), "the pages' commands are for bash"
