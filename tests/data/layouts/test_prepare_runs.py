"""From a set on disk to a trained projector, by the words of the documentation."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import published
import pytest
from small import SMALL

from fedcmp.cli import main
from fedcmp.cli.entry import _parser
from fedcmp.config import load_config
from fedcmp.data.layouts import LAYOUTS

DOCS = Path(__file__).parents[3] / "docs"


def commands(page: str) -> list[list[str]]:
    """The commands of a page's ``bash`` blocks, one a line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert all(line.startswith("fedcmp ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def hospital(home: Path, first: int) -> None:
    """The example of docs/data.md."""
    published.clinic(home)
    for number in range(40):
        (home / "pictures" / f"scan_{number:03d}.png").write_bytes(published.picture(first + number, "PNG"))


def test_every_step_for_ones_own_data_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital(tmp_path / "north", 0)
    hospital(tmp_path / "south", 100)
    institutions(tmp_path / "all", 40)
    shown = (DOCS / "data.md").read_text(encoding="utf-8")
    head = (tmp_path / "north" / "notes.csv").read_text().splitlines()[1:3]
    assert all(f"\n{line.split(',')[0]}," in shown for line in head)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = []
    for words in commands("data.md")[:9]:  # of your own pictures
        more = ["wandb.mode=disabled"] if words[0] == "train" else []
        assert main([*words, *more]) == 0, words
        done.append(words[0])
    assert done == ["prepare", "prepare", "plan", "train", "report", "evaluate", "export", "prepare", "plan"]
    summary = json.loads((tmp_path / "runs" / "hospitals" / "summary.json").read_text())
    assert summary["exit"] == "finished"
    assert set(summary["val/domains"]) == {"north", "south"}
    assert summary["val/loss"]["end"] < summary["val/loss"]["start"]
    assert (tmp_path / "runs" / "hospitals" / "report" / "index.html").exists()
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert "internal use only" in (tmp_path / "exported" / "README.md").read_text()
    out = capsys.readouterr().out
    assert "wrote data/north: 36 training, 2 validation and 2 test samples (splits drawn); pictures linked from" in out
    assert "next: fedcmp plan data.kind=pairs data.root=data" in out
    split = json.loads((tmp_path / "runs" / "hospitals" / "split.json").read_text())
    assert split["names"] == ["north", "south"]
    assert all(f"client {place} (ward {place + 1})" in out for place in range(3))


def institutions(home: Path, num: int) -> Path:
    """One table of pictures of three institutions."""
    published.clinic(home, num)
    rows = [
        {"file": f"scan_{number:03d}.png", "report": f"case {number}", "clinic": f"ward {1 + number % 3}"}
        for number in range(num)
    ]
    return published.table(home / "notes.csv", rows)


def next_words(out: str) -> list[str]:
    """The command behind the last ``next:``."""
    program, *words = shlex.split(re.findall(r"^next: (.*)$", out, re.M)[-1])
    assert program == "fedcmp"
    return words


QUIET = ["run.device=cpu", "run.figures=false", "wandb.mode=disabled", "evaluation.captions=0", "evaluation.examples=0"]


@pytest.mark.parametrize("more", [[], ["--client-column", "clinic"], ["--val", "2", "--test", "0"]], ids=str)
def test_what_is_printed_as_next_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    table = institutions(tmp_path / "set", 12)
    root = tmp_path / "my root"
    words = ["--image-column", "file", "--caption-column", "report", *more, "--out", str(root / "all")]
    assert main(["prepare", "csv", str(table), *words]) == 0
    command = next_words(capsys.readouterr().out)
    assert main(command) == 0
    assert ("client 2 (ward 3)" if "clinic" in more else "client 0 (all)") in capsys.readouterr().out
    run = tmp_path / "run"
    assert main(["train", *command[1:], *QUIET, f"run.dir={run}"]) == 0
    assert json.loads((run / "summary.json").read_text())["rounds"] > 1


def test_next_leaves_a_folder_out_that_would_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["--image-column", "file", "--caption-column", "report"]
    for name, more in (("plain", []), ("given", ["--client-column", "clinic"])):
        table = institutions(tmp_path / name, 40)
        assert main(["prepare", "csv", str(table), *columns, *more, "--out", str(tmp_path / "root" / name)]) == 0
    assert main(next_words(capsys.readouterr().out)) == 0


