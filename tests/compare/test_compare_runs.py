"""Real comparisons on a few scenes: from words to tables, through kills, signals and failures."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small import SMALL

import fedcmp.compare.workers as workers
import fedcmp.federation.loop as loop
from fedcmp.cli import main
from fedcmp.compare import Place, Request, ask
from fedcmp.compare.inputs import encode_features, open_jobs
from fedcmp.compare.jobs import Jobs
from fedcmp.config import load_config
from fedcmp.errors import AggregationError, DataError, RunFolderError
from fedcmp.federation.folder import RunFolder
from fedcmp.locking import locked

WORDS = [*SMALL, "--methods", "fedavg,fedcmp", "--seeds", "1", "--budget", "2", "--workers", "1", "wandb.group=mine"]
FAST = [*SMALL, "federation.rounds=4", "federation.local_steps=1", "federation.batch_size=2", "--no-bounds"]
FAST += ["--budget", "1", "--seeds", "1", "--methods", "fedavg,fedcmp"]
RECORD = {
    "cell", "status", "error", "val_loss", "test", "samples_seen", "seconds", "bytes", "projector_sha256", "folder",
    "commit", "versions", "device",
}  # fmt: skip


def compare(*words: str | Path) -> int:
    return main(["compare", *map(str, words)])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    return {line["folder"]: line["projector_sha256"] for line in lines(folder)}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "first"
    assert compare(*WORDS, "--out", folder) == 0
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_pictures_that_a_cache_has_are_not_encoded_again(tmp_path: Path) -> None:
    jobs = Jobs(ask(None, SMALL, Request(methods="fedavg,fedcmp", seeds=2, budget=1, bounds=False)))
    first, again = (encode_features(open_jobs(jobs, {}), tmp_path) for _ in range(2))
    pictures = 2 * 8 * (8 + 2 + 2)  # of two seeds, of eight cameras
    assert (first["pictures"], first["encoded"]) == (pictures, pictures)
    assert (again["pictures"], again["encoded"]) == (pictures, 0)


def test_the_folder_is_as_promised(done: Path) -> None:
    names = {"compare.json", "runs.jsonl", "cells", "table.md", "table.csv", "table.tex", "table.json", ".lock"}
    assert {path.name for path in done.iterdir()} == names
    records = lines(done)
    assert len(records) == 4 * (2 + 1)
    for record in records:
        assert set(record) == RECORD
        assert (record["status"], record["error"]) == ("finished", None)
        assert record["cell"]["seed"] == (0 if record["cell"]["stage"] == "tune" else 1)
        cell = done / record["folder"]
        kept = {path.name for path in cell.iterdir()}
        assert {"config.yaml", "split.json", "metrics.jsonl", "summary.json"} <= kept
        assert not kept & {"checkpoints", "projector.safetensors", "clients"}
        assert load_config(cell / "config.yaml").wandb.group == "mine", "else the folder's name"
        assert not load_config(cell / "config.yaml").wandb.projector, "it is deleted"
        assert load_config(cell / "config.yaml").wandb.tags == [record["cell"]["stage"], record["cell"]["setting"]]
        assert record["val_loss"] == json.loads((cell / "summary.json").read_text())["val/loss"]["end"]
    finals = {record["cell"]["method"]: record for record in records if record["cell"]["stage"] == "final"}
    assert set(finals) == {"fedavg", "fedcmp", "centralized", "local"}
    for method, record in finals.items():
        tuning = [one for one in records if one["cell"]["method"] == method and one["cell"]["stage"] == "tune"]
        assert len(tuning) == 2
        assert record["cell"]["options"] == min(tuning, key=lambda one: one["val_loss"])["cell"]["options"]
    asked = json.loads((done / "compare.json").read_text())
    assert (asked["seeds"], asked["budget"], asked["reference"], asked["bounds"]) == (1, 2, "fedcmp", True)
    cost, scenes = asked["features"], 8 * (8 + 2)
    assert cost["pictures"] == cost["encoded"] == 2 * scenes + 8 * 2, "of two seeds; test pictures of one"


def test_the_tables_say_what_the_runs_say(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--out", done) == 0
    out = capsys.readouterr().out
    assert main(["table", str(done)]) == 1
    assert f"{done / 'table.md'}" in capsys.readouterr().err, "where a comparison's tables are"
    assert {"worst domain", "image use", "CIDEr-D"} <= set(re.split(r"\s{2,}", out))
    test = {line["cell"]["method"]: line["test"] for line in lines(done) if line["cell"]["stage"] == "final"}
    body = [row.replace(" (reference)", "").split() for row in out.splitlines()[3:7]]
    losses = {method: one["loss"] for method, one in test.items()}
    assert {row[0]: float(row[1]) for row in body} == pytest.approx(losses, abs=6e-4)
    rows = {row["method"]: row for row in csv.DictReader((done / "table.csv").read_text().splitlines())}
    assert {method: float(row["test_loss"]) for method, row in rows.items()} == losses
    assert float(rows["fedavg"]["CIDEr"]) == test["fedavg"]["cider"]
    for column, key in (("recovered", "loss"), ("recovered_image_use", "image_use")):
        own, low, high = (test[one][key] for one in ("fedavg", "local", "centralized"))
        assert float(rows["fedavg"][column]) == pytest.approx((own - low) / (high - low))


def test_nothing_is_run_twice(copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "resume", "train_centralized", "train_local"):
        monkeypatch.setattr(workers, name, None)
    before = {name: (copy / name).read_bytes() for name in ("table.csv", "table.tex", "runs.jsonl")}
    assert compare(*WORDS, "--out", copy) == 0
    assert compare("--out", copy, "--table", "csv") == 0
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert before["table.csv"].decode() in capsys.readouterr().out
    cell = copy / lines(copy)[-1]["folder"]
    (cell / "checkpoints").mkdir()
    (copy / "runs.jsonl").write_bytes(before["runs.jsonl"][:-20])
    assert compare("--out", copy, "--workers", "1") == 0
    assert (copy / "runs.jsonl").read_bytes() == before["runs.jsonl"], "what a kill took is taken from the run itself"
    assert not (cell / "checkpoints").exists()
    with locked(copy):
        assert compare("--out", copy) == 1, "two at once are refused"
    assert "of other code" not in capsys.readouterr().err
    monkeypatch.setattr(sys.modules["fedcmp.compare.compare"], "commit", lambda: "of another day")
    assert compare("--out", copy) == 0
    assert f"{len(lines(copy))} known runs are of other code" in capsys.readouterr().err


def test_more_methods_are_added_and_labels_cost_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--methods", "mean=fedavg,fedcmp,fedprox", "--scenarios", "all=domain", "--workers", "1"]
    old = {line["folder"] for line in lines(copy)}
    assert compare("--out", copy, *more) == 0
    err = capsys.readouterr().err
    assert len(re.findall(r"^ *\d+/15  all ", err, re.MULTILINE)) == 3, "a line for each run"
    added = lines(copy)[12:]
    ran = [(one["cell"]["method"], one["cell"]["stage"]) for one in added if one["folder"] not in old]
    assert ran == [("fedprox", "tune"), ("fedprox", "tune"), ("fedprox", "final")]
    shown = {one["cell"]["method"] for one in added if one["cell"]["setting"] == "all"}
    assert shown == {"mean", "fedcmp", "fedprox", "centralized", "local"}
    assert ["mean" in (table := (copy / "table.md").read_text()), "fedavg" in table] == [True, False]


def test_bad_words_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    krum = ["--methods", "fedavg,krum", "partition.clients=4", "--no-bounds"]
    for words, key in (
        ([*SMALL, "--methods", "fedavgg"], "fedavgg"),
        ([*SMALL, "--workers", "0"], "--workers"),
        ([*SMALL, *krum], "setting demo, method krum: aggregator.name=krum"),
        ([], "--out"),
    ):
        assert compare(*words, "--out", folder) == 2
        assert key in capsys.readouterr().err
    assert compare("--out", folder, "--no-bounds", "--dry-run") == 0, "an option begins one"
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    for words in ([], ["--dry-run"]):
        assert compare(*SMALL, "--out", folder, *words) == 1
        assert f"--out: the run folder {folder} is not empty" in capsys.readouterr().err


def test_a_failed_run_is_shown_and_can_be_tried_again(tmp_path, monkeypatch, capsys) -> None:
    whole, folder = workers.train, tmp_path / "study"

    def breaks(config, **options):
        if config.aggregator.name == "fedavg" and config.run.seed == 1:
            raise AggregationError("too few clients sent a usable update")
        return whole(config, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "train", breaks)
        assert compare(*FAST, "--workers", "1", "--seeds", "2", "--out", folder) == 1
    said = capsys.readouterr().out
    assert "fedavg [failed 1 of 2 seeds]" in said
    assert "fedavg failed: AggregationError: too few clients" in said
    (bad,) = [line for line in lines(folder) if line["status"] == "failed"]
    assert "breaks" in (folder / bad["folder"] / "error.txt").read_text()
    runs = (folder / "runs.jsonl").read_text()
    assert compare("--out", folder, "--workers", "1") == 1
    assert (folder / "runs.jsonl").read_text() == runs, "only asked for is it tried again"
    assert compare("--out", folder, "--workers", "1", "--retry-failed") == 0
    assert (lines(folder)[-1]["status"], lines(folder)[-1]["folder"]) == ("finished", bad["folder"])


def test_a_full_disk_ends_it_and_is_no_result(tmp_path, monkeypatch, capsys) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise RunFolderError("cannot write the checkpoint: no space left")

    monkeypatch.setattr(workers, "train", full)
    assert compare(*FAST, "--workers", "1", "--out", tmp_path / "study") == 1
    assert "no space left" in capsys.readouterr().err
    assert not (tmp_path / "study" / "runs.jsonl").exists()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert compare(*FAST, "--workers", "1", "--out", folder) == 0
    return hashes(folder)


@pytest.mark.parametrize("code", [130, 0], ids=["interrupted", "asked"])
def test_an_interrupt_and_a_signal_say_how_to_go_on(
    code: int, uninterrupted: dict[str, str], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = loop.run_round, tmp_path / "study"

    def round_then_stop(federation, state, plan):
        if plan.round == 2:
            if code:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(federation, state, plan)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_round", round_then_stop)
        assert compare(*FAST, "--workers", "1", "--out", folder) == code
    assert capsys.readouterr().err.count(f"with: fedcmp compare --out {folder}") == 2, "at the start and at the end"
    assert not (folder / "runs.jsonl").exists()
    assert "0 of 1" in (folder / "table.md").read_text()
    assert compare("--out", folder, "--workers", "1") == 0
    assert hashes(folder) == uninterrupted


def kill(folder: Path, until: Any, *words: str) -> None:
    """Kills a comparison of two workers; all that it started end with it."""
    command = [sys.executable, "-m", "fedcmp", "compare", *FAST, *words, "--workers", "2", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: until(process.pid), process)
        begun = children(process.pid)
        begun += [reader for worker in begun for reader in children(worker)]
    finally:
        process.kill()
        process.communicate()
    assert begun
    wait_for(lambda: not any(alive(pid) for pid in begun), None)


@pytest.mark.slow
def test_a_kill_costs_nothing_that_was_done_and_two_workers_find_what_one_finds(
    uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    kill(folder, lambda _: list(folder.glob("cells/*/checkpoints/round-0001-*.pt")))
    unfinished = [cell for cell in folder.glob("cells/*") if not (cell / "summary.json").exists()]
    assert unfinished, "the kill came too late to tell anything"
    with (folder / "runs.jsonl").open("a") as file:
        file.write('{"cell": {"setting": "de')
    assert compare("--out", folder, "--workers", "2", "--keep-projectors") == 0
    assert hashes(folder) == uninterrupted
    assert len(lines(folder)) == len(list(folder.glob("cells/*/projector.safetensors"))) == 2
    assert not list(folder.glob("cells/*/checkpoints"))


@pytest.mark.slow
def test_workers_may_read_pictures_ahead_and_leave_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    kill(folder, lambda pid: any(map(children, children(pid))), "data.stream=true", "data.workers=1")
    assert compare("--out", folder, "--workers", "2") == 0
    assert [line["error"] for line in lines(folder)] == [None, None]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Any, process: subprocess.Popen[str] | None, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.005)


def test_half_a_run_whose_data_have_moved_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Jobs(ask(None, (), Request(methods="fedavg", budget=1, bounds=False))).final("demo", "fedavg", {}, 1)
    begun = RunFolder(tmp_path / "cells" / job.id)
    begun.path.mkdir(parents=True)
    begun.config.write_text("data: {root: /gone}")
    begun.split.write_text("{}")

    def gone(*_args: object, **_options: object) -> None:
        raise DataError("data.root: no folder /gone")

    monkeypatch.setattr(workers, "resume", gone)
    monkeypatch.setattr(workers, "train", lambda *_args, **_options: {"exit": "stopped"})
    assert workers.JobRunner(Place(tmp_path), alone=True)(job) is None
