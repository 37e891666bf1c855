"""The command line: manual pages, exit codes, and a run from words to a table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small import SMALL

from fedcmp.aggregation.presets import PRESETS
from fedcmp.cli import COMMANDS, main


def test_each_command_has_a_short_page_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    def page(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    whole = " ".join(page().split())
    for name, handler in COMMANDS.items():
        examples = page(name).partition("examples:\n")[2].partition("\n\n")[0].splitlines()
        assert 1 <= len(examples) <= 2, name
        assert all(line.startswith(f"  fedcmp {name}") for line in examples)
        assert max(map(len, page(name).splitlines())) <= 120
        assert (handler.__doc__ or "").splitlines()[0] in whole


def test_train_evaluate_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", *SMALL, f"run.dir={folder}", "aggregator=fedavgm"]) == 0
    out, err = capsys.readouterr()
    said = re.findall(r"^round (\d)/2: [\d.]+ s, train loss [\d.]+, validation loss [\d.]+", err, re.MULTILINE)
    assert said == ["1", "2"], "standard error is no terminal: a line for each round"
    assert all(word in out for word in ("image use", "test loss", "digits named right", str(folder)))
    assert main(["evaluate", str(folder)]) == 0
    assert "image use" in capsys.readouterr().out
    assert main(["table", str(folder)]) == 0
    assert main(["table", str(folder), str(tmp_path / "none")]) == 1
    said = capsys.readouterr()
    assert said.out.count("fedavgm") == 2
    assert "none is no finished run" in said.err


def test_centralized_and_local_print_their_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["centralized.batch_sizes=[8]", "centralized.lrs=[1e-2,1e-3]"]
    assert main(["centralized", *SMALL, "--tune", *grid, f"run.dir={tmp_path / 'c'}"]) == 0
    assert "learning rate" in capsys.readouterr().out
    assert main(["local", *SMALL, f"run.dir={tmp_path / 'l'}"]) == 0
    assert "validation loss on them" in capsys.readouterr().out


def test_bad_input_is_named_and_exits_with_two(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"exit": "failed", "error": "a reason"}))
    (tmp_path / "config.yaml").write_text("")
    for words, code, named in (
        (["train", "federation.roundz=3"], 2, "unknown key `federation.roundz`"),
        (["plan", "fuse.tau=1"], 2, "aggregator.fuse"),
        (["train", "a.yaml", "b.yaml"], 2, "a.yaml, b.yaml"),
        (["plan", "federation.rounds"], 2, "overrides are written key=value"),
        (["evaluate", str(tmp_path / "none")], 1, "none"),
        (["evaluate", "run.seed=1"], 2, "run folder"),
        (["table", str(tmp_path / "none")], 1, "none"),
        (["table", str(tmp_path)], 1, "no finished run"),
        (["methods", "krums"], 2, 'did you mean "krum"'),
    ):
        assert main(words) == code, words
        assert named in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["report", "runs/a", "--out", "WRONG"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: fedcmp report [-h] RUN | COMPARISON"), "the usage of its command"
    assert "fedcmp report: error: unrecognized arguments: --out" in said


def test_validate_counts_what_it_saw_and_takes_the_words_of_a_run(tmp_path, capsys) -> None:
    (tmp_path / "good.yaml").write_text("federation: {rounds: 3}\n")
    assert main(["validate", str(tmp_path)]) == 0
    (tmp_path / "bad.yaml").write_text("federation: {rounds: 0}\n")
    assert main(["validate", str(tmp_path)]) == 2
    assert "2 configs, 1 wrong" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "none")]) == 2
    for words in ([], ["demo/scenes"]):
        assert main(["validate", *words, "federation.rounds=3"]) == 0
        capsys.readouterr()
        assert main(["validate", *words, "federation.rounds=0"]) == 2
        assert "federation.rounds must be" in "".join(capsys.readouterr())


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_path, _overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedcmp.config.load_config", interrupted)
    assert main(["train"]) == 130


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_left_is_no_error(stream: str) -> None:
    """As in ``fedcmp configs | head -1``."""
    gone, pipe = os.pipe()
    os.close(gone)
    words = ["configs"] if stream == "stdout" else ["configs", "none"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: pipe}
    done = subprocess.run([sys.executable, "-m", "fedcmp", *words], **streams, check=False)
    os.close(pipe)
    assert done.returncode == 141
    assert not done.stdout
    assert not done.stderr


def test_the_table_of_methods_is_complete_and_the_one_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    assert all(f"| {name} |" in printed for name in PRESETS)
    docs = Path(__file__).parent.parent / "docs" / "methods.md"
    assert printed in docs.read_text(encoding="utf-8"), "docs/methods.md is not what `fedcmp methods --markdown` prints"
    assert main(["methods", "krum", "fedcmp"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["fedcmp", "krum"]