def test_what_an_error_proposes_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = institutions(tmp_path / "set", 12)
    columns = ["--image-column", "file", "--caption-column", "report"]
    assert main(["prepare", "csv", str(table), *columns, "--out", str(tmp_path / "root" / "all")]) == 0
    capsys.readouterr()
    words = ["data.kind=pairs", f"data.root={tmp_path / 'root'}"]
    for asked in ([], ["federation.batch_size=3"], ["federation.batch_size=2", "federation.local_steps=2"]):
        assert main(["plan", *words, *asked]) == 2
        proposals = re.findall(
            r"(?:federation\.(?:rounds|batch_size)=\d+ ?)+", capsys.readouterr().err.split("fits")[1]
        )
        assert proposals
        for proposed in proposals:
            assert main(["plan", *words, *asked, *proposed.split()]) == 0
        capsys.readouterr()


def test_rows_that_repeat_another_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = institutions(tmp_path / "set", 12)
    with table.open("a", encoding="utf-8") as file:
        file.write("scan_003.png,case 3,ward 1\n" * 2 + "scan_003.png,another,ward 1\nscan_003.png,case 3,ward 2\n")
    columns = ["--image-column", "file", "--caption-column", "report", "--client-column", "clinic"]
    assert main(["prepare", "csv", str(table), *columns, "--out", str(tmp_path / "root" / "all")]) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert "2" in told.split()
    facts = json.loads((tmp_path / "root" / "all" / "source.json").read_text())
    assert facts["repeated_rows"] == 2
    assert sum(facts["counts"].values()) == 14


def test_a_row_without_its_client_is_a_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = institutions(tmp_path / "set", 12)
    with table.open("a", encoding="utf-8") as file:
        file.write("scan_003.png,case 3 again, \n")
    columns = ["--image-column", "file", "--caption-column", "report", "--client-column", "clinic"]
    words = ["prepare", "csv", str(table), *columns, "--out", str(tmp_path / "root" / "all")]
    assert main(words) == 2
    assert "notes.csv:14: field `clinic`" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0


def test_the_recipes_of_the_documentation_are_words_that_are_understood() -> None:
    layouts = []
    for words in commands("data.md")[9:]:  # of public sets
        if words[0] == "prepare":
            parsed = _parser().parse_args(words)
            if parsed.layout != "LAYOUT":
                layouts.append(parsed.layout)
        else:
            load_config(None, words[1:])
    assert layouts == list(LAYOUTS)
    table = (DOCS / "data.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in table for name in LAYOUTS)


def test_two_layouts_in_one_run_of_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.nwpu(tmp_path / "nwpu")
    published.shards(tmp_path / "shards", 6)
    root = tmp_path / "root"
    assert main(["prepare", "nwpu", str(tmp_path / "nwpu"), "--out", str(root / "space"), "--copy"]) == 0
    words = [f"{tmp_path}/shards/{{00000..00005}}.tar", "--out", str(root / "web"), "--seed", "3", "--val", "4"]
    assert main(["prepare", "webdataset", *words]) == 0
    told = capsys.readouterr().out
    assert "16 training, 2 validation and 2 test samples (splits the set's own); pictures packed from" in told
    assert "42 training, 4 validation and 2 test samples (splits drawn); pictures packed\n" in told
    run = [word for word in SMALL if "scenes" not in word]
    folder = tmp_path / "run"
    assert main(["train", *run, "data.kind=pairs", f"data.root={root}", "partition.scenario=topic",
                 "partition.clients=3", "federation.rounds=1", f"run.dir={folder}"]) == 0  # fmt: skip
    split = json.loads((folder / "split.json").read_text())
    assert split["splits"] == {"train": 58, "val": 6, "test": 4}
    labels = {label for client in split["composition"].values() for label in client["labels"]}
    assert {label.split("/")[0] for label in labels} == {"space", "web"}


def test_mistakes_exit_with_two_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.llava(tmp_path / "set")
    out = ["--out", str(tmp_path / "out")]
    for words, complaint in (
        (["lava", str(tmp_path / "set")], "unknown layout 'lava'; did you mean \"llava\""),
        (["llava", str(tmp_path / "nowhere")], "no file "),
        (["llava", str(tmp_path / "set"), "--val", "99"], "--val 99 and --test 2 leave nothing to train on"),
        (["llava", str(tmp_path / "set"), "--id-column", "x"], "--id-column is for layout csv, not for llava"),
    ):
        assert main(["prepare", *words, *out]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["prepare", "llava", str(tmp_path / "set"), *out, "--skip-bad"]) == 0
    assert main(["prepare", "llava", str(tmp_path / "set"), *out]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    path = tmp_path / "set" / "blip_laion_cc_sbu_558k.json"
    rows = json.loads(path.read_text())
    published.dump(path, [*rows, rows[0], {"id": 5}])
    assert main(["prepare", "llava", str(path), "--out", str(tmp_path / "more"), "--skip-bad"]) == 0
    told = capsys.readouterr().out
    assert "left out 2 bad records, the first: " in told
    assert "id '000000000' stands twice" in told
